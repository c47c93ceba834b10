"""DICOM SEG to masks: every frame goes where its own header says.

A frame is placed by its position, orientation and spacing, and checked against the slice that it names; without
positions it goes to the slice that it names. A frame that says neither is refused: there is no default slice. Frames
that are absent are slices where the segment is not. Two segments of one number are refused.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.geometry import LPS_TO_RAS, series_affine, sorted_slices
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.reading import naming_damage, read_dataset
from monai_ext.errors import UserError
from monai_ext.files import PathLike

if TYPE_CHECKING:
    from pydicom import Dataset

GRID_TOLERANCE = 0.05  # voxels that a frame's pixel centre may lie from a voxel's centre
_STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segmentation, label map segmentation


@dataclass(frozen=True)
class Frame:
    """What one frame says about itself.

    Args:
        segment: the segment's number; None in a label map, whose values are the numbers.
        affine: [4, 4], (column, row, 0) to RAS+ mm; None where it does not say.
        image_uids: SOPInstanceUIDs of the slices it was made from.
    """

    segment: int | None
    affine: NDArray[np.float64] | None
    image_uids: frozenset[str]


@dataclass(frozen=True)
class Segmentation:
    """A DICOM SEG file; the pixels are read when :func:`segment_mask` needs them.

    Args:
        path: the file.
        patient_id: PatientID.
        study_uid: StudyInstanceUID.
        frame_of_reference_uid: FrameOfReferenceUID, "" where there is none.
        references: SeriesInstanceUIDs of the segmented series, each with the SOPInstanceUIDs listed for it.
        segments: SegmentLabel by number.
        descriptions: SegmentDescription by number, "" where there is none.
        frames: in the order of the pixels.
        size: columns and rows of a frame.
        source_uids: SOPInstanceUIDs of the slices that the file as a whole was made from.
        notes: what was passed over, in sentences.
    """

    path: Path
    patient_id: str
    study_uid: str
    frame_of_reference_uid: str
    references: Mapping[str, frozenset[str]]
    segments: Mapping[int, str]
    descriptions: Mapping[int, str]
    frames: tuple[Frame, ...]
    size: tuple[int, int]
    source_uids: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def referenced_series(self) -> tuple[str, ...]:
        """SeriesInstanceUIDs of the segmented series."""
        return tuple(self.references)

    def find(self, pattern: str) -> list[int]:
        """Return the numbers of the segments whose label or description ``pattern`` finds.

        Args:
            pattern: a regular expression, case ignored. Converters put the name of the contoured structure into
                either: the label may be "Neoplasm, Primary" and the description "GTV-1".
        """
        return [
            number
            for number, label in self.segments.items()
            if any(re.search(pattern, text, re.IGNORECASE) for text in (label, self.descriptions[number]))
        ]

    def frames_of(self, number: int) -> list[Frame]:
        """Return the frames of a segment; in a label map, all of them."""
        return self._by_segment.get(number, []) + self._by_segment.get(None, [])

    @cached_property
    def _by_segment(self) -> dict[int | None, list[Frame]]:
        by_segment: dict[int | None, list[Frame]] = {}
        for frame in self.frames:
            by_segment.setdefault(frame.segment, []).append(frame)
        return by_segment


def read_segmentation(path: PathLike) -> Segmentation:
    """Read the header of a DICOM SEG.

    Raises:
        UserError: the file is damaged or no SEG.
    """
    path, dataset = Path(path), read_dataset(path, pixels=False)
    with naming_damage(path):
        if dataset.get("SOPClassUID") not in _STORAGE:
            raise UserError(f"{path}: holds {dataset.get('Modality', 'no modality')}, not SEG; name the SEG file")
        segments = _segments(path, dataset)
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
        frames = tuple(_frame(groups, shared) for groups in dataset.PerFrameFunctionalGroupsSequence)
        return Segmentation(
            path=path,
            patient_id=str(dataset.get("PatientID") or ""),
            study_uid=str(dataset.get("StudyInstanceUID") or ""),
            frame_of_reference_uid=str(dataset.get("FrameOfReferenceUID") or ""),
            references=_references(dataset),
            segments={number: str(item.get("SegmentLabel") or "") for number, item in segments.items()},
            descriptions={number: str(item.get("SegmentDescription") or "") for number, item in segments.items()},
            frames=frames,
            size=(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)),
            source_uids=_uids(dataset.get("SourceImageSequence")),
            notes=tuple(_nameless(segments, frames)),
        )


def segment_mask(segmentation: Segmentation, number: int, series: SeriesHeaders) -> NDArray[np.bool_]:
    """Place one segment on the grid of a series.

    Args:
        segmentation: of :func:`read_segmentation`.
        number: the segment's number.
        series: whose volume the mask is for; free of problems.

    Returns:
        bool [X, Y, Z] on the grid of :func:`~monai_ext.data.dicom.series.read_volume`. A segment on a grid of its
        own (cropped, turned, on some of the slices) is placed by its positions, voxel on voxel. Probabilities
        (FRACTIONAL) belong to the segment from one half on.

    Raises:
        UserError: a frame says neither position nor slice, its slice is not in the series, position and slice
            contradict each other, or its grid does not fall on the series' voxels.
    """
    grid = _Grid(series)
    mask = np.zeros(grid.shape, dtype=bool, order="F")
    planes = _planes(segmentation, number)
    for index, plane in planes.items():
        frame = segmentation.frames[index]
        if not plane.any():
            continue
        try:
            grid.place(plane, frame, mask)
        except ValueError as error:
            label = segmentation.segments.get(number, "")
            sentence = f"{segmentation.path}: frame {index + 1} of segment {label!r} {error}"
            raise UserError(sentence) from error
    return mask


def lies_on(segmentation: Segmentation, number: int, series: SeriesHeaders) -> bool:
    """Tell whether the pixels of all frames of a segment that say where they are fall on voxels of a series.

    Args:
        segmentation: of :func:`read_segmentation`.
        number: the segment's number.
        series: free of problems.
    """
    columns, rows = segmentation.size
    corners = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    grid = _Grid(series)
    affines = [frame.affine for frame in segmentation.frames_of(number) if frame.affine is not None]
    return all(grid.holds(affine @ corners) for affine in affines)


class _Grid:
    """The voxels of a series, and where a frame's pixels fall among them."""

    def __init__(self, series: SeriesHeaders) -> None:
        slices = sorted_slices(series)
        self.shape = (slices[0].columns, slices[0].rows, len(slices))
        self.to_voxels = np.linalg.inv(series_affine(slices))
        self.slices: defaultdict[str, list[int]] = defaultdict(list)
        for k, header in enumerate(slices):
            self.slices[header.sop_instance_uid].append(k)

    def holds(self, points: NDArray[np.float64]) -> bool:
        """Tell whether points [4, N] in RAS+ mm are centres of voxels."""
        exact = (self.to_voxels @ points)[:3]
        voxels = np.rint(exact)
        inside = (voxels >= 0).all() and (voxels < np.array(self.shape)[:, None]).all()
        return bool(inside and np.abs(exact - voxels).max() <= GRID_TOLERANCE)

    def place(self, plane: NDArray[np.bool_], frame: Frame, mask: NDArray[np.bool_]) -> None:
        """Set the voxels of ``mask`` on which the pixels [rows, columns] of ``plane`` fall."""
        named = [k for uid in frame.image_uids for k in self.slices.get(uid, ())]
        if frame.affine is None:
            self._place_by_name(plane, frame, named, mask)
            return
        rows, columns = np.nonzero(plane)
        pixels = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)])
        exact = (self.to_voxels @ frame.affine @ pixels)[:3]
        voxels = np.rint(exact).astype(np.int64)
        off = float(np.abs(exact - voxels).max())
        if off > GRID_TOLERANCE:
            raise ValueError(
                f"does not fall on the series' voxels (pixels lie up to {off:.2f} voxels beside them); "
                "it belongs to another series or grid: export it on this series' grid"
            )
        if (voxels < 0).any() or (voxels >= np.array(self.shape)[:, None]).any():
            raise ValueError("lies outside the series' slices; slices are missing or it belongs to another series")
        if named and not any(voxels[2].min() - 1 < k < voxels[2].max() + 1 for k in named):
            raise ValueError("names one slice and lies on another one; export the SEG again")
        mask[tuple(voxels)] = True

    def _place_by_name(self, plane: NDArray[np.bool_], frame: Frame, named: list[int], mask: NDArray[np.bool_]) -> None:
        if not frame.image_uids:
            raise ValueError("says neither its position nor its slice; export the SEG again with either")
        if len(named) != 1:
            raise ValueError(
                f"has no position and names {len(frame.image_uids)} slices, {len(named)} of them of this series; "
                "one is needed: slices are missing or it belongs to another series"
            )
        if plane.shape != (self.shape[1], self.shape[0]):
            raise ValueError("has no position and another size than the slice it names; export the SEG again")
        mask[:, :, named[0]] |= plane.T


