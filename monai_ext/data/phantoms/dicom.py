"""Writes DICOM series of CT or MR and RTSTRUCT, for benchmarks and tests.

The same call writes the same bytes, UIDs included. Needs the extra ``dicom``.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_ext.data.dicom.reading import read_dataset, require_extra
from monai_ext.files import atomic_path

if TYPE_CHECKING:
    from pydicom import Dataset

Points = NDArray[np.float64]

CT_IMAGE, MR_IMAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_FIRST_DATE = datetime.date(2000, 11, 27)


def make_uid(*parts: object) -> str:
    """A UID that depends on ``parts`` alone."""
    require_extra()
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["monai_ext phantom", *map(str, parts)]))


def write_ct_series(
    folder: str | os.PathLike[str],
    array: ArrayLike,
    affine: ArrayLike,
    *,
    patient_id: str = "PHANTOM",
    study_date: datetime.date | None = _FIRST_DATE,
    study_uid: str | None = None,
    series_uid: str | None = None,
    series_number: int = 1,
    series_description: str = "phantom",
    frame_of_reference_uid: str | None = None,
    modality: str = "CT",
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
    reverse: bool = False,
    drop: Collection[int] = (),
    elements: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a volume as one DICOM series, a file a slice (``1-01.dcm``, ... by InstanceNumber).

    Args:
        folder: where to; made where it is missing.
        array: [X, Y, Z] in HU (or grey values), X along the columns of a slice and Y along its rows.
        affine: [4, 4], voxel indices to RAS+ mm; rotated, sheared (gantry tilt) and mirrored ones are written as
            they are.
        patient_id: also the patient's name.
        study_date: of study and series; None leaves it out.
        study_uid: default: a function of patient and date.
        series_uid: default: a function of the study, the description and the number.
        series_number: SeriesNumber.
        series_description: SeriesDescription.
        frame_of_reference_uid: default: a function of the study; "" leaves it out.
        modality: "CT" or "MR".
        slope: RescaleSlope; stored values are the nearest whole numbers.
        intercept: RescaleIntercept.
        signed: store signed values (PixelRepresentation 1).
        reverse: number (and name) the files against the direction of Z.
        drop: indices k of slices that are not written.
        elements: further or other elements of every file, by keyword.

    Returns:
        The files in the order of Z.
    """
    require_extra()
    array, lps = np.asarray(array), _LPS @ np.asarray(affine, dtype=np.float64)
    study_uid = study_uid or make_uid("study", patient_id, study_date)
    series_uid = series_uid or make_uid("series", study_uid, series_number, series_description, modality)
    header = {
        "SOPClassUID": CT_IMAGE if modality == "CT" else MR_IMAGE,
        **_general(patient_id, study_date, study_uid, series_uid, series_number, series_description, modality),
        "FrameOfReferenceUID": make_uid("frame", study_uid)
        if frame_of_reference_uid is None
        else frame_of_reference_uid,
        **_plane(array.shape, lps),
        "RescaleSlope": _decimal(slope),
        "RescaleIntercept": _decimal(intercept),
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(signed),
    }
    stored = _stored(array, slope, intercept, signed)
    depth, files = array.shape[2], []
    for k in (k for k in range(depth) if k not in drop):
        number = depth - k if reverse else k + 1
        position = lps[:3, 3] + k * lps[:3, 2]
        own = {
            "SOPInstanceUID": make_uid("slice", series_uid, k),
            "InstanceNumber": number,
            "ImagePositionPatient": [_decimal(x) for x in position],
            "PixelData": np.ascontiguousarray(stored[:, :, k].T).tobytes(),
        }
        files.append(Path(folder) / f"{series_number}-{number:0{max(2, len(str(depth)))}d}.dcm")
        _save(files[-1], {**header, **own, **(elements or {})})
    return files


