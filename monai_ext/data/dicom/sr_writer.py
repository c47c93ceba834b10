"""Measurements of structures as a DICOM structured report (template TID 1500, PS3.16), and what such a report says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_ext.data.dicom.structures import (
    PRODUCT,
    Code,
    Maker,
    Source,
    Structure,
    common_attributes,
    make_uid,
    quiet_names,
)

if TYPE_CHECKING:
    from highdicom.sr import ComprehensiveSR

VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long Axis")
SHORT_AXIS = Code("103340004", "SCT", "Short Axis")
_IMAGING = Code("363679005", "SCT", "Imaging procedure")
_UNITS = {"ml": Code("mL", "UCUM", "milliliter"), "mm": Code("mm", "UCUM", "millimeter")}


@dataclass(frozen=True)
class Measured:
    """Measures of one structure, as ``volumes.csv`` has them.

    Attributes:
        volume_ml: volume.
        longest_mm: longest diameter in the plane of a slice; None: not measured.
        perpendicular_mm: width across it.
    """

    volume_ml: float
    longest_mm: float | None = None
    perpendicular_mm: float | None = None


def build_sr(
    source: Source, structures: Sequence[Structure], measured: Mapping[str, Measured], maker: Maker
) -> ComprehensiveSR:
    """Make a report: one group of measurements for each structure, of the slices that hold it.

    The tracking UID of a structure depends on the patient and its name alone, so that reports of several visits belong
    together. The report is complete, preliminary and not verified by anybody.

    Args:
        source: the series.
        structures: one or more, none empty.
        measured: by the name of the structure.
        maker: who and when.
    """
    from highdicom.sr import ComprehensiveSR, MeasurementReport, ObservationContext, ObserverContext
    from highdicom.sr import DeviceObserverIdentifyingAttributes as Device
    from pydicom.sr.codedict import codes
    from pydicom.valuerep import DA, TM

    device = Device(uid=make_uid("device", PRODUCT), name=PRODUCT, manufacturer_name=PRODUCT, model_name=PRODUCT)
    observer = ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=_concept(_IMAGING),
        imaging_measurements=[_group(source, one, measured[one.name], maker) for one in structures],
        title=codes.DCM.ImagingMeasurementReport,
    )
    content = ["SR", *(item for one in structures for item in (one.name, measured[one.name]))]
    attributes = common_attributes(source, maker, content)
    for keyword in ("content_qualification", "manufacturer_model_name", "software_versions"):
        attributes.pop(keyword)
    with quiet_names():
        written = ComprehensiveSR(
            evidence=list(source.headers), content=report[0], is_complete=True, record_evidence=True, **attributes
        )
    written.ContentDate, written.ContentTime = DA(maker.made.date()), TM(maker.made.time())
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in written:
            del written[keyword]
    for equipment in written.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    written.ManufacturerModelName, written.SoftwareVersions = PRODUCT, maker.version
    return written


def read_sr(path: Path) -> dict[str, Measured]:
    """Read the measurements of a report by the names of its structures."""
    from highdicom.sr import srread

    found = {}
    report: Any = srread(path).content
    for group in report.get_image_measurement_groups():
        values = {one.name.value: float(one.value) for one in group.get_measurements()}
        found[str(group.tracking_identifier)] = Measured(
            values[VOLUME.value], values.get(LONG_AXIS.value), values.get(SHORT_AXIS.value)
        )
    return found


def _group(source: Source, structure: Structure, measured: Measured, maker: Maker) -> Any:
    from highdicom.sr import (
        AlgorithmIdentification,
        MeasurementsAndQualitativeEvaluations,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )

    slices = np.flatnonzero(structure.mask.any(axis=(0, 1)))
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=make_uid("structure", str(source.headers[0].PatientID), structure.name), identifier=structure.name
        ),
        finding_type=_concept(structure.type),
        finding_category=_concept(structure.category),
        algorithm_id=AlgorithmIdentification(name=maker.algorithm, version=maker.version),
        measurements=[
            _measurement(name, value, unit)
            for name, value, unit in (
                (VOLUME, measured.volume_ml, "ml"),
                (LONG_AXIS, measured.longest_mm, "mm"),
                (SHORT_AXIS, measured.perpendicular_mm, "mm"),
            )
            if value is not None
        ],
        source_images=[
            SourceImageForMeasurementGroup(source.headers[k].SOPClassUID, source.headers[k].SOPInstanceUID)
            for k in slices
        ],
    )


def _measurement(name: Code, value: float, unit: str) -> Any:
    from highdicom.sr import Measurement

    return Measurement(name=_concept(name), value=value, unit=_concept(_UNITS[unit]))


def _concept(code: Sequence[str]) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(*code)
