"""One structure that somebody drew: a ROI of an RTSTRUCT or a segment of a SEG, and how it becomes a mask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.contours import SAME_PLANE, closed_contours, contour_heights, contour_mask
from monai_ext.data.dicom.geometry import find_problems, series_affine, sorted_slices
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.rtstruct_reader import Roi, StructureSet
from monai_ext.data.dicom.segmentation import Segmentation, lies_on, segment_mask
from monai_ext.errors import UserError


@dataclass(frozen=True)
class Outlines:
    """One ROI of an RTSTRUCT, its contours read."""

    file: StructureSet
    roi: Roi

    kind = "RTSTRUCT"

    @property
    def name(self) -> str:
        """ROIName."""
        return self.roi.name

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is called."""
        return (self.roi.name,)

    @property
    def number(self) -> int:
        """ROINumber."""
        return self.roi.number

    @property
    def where(self) -> str:
        """How messages call it: the file and the name."""
        return f"{self.file.path}: ROI {self.name!r}"

    @property
    def problem(self) -> str:
        """Why it cannot be used, in a sentence without its subject; "" where it can."""
        return self.roi.problem

    @property
    def frame_of_reference_uid(self) -> str:
        """The frame that its points are in; "" where the file does not say."""
        return self.roi.frame_of_reference_uid or self.file.frame_of_reference_uid

    @property
    def named_slices(self) -> list[frozenset[str]]:
        """SOPInstanceUIDs that each closed contour names; contours that name none are left out."""
        return [contour.image_uids for contour in closed_contours(self.roi.contours or ()) if contour.image_uids]

    def lies_on(self, series: SeriesHeaders) -> bool:
        """Tell whether all contours lie in planes of slices of a series, which is free of problems."""
        affine, shape = grid_of(series)
        heights = np.array([contour_heights(contour, affine) for contour in closed_contours(self.roi.contours or ())])
        slices = np.rint(heights)
        inside = (slices >= 0).all() and (slices < shape[2]).all()
        return bool(inside and (np.abs(heights - slices) <= SAME_PLANE).all())

    def draw(self, series: SeriesHeaders) -> tuple[NDArray[np.bool_], list[str]]:
        """Return the mask [X, Y, Z] on the grid of a series, and what was passed over.

        Raises:
            UserError: contours do not fit the series.
        """
        affine, shape = grid_of(series)
        try:
            mask, notes = contour_mask(self.roi.contours or (), shape, affine)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from error
        return mask, [*notes, *_absent_slices(self.named_slices, series, "contours"), *self._other_slices(series)]

    def _other_slices(self, series: SeriesHeaders) -> list[str]:
        """Say that contours lie on other slices of the series than they name."""
        affine, _ = grid_of(series)
        slices = {header.sop_instance_uid: k for k, header in enumerate(sorted_slices(series))}
        away = 0
        for contour in closed_contours(self.roi.contours or ()):
            named = [slices[uid] for uid in contour.image_uids if uid in slices]
            low, high = contour_heights(contour, affine)
            away += bool(named) and not any(low - 1 < k < high + 1 for k in named)
        note = f"{away} contours lie on other slices than they name; they are where their coordinates say"
        return [note] if away else []


@dataclass(frozen=True)
class Segment:
    """One segment of a SEG."""

    file: Segmentation
    number: int

    kind = "SEG"
    problem = ""

    @property
    def name(self) -> str:
        """SegmentLabel, or SegmentDescription where there is none."""
        return self.file.segments[self.number] or self.file.descriptions[self.number]

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is called: the label may be "Neoplasm" and the description "GTV-1"."""
        return self.file.segments[self.number], self.file.descriptions[self.number]

    @property
    def where(self) -> str:
        """How messages call it: the file and the name."""
        return f"{self.file.path}: segment {self.name!r}"

    @property
    def frame_of_reference_uid(self) -> str:
        """The frame that its positions are in; "" where the file does not say."""
        return self.file.frame_of_reference_uid

    @property
    def named_slices(self) -> list[frozenset[str]]:
        """SOPInstanceUIDs that each frame names as its source, else those that the file names for all frames."""
        named = [frame.image_uids for frame in self.file.frames_of(self.number) if frame.image_uids]
        return named or ([self.file.source_uids] if self.file.source_uids else [])

    def lies_on(self, series: SeriesHeaders) -> bool:
        """Tell whether its frames fall on voxels of a series, which is free of problems."""
        return lies_on(self.file, self.number, series)

    def draw(self, series: SeriesHeaders) -> tuple[NDArray[np.bool_], list[str]]:
        """Return the mask [X, Y, Z] on the grid of a series, and what to say of it.

        Raises:
            UserError: frames do not fit the series.
        """
        mask = segment_mask(self.file, self.number, series)
        return mask, _absent_slices(self.named_slices, series, "frames")


Drawing: TypeAlias = Outlines | Segment


def drawings_of(file: StructureSet | Segmentation) -> list[Drawing]:
    """Return the ROIs with contours, or the segments with frames, of a file."""
    if isinstance(file, Segmentation):
        return [Segment(file, number) for number in file.segments if file.frames_of(number)]
    return [Outlines(file, roi) for roi in file.rois if roi.contours]


def is_called(drawing: Drawing, pattern: str) -> bool:
    """Tell whether a regular expression finds one of its names, case ignored."""
    return any(re.search(pattern, name, re.IGNORECASE) for name in drawing.names)


def grid_of(series: SeriesHeaders) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return affine and shape of the volume of a series, from its headers.

    Raises:
        UserError: it is not one volume.
    """
    for problem in find_problems(series):
        raise UserError(f"{series.name}: {problem.sentence}; {problem.fix}")
    slices = sorted_slices(series)
    return series_affine(slices), (slices[0].columns, slices[0].rows, len(slices))


def _absent_slices(named: list[frozenset[str]], series: SeriesHeaders, what: str) -> list[str]:
    there = {header.sop_instance_uid for header in series.slices}
    absent = sum(uids.isdisjoint(there) for uids in named)
    return [f"{absent} {what} name slices that are not here; they lie where their coordinates say"] if absent else []