def write_rtstruct(
    path: str | os.PathLike[str],
    series_files: Sequence[str | os.PathLike[str]],
    contours: Mapping[str, Sequence[ArrayLike]],
    *,
    shuffle: bool = False,
    series_description: str = "phantom contours",
    geometric_types: Mapping[str, str] | None = None,
) -> Path:
    """Write an RTSTRUCT of a series.

    Args:
        path: file to write.
        series_files: the series that was contoured, one file a slice.
        contours: by ROI name, the closed outlines of the ROI: each [N, 3] in LPS mm.
        shuffle: number the ROIs backwards and store ROIContourSequence in another order than
            StructureSetROISequence, as some writers do.
        series_description: SeriesDescription.
        geometric_types: ContourGeometricType by ROI name (default: CLOSED_PLANAR).

    Returns:
        ``path``.
    """
    headers = [read_dataset(file, pixels=False) for file in series_files]
    first = headers[0]
    path, names = Path(path), list(contours)
    numbers = {name: len(names) - i if shuffle else i + 1 for i, name in enumerate(names)}
    series_uid = make_uid("rtstruct", first.SeriesInstanceUID, series_description)
    structures = [
        _dataset(
            ROINumber=numbers[name],
            ReferencedFrameOfReferenceUID=first.get("FrameOfReferenceUID", ""),
            ROIName=name,
            ROIGenerationAlgorithm="MANUAL",
        )
        for name in names
    ]
    kinds = geometric_types or {}
    drawn = [
        _dataset(
            ROIDisplayColor=[255, 0, 0],
            ContourSequence=[_contour(points, headers, kinds.get(name, "CLOSED_PLANAR")) for points in contours[name]],
            ReferencedROINumber=numbers[name],
        )
        for name in names
    ]
    date = first.get("StudyDate", "")
    _save(
        path,
        {
            "SOPClassUID": RT_STRUCTURE_SET,
            "SOPInstanceUID": make_uid("instance", series_uid),
            **_general(first.PatientID, None, first.StudyInstanceUID, series_uid, 1, series_description, "RTSTRUCT"),
            "StudyDate": date,
            "StructureSetLabel": "PHANTOM",
            "StructureSetDate": date,
            "StructureSetTime": "120000",
            "ReferencedFrameOfReferenceSequence": [_referenced_frame(headers)],
            "StructureSetROISequence": structures,
            "ROIContourSequence": drawn[::-1] if shuffle else drawn,
            "RTROIObservationsSequence": [
                _dataset(ObservationNumber=n, ReferencedROINumber=n, RTROIInterpretedType="", ROIInterpreter="")
                for n in numbers.values()
            ],
        },
    )
    return path


# Elements


def _general(
    patient_id: str,
    date: datetime.date | None,
    study_uid: str,
    series_uid: str,
    number: int,
    description: str,
    modality: str,
) -> dict[str, Any]:
    day = {"StudyDate": f"{date:%Y%m%d}", "SeriesDate": f"{date:%Y%m%d}"} if date else {"StudyDate": ""}
    return {
        "PatientID": patient_id,
        "PatientName": f"{patient_id}^",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": study_uid,
        "StudyID": "1",
        "StudyTime": "120000",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "SeriesInstanceUID": series_uid,
        "SeriesNumber": number,
        "SeriesDescription": description,
        "Modality": modality,
        "Manufacturer": "phantom",
        **day,
    }


def _plane(shape: tuple[int, ...], lps: Points) -> dict[str, Any]:
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    cosines = lps[:3, :2] / spacing[:2]
    normal = np.cross(cosines[:, 0], cosines[:, 1])
    return {
        "ImageOrientationPatient": [_decimal(x) for x in cosines.T.ravel()],
        "PixelSpacing": [_decimal(spacing[1]), _decimal(spacing[0])],  # between rows first
        "SliceThickness": _decimal(abs(float(normal @ lps[:3, 2]))),
        "PositionReferenceIndicator": "",
        "Columns": shape[0],
        "Rows": shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
    }


def _stored(array: NDArray[Any], slope: float, intercept: float, signed: bool) -> NDArray[Any]:
    kind = np.int16 if signed else np.uint16
    stored = np.rint((array.astype(np.float64) - intercept) / slope)
    limits = np.iinfo(kind)
    return np.clip(stored, limits.min, limits.max).astype(kind)


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (pydicom's own formatting may give 17)."""
    value = float(value)
    text = f"{value:.9f}".rstrip("0").rstrip(".") if 1e-3 <= abs(value) < 1e5 else f"{value:.9g}"
    return "0" if text == "-0" else text


def _dataset(**elements: Any) -> Dataset:
    from pydicom import Dataset

    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def _save(path: Path, elements: Mapping[str, Any]) -> None:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = _dataset(**{keyword: value for keyword, value in elements.items() if value is not None})
    if not dataset.get("FrameOfReferenceUID", "absent"):
        del dataset.FrameOfReferenceUID
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _contour(points: ArrayLike, headers: Sequence[Dataset], kind: str) -> Dataset:
    points = np.asarray(points, dtype=np.float64)
    normal = np.cross(*np.array(headers[0].ImageOrientationPatient, dtype=float).reshape(2, 3))
    depths = [float(normal @ np.array(header.ImagePositionPatient, dtype=float)) for header in headers]
    nearest = headers[int(np.argmin(np.abs(np.array(depths) - float(normal @ points.mean(axis=0)))))]
    return _dataset(
        ContourImageSequence=[_reference(nearest)],
        ContourGeometricType=kind,
        NumberOfContourPoints=len(points),
        ContourData=[_decimal(x) for x in points.ravel()],
    )


def _reference(header: Dataset) -> Dataset:
    return _dataset(
        ReferencedSOPClassUID=header.SOPClassUID,
        ReferencedSOPInstanceUID=header.SOPInstanceUID,
    )


def _referenced_frame(headers: Sequence[Dataset]) -> Dataset:
    first = headers[0]
    series = _dataset(
        SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=[_reference(header) for header in headers]
    )
    study = _dataset(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _dataset(FrameOfReferenceUID=first.get("FrameOfReferenceUID", ""), RTReferencedStudySequence=[study])
