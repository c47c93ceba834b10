"""Phantoms as DICOM, laid out like official downloads: CT or MR series, RTSTRUCT, SEG and a small 4D-Lung.

For tests, for the documentation and for the doctor, who needs files with one fault each. All is a function of its
arguments: the same call writes the same bytes, UIDs included. Needs the extra ``dicom``.
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
from monai_ext.data.images import atomic_path
from monai_ext.data.phantoms.chest import cord_outline, scan_chest

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


def write_seg(
    path: str | os.PathLike[str],
    series_files: Sequence[str | os.PathLike[str]],
    masks: Mapping[str, ArrayLike],
    *,
    fractional: bool = False,
    series_description: str = "Segmentation",
    omit_empty_frames: bool = True,
) -> Path:
    """Write a DICOM SEG of a series.

    Args:
        path: file to write.
        series_files: the series that was segmented, in the order of Z (as :func:`write_ct_series` returns them).
        masks: by segment label, [X, Y, Z] in the series' own grid.
        fractional: store probabilities (0 and 1) instead of bits.
        series_description: SeriesDescription.
        omit_empty_frames: leave out the frames of slices where a segment is not.

    Returns:
        ``path``.
    """
    require_extra()
    import highdicom as hd
    from pydicom.sr.codedict import codes

    images = [read_dataset(file) for file in series_files]
    series_uid = make_uid("seg", images[0].SeriesInstanceUID, series_description)
    algorithm = hd.AlgorithmIdentificationSequence("phantom", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        hd.seg.SegmentDescription(
            number,
            name,
            codes.SCT.Tissue,
            codes.SCT.Tissue,
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm,
        )
        for number, name in enumerate(masks, start=1)
    ]
    pixels = np.stack([np.asarray(mask).astype(bool).transpose(2, 1, 0) for mask in masks.values()], axis=-1)
    seg = hd.seg.Segmentation(
        images,
        pixels.astype(np.float32) if fractional else pixels.astype(np.uint8),
        hd.seg.SegmentationTypeValues.FRACTIONAL if fractional else hd.seg.SegmentationTypeValues.BINARY,
        segments,
        series_instance_uid=series_uid,
        series_number=300,
        sop_instance_uid=make_uid("instance", series_uid),
        instance_number=1,
        manufacturer="phantom",
        manufacturer_model_name="phantom",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=omit_empty_frames,
        series_description=series_description,
    )
    with atomic_path(path) as temporary:
        seg.save_as(temporary)
    return Path(path)


# The 4D-Lung that never was


def write_phantom_4d_lung(
    root: str | os.PathLike[str], seed: int = 0, *, visits: int = 2, gates: Sequence[int] = (0, 50)
) -> Path:
    """Write one patient of a 4D-Lung that never was: CT series of breathing gates, each with its RTSTRUCT.

    Seeds are different patients, in number and UIDs: 0 is 100_HM10395, 1 is 101_HM10396.

    Folders are named as TCIA names them, ``<root>/100_HM10395/<MM-DD-YYYY>-NA-p4-<n>/<series>/1-01.dcm``, and the
    second visit is in the next year, so that folder names sort against time (as those of one real patient do). The
    tumour (ROI ``Tumor_c<gate>``) moves with the breath, drifts and grows from visit to visit; ``Cord_c<gate>`` is
    contoured too. ROIs are stored in another order than their contours. 96 x 96 x 16 voxels of 3.7 x 3.7 x 6 mm.

    Args:
        root: where to; made where it is missing.
        seed: of the patient, of noise and texture; 0 or more.
        visits: 1 to 4.
        gates: percent of the breathing cycle.

    Returns:
        ``root``.
    """
    rng, patient = np.random.default_rng([seed, 3]), f"{100 + seed}_HM{10395 + seed}"
    for visit in range(visits):
        date = _FIRST_DATE + datetime.timedelta(days=36 * visit)
        study = Path(root) / patient / f"{date:%m-%d-%Y}-NA-p4-{14571 + 997 * visit}"
        for number, gate in enumerate(gates):
            _write_gate(study, date, visit, gate, 100 * number, seed, rng)
    return Path(root)


def _write_gate(
    study: Path, date: datetime.date, visit: int, gate: int, number: int, seed: int, rng: np.random.Generator
) -> None:
    scan = scan_chest(seed, visit, gate, rng)
    name = f"P4P100S30{visit}I{3 + gate // 10:05d} Gated {gate}.0A"
    description = f"P4^P100^S30{visit}^I{3 + gate // 10:05d}, Gated, {gate}.0%A"
    files = write_ct_series(
        study / f"1.000000-{name}-{29193 + number}",
        scan.image,
        scan.affine,
        patient_id=study.parent.name,
        study_date=date,
        series_description=description,
        reverse=visit % 2 == 1,
    )
    heights = scan.affine[2, 3] + scan.affine[2, 2] * np.arange(scan.image.shape[2])
    drawn = [outline for h in heights if (outline := scan.tumour.contour(float(h))) is not None]
    cord = [cord_outline(float(h)) for h in heights]
    write_rtstruct(
        study / f"1.000000-{name}-423.{number // 100 + 1}" / "1-1.dcm",
        files,
        {f"Cord_c{gate:02d}": cord, f"Tumor_c{gate:02d}": drawn},
        shuffle=True,
        series_description=description,
    )


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
