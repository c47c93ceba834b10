"""RTSTRUCT files: regions of interest, their outlines, and the images that they say they were drawn on.

Contours are found by ROINumber. Where two ROIs share a number it is open whose contours are whose: they are marked,
and nobody is served the contours of another structure.
"""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.reading import naming_damage, read_dataset
from monai_ext.data.dicom.series import parse_date
from monai_ext.errors import UserError
from monai_ext.files import PathLike

if TYPE_CHECKING:
    from pydicom import Dataset

Points = NDArray[np.float64]

_CONTOUR_DATA = 0x30060050


@dataclass(frozen=True)
class Contour:
    """One outline.

    Args:
        points: [N, 3], LPS+ mm.
        kind: ContourGeometricType, such as "CLOSED_PLANAR" or "POINT".
        image_uids: SOPInstanceUIDs of the slices it was drawn on; empty where the file does not say.
    """

    points: Points
    kind: str = "CLOSED_PLANAR"
    image_uids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Roi:
    """A region of interest.

    Args:
        number: ROINumber, by which contours are found: they are stored in an order of their own.
        name: ROIName.
        contours: its outlines; None where they have not been read.
        frame_of_reference_uid: the frame that its points are in; "" where it does not say.
        problem: why the contours cannot be used, in a sentence without its subject; "" where they can.
    """

    number: int
    name: str
    contours: tuple[Contour, ...] | None
    frame_of_reference_uid: str = ""
    problem: str = ""


@dataclass(frozen=True)
class StructureSet:
    """An RTSTRUCT file.

    Args:
        path: the file.
        patient_id: PatientID.
        study_uid: StudyInstanceUID.
        study_date: StudyDate, else StructureSetDate.
        series_description: SeriesDescription.
        frame_of_reference_uid: the frame that all its points are in; "" where it does not say, or names several.
        references: SeriesInstanceUIDs of the contoured series, each with the SOPInstanceUIDs listed for it.
        rois: in the order of StructureSetROISequence.
        notes: what was passed over, in sentences.
    """

    path: Path
    patient_id: str
    study_uid: str
    study_date: datetime.date | None
    series_description: str
    frame_of_reference_uid: str
    references: Mapping[str, frozenset[str]]
    rois: tuple[Roi, ...]
    notes: tuple[str, ...] = ()

    @property
    def referenced_series(self) -> tuple[str, ...]:
        """SeriesInstanceUIDs of the contoured series."""
        return tuple(self.references)

    def find(self, pattern: str) -> tuple[Roi, ...]:
        """Return the ROIs with contours whose name ``pattern`` finds (a regular expression, case ignored)."""
        return tuple(roi for roi in self.rois if re.search(pattern, roi.name, re.IGNORECASE) and roi.contours)

    def find_empty(self, pattern: str) -> tuple[str, ...]:
        """Return the names of the ROIs without contours that ``pattern`` finds."""
        names = (roi.name for roi in self.rois if roi.contours == ())
        return tuple(name for name in names if re.search(pattern, name, re.IGNORECASE))


def read_structures(path: PathLike, pattern: str = "") -> StructureSet:
    """Read an RTSTRUCT.

    Args:
        path: the file.
        pattern: read the contours of the ROIs whose name it finds (a regular expression, case ignored) only.

    Raises:
        UserError: the file is damaged or no RTSTRUCT.
    """
    path, dataset = Path(path), read_dataset(path)
    with naming_damage(path):
        if dataset.get("Modality") != "RTSTRUCT":
            kind = dataset.get("Modality", "no modality")
            raise UserError(f"{path}: holds {kind}, not RTSTRUCT; name the RTSTRUCT file")
        described, drawn = _by_number(dataset)
        date = parse_date(str(dataset.get("StudyDate") or "")) or parse_date(str(dataset.get("StructureSetDate") or ""))
        return StructureSet(
            path=path,
            patient_id=str(dataset.get("PatientID") or ""),
            study_uid=str(dataset.get("StudyInstanceUID") or ""),
            study_date=date,
            series_description=str(dataset.get("SeriesDescription") or ""),
            frame_of_reference_uid=_common_frame(dataset),
            references=_references(dataset),
            rois=tuple(_rois(described, drawn, pattern)),
            notes=tuple(_nameless(described, drawn)),
        )