# Reading


def _group(groups: Dataset, shared: Dataset | None, keyword: str) -> Dataset | None:
    """Return the item of a functional group, the frame's own or the shared one."""
    for holder in (groups, shared):
        sequence = None if holder is None else holder.get(keyword)
        if sequence:
            return sequence[0]
    return None


def _segments(path: Path, dataset: Dataset) -> dict[int, Dataset]:
    """Return the items of SegmentSequence by number, which has to be their own."""
    numbers = Counter(int(item.SegmentNumber) for item in dataset.SegmentSequence)
    for number, count in numbers.items():
        if count > 1:
            raise UserError(
                f"{path}: {count} segments share the SegmentNumber {number}, so that it is open whose frames are "
                "whose; give each segment a number of its own"
            )
    return {int(item.SegmentNumber): item for item in dataset.SegmentSequence}


def _nameless(segments: Mapping[int, Dataset], frames: Sequence[Frame]) -> list[str]:
    numbers = sorted({frame.segment for frame in frames if frame.segment is not None} - segments.keys())
    return [f"frames of segment {number}, which SegmentSequence does not name, are passed over" for number in numbers]


def _references(dataset: Dataset) -> dict[str, frozenset[str]]:
    """SOPInstanceUIDs listed for each series that a SEG names."""
    found: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
    for series in dataset.get("ReferencedSeriesSequence") or ():
        if uid := str(series.get("SeriesInstanceUID") or ""):
            found[uid] |= _uids(series.get("ReferencedInstanceSequence"))
    return dict(found)


