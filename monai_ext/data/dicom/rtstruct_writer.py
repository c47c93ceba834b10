"""Structures as RTSTRUCT (PS3.3 A.19): closed planar contours in the patient's frame of reference, LPS mm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.outlines import Points, trace_outlines
from monai_ext.data.dicom.structures import (
    PRODUCT,
    Code,
    Maker,
    Source,
    Structure,
    common_attributes,
    contents_of,
    quiet_names,
)

if TYPE_CHECKING:
    from pydicom import Dataset

_RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, but what RTReferencedStudySequence goes on to name


def build_rtstruct(source: Source, structures: Sequence[Structure], maker: Maker) -> Dataset:
    """Make an RTSTRUCT of the structures, one ROI each, unapproved.

    Contours lie in the planes of the slices, each with a reference to its image; a hole is joined to the contour
    around it (:mod:`monai_ext.data.dicom.outlines`). Implicit VR, since an explicit one has no room for contours
    of more than 65534 bytes.

    Args:
        source: the series.
        structures: one or more, none empty; they may overlap.
        maker: who and when.
    """
    from highdicom.base import SOPClass
    from pydicom.uid import ImplicitVRLittleEndian

    first = source.headers[0]
    with quiet_names():
        dataset = SOPClass(
            study_instance_uid=first.StudyInstanceUID,
            sop_class_uid=_RT_STRUCTURE_SET,
            modality="RTSTRUCT",
            transfer_syntax_uid=ImplicitVRLittleEndian,
            **common_attributes(source, maker, ["RTSTRUCT", *contents_of(structures)]),
        )
    dataset.copy_patient_and_study_information(first)
    del dataset.InstanceCreationDate, dataset.InstanceCreationTime  # the same mask gives the same bytes
    dataset.OperatorsName = ""
    dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = first.get("PositionReferenceIndicator", "")
    dataset.StructureSetLabel = PRODUCT
    dataset.StructureSetName = maker.algorithm
    dataset.StructureSetDescription = f"{maker.description}; not for diagnosis or treatment"
    dataset.StructureSetDate = f"{maker.made:%Y%m%d}"
    dataset.StructureSetTime = f"{maker.made:%H%M%S}"
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    numbered = list(enumerate(structures, start=1))
    dataset.StructureSetROISequence = [_roi(number, item, first, maker) for number, item in numbered]
    dataset.ROIContourSequence = [_roi_contours(number, item, source) for number, item in numbered]
    dataset.RTROIObservationsSequence = [_observation(number, item) for number, item in numbered]
    return dataset


def slice_to_lps(header: Dataset) -> NDArray[np.float64]:
    """Return [3, 3]: (column, row, 1) of a slice, pixel centres at whole numbers, to LPS mm (PS3.3 C.7.6.2.1.1)."""
    along_row, along_column = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = map(float, header.PixelSpacing)
    position = np.array(header.ImagePositionPatient, dtype=np.float64)
    return np.stack([along_row * between_columns, along_column * between_rows, position], axis=1)


def _frame_of_reference(source: Source) -> Dataset:
    first = source.headers[0]
    series = _dataset(
        SeriesInstanceUID=first.SeriesInstanceUID,
        ContourImageSequence=[_reference(header) for header in source.headers],
    )
    study = _dataset(
        ReferencedSOPClassUID=_STUDY_CLASS,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _dataset(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _roi(number: int, structure: Structure, first: Dataset, maker: Maker) -> Dataset:
    return _dataset(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
        ROIName=structure.name,
        ROIGenerationAlgorithm="AUTOMATIC",
        ROIGenerationDescription=maker.description,
    )


def _roi_contours(number: int, structure: Structure, source: Source) -> Dataset:
    contours = [
        _dataset(
            ContourImageSequence=[_reference(header)],
            ContourGeometricType="CLOSED_PLANAR",
            NumberOfContourPoints=len(points),
            ContourNumber=n,
            ContourData=[f"{value + 0.0:.4f}" for value in points.round(4).ravel()],
        )
        for n, (header, points) in enumerate(_outlines(structure, source), start=1)
    ]
    return _dataset(ROIDisplayColor=list(structure.colour), ContourSequence=contours, ReferencedROINumber=number)


def _outlines(structure: Structure, source: Source) -> Iterator[tuple[Dataset, Points]]:
    """Yield the slice and the points [n, 3] in LPS mm of each contour."""
    for k in np.flatnonzero(structure.mask.any(axis=(0, 1))):
        header = source.headers[k]
        to_lps = slice_to_lps(header)
        for outline in trace_outlines(structure.mask[:, :, k]):
            yield header, outline @ to_lps[:, :2].T + to_lps[:, 2]


def _observation(number: int, structure: Structure) -> Dataset:
    code = _code(structure.type)
    if structure.side is not None:
        code.SegmentedPropertyTypeModifierCodeSequence = [_code(structure.side)]
    return _dataset(
        ObservationNumber=number,
        ReferencedROINumber=number,
        SegmentedPropertyCategoryCodeSequence=[_code(structure.category)],
        RTROIIdentificationCodeSequence=[code],
        RTROIInterpretedType="",  # GTV, ORGAN and the like are for a physician to say
        ROIInterpreter="",
    )


def _code(code: Code) -> Dataset:
    return _dataset(CodeValue=code.value, CodingSchemeDesignator=code.scheme, CodeMeaning=code.meaning)


def _reference(header: Dataset) -> Dataset:
    return _dataset(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)


def _dataset(**elements: Any) -> Dataset:
    from pydicom import Dataset

    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
