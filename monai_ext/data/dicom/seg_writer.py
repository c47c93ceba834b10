"""Structures as DICOM SEG (PS3.3 A.51): one BINARY segment each, on the very grid of the series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_ext.data.dicom.structures import (
    PRODUCT,
    PURPOSE,
    Maker,
    Source,
    Structure,
    common_attributes,
    contents_of,
    make_uid,
    quiet_names,
)

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription


def build_seg(source: Source, structures: Sequence[Structure], maker: Maker) -> Segmentation:
    """Make a SEG of the structures; frames in which a structure is not are left out.

    The patient's and the study's elements are those of the series, whose slices are referenced frame by frame.

    Args:
        source: the series.
        structures: one or more, none empty; they may overlap.
        maker: who and when.
    """
    from highdicom.seg import Segmentation

    pixels = np.stack([structure.mask.transpose(2, 1, 0) for structure in structures], axis=-1)
    with quiet_names():
        seg = Segmentation(
            source_images=source.headers,
            pixel_array=pixels.astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=[_describe(number, item, maker) for number, item in enumerate(structures, start=1)],
            device_serial_number="none",
            content_label=PRODUCT.upper(),
            content_description=f"{PRODUCT}, {PURPOSE}",
            content_date=maker.made.date(),
            content_time=maker.made.time(),
            **common_attributes(source, maker, ["SEG", *contents_of(structures)]),
        )
    _make_repeatable(seg)
    return seg


def _make_repeatable(seg: Segmentation) -> None:
    """Take out the time of writing and the UIDs made by chance, so that the same mask gives the same bytes."""
    del seg.InstanceCreationDate, seg.InstanceCreationTime
    for equipment in seg.ContributingEquipmentSequence:
        equipment.pop("ContributionDateTime", None)
    organization = make_uid("dimensions", seg.SOPInstanceUID)
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization


def _describe(number: int, structure: Structure, maker: Maker) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    description = SegmentDescription(
        segment_number=number,
        segment_label=structure.name,
        segmented_property_category=_concept(structure.category),
        segmented_property_type=_concept(structure.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=maker.algorithm, family=codes.DCM.ArtificialIntelligence, version=maker.version, source=PRODUCT
        ),
        display_color=CIELabColor.from_rgb(*structure.colour),
    )
    if structure.side is not None:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(structure.side)]
    return description


def _concept(code: Sequence[str]) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(*code)