# Elements


def _by_number(dataset: Dataset) -> tuple[dict[int, list[Dataset]], dict[int, list[Dataset]]]:
    """Sort ROIs and their contours by the number that should join them."""
    described: defaultdict[int, list[Dataset]] = defaultdict(list)
    drawn: defaultdict[int, list[Dataset]] = defaultdict(list)
    for item in dataset.get("StructureSetROISequence") or ():
        described[int(item.ROINumber)].append(item)
    for item in dataset.get("ROIContourSequence") or ():
        drawn[int(item.ReferencedROINumber)].append(item)
    return dict(described), dict(drawn)


def _rois(described: dict[int, list[Dataset]], drawn: dict[int, list[Dataset]], pattern: str) -> list[Roi]:
    """Return one ROI a number and name; all contours of a number belong to it."""
    rois = []
    for number, items in described.items():
        by_name: dict[str, Dataset] = {}
        for item in items:
            by_name.setdefault(str(item.get("ROIName") or ""), item)
        for name, item in by_name.items():
            wanted = re.search(pattern, name, re.IGNORECASE) is not None
            contours = tuple(map(_contour, _contour_items(drawn.get(number, ())))) if wanted else None
            frame = str(item.get("ReferencedFrameOfReferenceUID") or "")
            others = [other for other in by_name if other != name]
            rois.append(Roi(number, name, contours, frame, _shared_number(number, others) if others else ""))
    return rois


def _shared_number(number: int, others: Sequence[str]) -> str:
    listed = " and ".join(map(repr, others))
    return (
        f"shares the ROINumber {number} with {listed}, so that it is open whose contours are whose; "
        "give each ROI a number of its own"
    )


def _nameless(described: dict[int, list[Dataset]], drawn: dict[int, list[Dataset]]) -> list[str]:
    numbers = [number for number, items in drawn.items() if number not in described and any(_contour_items(items))]
    return [
        f"contours of the ROINumber {number}, which StructureSetROISequence does not name, are passed over"
        for number in numbers
    ]


def _contour_items(items: Sequence[Dataset]) -> list[Dataset]:
    return [contour for item in items for contour in item.get("ContourSequence") or ()]


def _contour(item: Dataset) -> Contour:
    images = item.get("ContourImageSequence") or ()
    uids = {str(image.get("ReferencedSOPInstanceUID") or "") for image in images}
    return Contour(_points(item), str(item.get("ContourGeometricType") or ""), frozenset(uids - {""}))


def _points(item: Dataset) -> Points:
    """Read ContourData past pydicom's decimal strings: a hundred times faster."""
    element = item.get_item(_CONTOUR_DATA)
    if element is None or element.value is None:
        return np.empty((0, 3))
    value: Any = element.value
    numbers = value.decode("ascii").replace("\0", " ").split("\\") if isinstance(value, bytes) else value
    numbers = [] if numbers == [""] else numbers
    points = np.array(numbers, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("contour points that are not finite")
    return points


def _common_frame(dataset: Dataset) -> str:
    """The one frame of reference that a structure set names, "" where it names none or several."""
    sequences = (
        ("ReferencedFrameOfReferenceSequence", "FrameOfReferenceUID"),
        ("StructureSetROISequence", "ReferencedFrameOfReferenceUID"),
    )
    frames = {str(item.get(uid) or "") for sequence, uid in sequences for item in dataset.get(sequence) or ()} - {""}
    return frames.pop() if len(frames) == 1 else ""


def _references(dataset: Dataset) -> dict[str, frozenset[str]]:
    """SOPInstanceUIDs listed for each series that a structure set names."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                images = series.get("ContourImageSequence") or ()
                found[str(series.get("SeriesInstanceUID") or "")].update(
                    str(image.get("ReferencedSOPInstanceUID") or "") for image in images
                )
    return {uid: frozenset(images - {""}) for uid, images in found.items() if uid}