def _uids(images: Sequence[Dataset] | None) -> frozenset[str]:
    return frozenset(str(image.get("ReferencedSOPInstanceUID") or "") for image in images or ()) - {""}


def _frame(groups: Dataset, shared: Dataset | None) -> Frame:
    identification = _group(groups, shared, "SegmentIdentificationSequence")
    return Frame(
        segment=None if identification is None else int(identification.ReferencedSegmentNumber),
        affine=_frame_affine(groups, shared),
        image_uids=_sources(groups) or _sources(shared),
    )


def _sources(groups: Dataset | None) -> frozenset[str]:
    """SOPInstanceUIDs of the slices that functional groups name as a frame's source."""
    derivations = (None if groups is None else groups.get("DerivationImageSequence")) or ()
    return frozenset[str]().union(*(_uids(derivation.get("SourceImageSequence")) for derivation in derivations))


def _frame_affine(groups: Dataset, shared: Dataset | None) -> NDArray[np.float64] | None:
    found = [
        _vector(_group(groups, shared, sequence), keyword)
        for sequence, keyword in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ("PixelMeasuresSequence", "PixelSpacing"),
        )
    ]
    position, orientation, spacing = found
    if position is None or orientation is None or spacing is None:
        return None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = orientation[:3] * spacing[1], orientation[3:] * spacing[0]
    affine[:3, 2] = np.cross(orientation[:3], orientation[3:])
    affine[:3, 3] = position
    return LPS_TO_RAS @ affine


def _vector(item: Dataset | None, keyword: str) -> NDArray[np.float64] | None:
    value = None if item is None else item.get(keyword)
    if not value:
        return None
    vector = np.array([float(x) for x in value])
    if not np.isfinite(vector).all():
        raise ValueError(f"{keyword} is not finite")
    return vector


def _planes(segmentation: Segmentation, number: int) -> dict[int, NDArray[np.bool_]]:
    """Read the pixels [rows, columns] of one segment, by the index of the frame."""
    dataset = read_dataset(segmentation.path)
    with naming_damage(segmentation.path):
        pixels: NDArray[Any] = np.asarray(dataset.pixel_array)
        kind = dataset.get("SegmentationType")
        highest = float(dataset.get("MaximumFractionalValue") or 1) if kind == "FRACTIONAL" else 1.0
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if len(pixels) != len(segmentation.frames):
        count = f"{len(pixels)} frames of pixels and {len(segmentation.frames)} frame headers"
        raise UserError(f"{segmentation.path}: holds {count}; copy or download it again")
    if kind == "LABELMAP":
        return {index: plane == number for index, plane in enumerate(pixels)}
    own = [index for index, frame in enumerate(segmentation.frames) if frame.segment == number]
    return {index: pixels[index] >= highest / 2 for index in own}
