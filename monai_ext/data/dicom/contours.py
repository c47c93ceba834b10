"""RTSTRUCT to masks: outlines in patient millimetres become voxels of a volume.

The rule: a voxel belongs to the structure when its centre lies inside the outlines, by even-odd over all outlines
of its slice, so that an outline in another one is a hole, and a keyhole outline too. A centre that lies exactly on
an outline belongs to the structure on the side of lower row or column only. Nothing is truncated to whole pixels.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.geometry import LPS_TO_RAS
from monai_ext.data.dicom.reading import naming_damage, read_dataset
from monai_ext.data.dicom.series import parse_date
from monai_ext.data.images import PathLike
from monai_ext.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

Points = NDArray[np.float64]

CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "")
_CONTOUR_DATA = 0x30060050
_DECIMALS = 4  # of a voxel: what decimal strings leave of exact coordinates is noise below


@dataclass(frozen=True)
class Contour:
    """One outline.

    Args:
        points: [N, 3], LPS+ mm.
        kind: ContourGeometricType, such as "CLOSED_PLANAR" or "POINT".
        image_uid: SOPInstanceUID of the slice it was drawn on; "" where the file does not say.
    """

    points: Points
    kind: str = "CLOSED_PLANAR"
    image_uid: str = ""


@dataclass(frozen=True)
class Roi:
    """A region of interest.

    Args:
        number: ROINumber, by which contours are found: they are stored in an order of their own.
        name: ROIName.
        contours: its outlines; None where they have not been read.
    """

    number: int
    name: str
    contours: tuple[Contour, ...] | None


@dataclass(frozen=True)
class StructureSet:
    """An RTSTRUCT file.

    Args:
        path: the file.
        patient_id: PatientID.
        study_uid: StudyInstanceUID.
        study_date: StudyDate, else StructureSetDate.
        series_description: SeriesDescription.
        frame_of_reference_uid: the frame that its points are in; "" where it does not say.
        referenced_series: SeriesInstanceUIDs of the contoured series.
        rois: in the order of StructureSetROISequence.
    """

    path: Path
    patient_id: str
    study_uid: str
    study_date: datetime.date | None
    series_description: str
    frame_of_reference_uid: str
    referenced_series: tuple[str, ...]
    rois: tuple[Roi, ...]

    def find(self, pattern: str) -> tuple[Roi, ...]:
        """Return the ROIs with contours whose name ``pattern`` finds (a regular expression, case ignored)."""
        return tuple(roi for roi in self.rois if re.search(pattern, roi.name, re.IGNORECASE) and roi.contours)


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
        drawn = {int(item.ReferencedROINumber): item for item in dataset.get("ROIContourSequence") or ()}
        frames, series = _references(dataset)
        date = parse_date(str(dataset.get("StudyDate") or "")) or parse_date(str(dataset.get("StructureSetDate") or ""))
        return StructureSet(
            path=path,
            patient_id=str(dataset.get("PatientID") or ""),
            study_uid=str(dataset.get("StudyInstanceUID") or ""),
            study_date=date,
            series_description=str(dataset.get("SeriesDescription") or ""),
            frame_of_reference_uid=frames[0] if len(set(frames)) == 1 else "",
            referenced_series=tuple(dict.fromkeys(series)),
            rois=tuple(_roi(item, drawn, pattern) for item in dataset.get("StructureSetROISequence") or ()),
        )


def contour_mask(
    contours: Iterable[Contour], shape: Sequence[int], affine: NDArray[Any]
) -> tuple[NDArray[np.bool_], list[str]]:
    """Fill the outlines of one structure on the grid of a volume.

    Outlines go to the nearest slice; where outlines of several planes have the same nearest slice (they were drawn
    on thinner slices), the nearest plane is taken.

    Args:
        contours: outlines in LPS+ mm. What is not closed (POINT, OPEN_PLANAR) and exact copies are passed over.
        shape: (X, Y, Z) of the volume.
        affine: [4, 4], voxel indices to RAS+ mm.

    Returns:
        bool [X, Y, Z], and what was passed over, in sentences.

    Raises:
        UserError: an outline lies outside the slices (by more than half their distance) or across them.
    """
    to_voxels = np.linalg.inv(LPS_TO_RAS @ np.asarray(affine, dtype=np.float64))
    closed, notes = _closed(contours)
    planes: dict[int, dict[float, list[Points]]] = {}
    for contour in closed:
        voxels = contour.points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        height = _height(voxels, shape[2], affine)
        planes.setdefault(int(np.floor(height + 0.5)), {}).setdefault(height, []).append(voxels[:, :2])
    mask = np.zeros(tuple(shape), dtype=bool, order="F")
    crowded = 0
    for k, heights in planes.items():
        nearest = min(heights, key=lambda height, k=k: (abs(height - k), height))  # type: ignore[misc]
        crowded += len(heights) > 1
        mask[:, :, k] = fill_polygons(heights[nearest], (shape[0], shape[1]))
    if crowded:
        notes.append(f"on {crowded} slices lie outlines of several planes; the nearest plane was taken")
    if gaps := _gaps(planes):
        notes.append(f"{gaps} slices between outlined ones have no outline; they stay empty")
    return mask, notes


def fill_polygons(polygons: Sequence[NDArray[Any]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill polygons by even-odd: pixels whose centres lie inside an odd number of them.

    Along each line of pixels the crossings with all edges are found; a pixel is inside when an odd number of
    crossings lies at or before its centre. An edge counts for the lines from its lower end on up to, but without,
    its upper end.

    Args:
        polygons: each [N, 2], vertices (x, y) in pixels: pixel (0, 0) has its centre at (0, 0). Closed implicitly.
        shape: (X, Y).

    Returns:
        bool [X, Y].
    """
    width, height = shape
    edges = [np.stack([polygon, np.roll(polygon, -1, axis=0)], axis=1) for polygon in polygons if len(polygon) >= 3]
    if not edges:
        return np.zeros(shape, dtype=bool)
    ends = np.round(np.concatenate(edges).astype(np.float64), _DECIMALS)  # [E, 2 ends, 2]
    upwards = ends[:, 0, 1] <= ends[:, 1, 1]
    ends = np.where(upwards[:, None, None], ends, ends[:, ::-1])  # so that an edge and its way back agree
    (x0, y0), (x1, y1) = ends[:, 0].T, ends[:, 1].T
    first = np.clip(np.ceil(y0), 0, height).astype(np.int64)
    count = np.clip(np.ceil(y1), 0, height).astype(np.int64) - first
    edge = np.repeat(np.arange(len(first)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    crossing = np.round(x0[edge] + (row - y0[edge]) * slope, _DECIMALS)
    column = np.clip(np.ceil(crossing), 0, width).astype(np.int64)
    mask = np.zeros(shape, dtype=bool)
    if not len(row):
        return mask
    left, top = int(column.min()), int(row.min())
    box = (int(column.max()) - left + 1, int(row.max()) - top + 1)
    toggles = np.bincount((column - left) * box[1] + row - top, minlength=box[0] * box[1]).reshape(box)
    inside = np.cumsum(toggles, axis=0) % 2 == 1  # no longer inside at the last crossing
    mask[left : left + box[0] - 1, top : top + box[1]] = inside[:-1]
    return mask


# Reading


def _roi(item: Dataset, drawn: dict[int, Dataset], pattern: str) -> Roi:
    number, name = int(item.ROINumber), str(item.get("ROIName") or "")
    if not re.search(pattern, name, re.IGNORECASE):
        return Roi(number, name, None)
    sequence = drawn[number].get("ContourSequence") if number in drawn else None
    return Roi(number, name, tuple(_contour(contour) for contour in sequence or ()))


def _contour(item: Dataset) -> Contour:
    images = item.get("ContourImageSequence") or ()
    return Contour(
        _points(item),
        str(item.get("ContourGeometricType") or ""),
        str(images[0].get("ReferencedSOPInstanceUID") or "") if images else "",
    )


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


def _references(dataset: Dataset) -> tuple[list[str], list[str]]:
    """UIDs of the frames of reference and of the series that a structure set names."""
    frames, series = [], []
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        frames.append(str(frame.get("FrameOfReferenceUID") or ""))
        for study in frame.get("RTReferencedStudySequence") or ():
            for item in study.get("RTReferencedSeriesSequence") or ():
                series.append(str(item.get("SeriesInstanceUID") or ""))
    for roi in dataset.get("StructureSetROISequence") or ():
        frames.append(str(roi.get("ReferencedFrameOfReferenceUID") or ""))
    return [uid for uid in frames if uid], [uid for uid in series if uid]


# Filling


def _closed(contours: Iterable[Contour]) -> tuple[list[Contour], list[str]]:
    """Sort out what has no inside, and copies, which even-odd would make holes of."""
    kept: dict[bytes, Contour] = {}
    open_kinds, copies = [], 0
    for contour in contours:
        if contour.kind not in CLOSED_TYPES or len(contour.points) < 3:
            open_kinds.append(contour.kind if contour.kind not in CLOSED_TYPES else "outlines of less than 3 points")
            continue
        key = np.round(contour.points, 3).tobytes()
        copies += key in kept
        kept.setdefault(key, contour)
    notes = []
    if open_kinds:
        kinds = ", ".join(sorted(set(open_kinds)))
        notes.append(f"{len(open_kinds)} contours without an inside were passed over ({kinds})")
    if copies:
        notes.append(f"{copies} copies of outlines were passed over")
    return list(kept.values()), notes


def _height(voxels: Points, depth: int, affine: NDArray[Any]) -> float:
    """The slice coordinate of an outline, checked to lie in one plane and within half a spacing of a slice."""
    low, high = float(voxels[:, 2].min()), float(voxels[:, 2].max())
    spacing = float(np.linalg.norm(np.asarray(affine)[:3, 2]))
    if high - low > 0.5:
        raise UserError(
            f"an outline is drawn across slices (over {(high - low) * spacing:.1f} mm along their normal); "
            "export the contours on the slices of this series"
        )
    height = float(np.round((low + high) / 2, _DECIMALS))
    if not -0.5 <= height < depth - 0.5:
        away = max(-height, height - (depth - 1)) * spacing
        raise UserError(
            f"an outline lies {away:.1f} mm outside the {depth} slices, which are {spacing:.1f} mm apart; "
            "the contours belong to another series or slices are missing"
        )
    return height


def _gaps(slices: Iterable[int]) -> int:
    ordered = sorted(slices)
    return ordered[-1] - ordered[0] + 1 - len(ordered) if ordered else 0
