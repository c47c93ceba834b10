"""The series that a mask goes back to, and the way of the mask onto its grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.geometry import find_problems, series_affine, sorted_slices
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.reading import read_dataset
from monai_ext.data.dicom.series import SeriesList, group_headers
from monai_ext.data.dicom.structures import Source, clean_headers
from monai_ext.errors import UserError
from monai_ext.files import PathLike

if TYPE_CHECKING:
    from pydicom import Dataset

GRID_TOLERANCE = 0.1  # of a voxel, at the corners: converters round, but never by as much


def load_source(folder: PathLike, series_uid: str | None = None) -> Source:
    """Read the headers of one series of a folder, pixels untouched.

    Args:
        folder: searched with its subfolders.
        series_uid: which one; may be left out where there is one image series only.

    Raises:
        UserError: there is no such series, there are several, or masks cannot be placed on it.
    """
    series = choose_series(group_headers(folder), folder, series_uid)
    for problem in find_problems(series):
        raise UserError(f"{series.name}: {problem.sentence}; {problem.fix}")
    slices = sorted_slices(series)
    headers = clean_headers([read_dataset(header.path, pixels=False) for header in slices])
    for keyword in ("FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID", "StudyInstanceUID"):
        _require(keyword, headers, series)
    first, affine = slices[0], series_affine(slices)
    for header in headers:
        if not header.get("SliceThickness"):  # SEG cannot do without
            header.SliceThickness = f"{np.linalg.norm(affine[:3, 2]):.6g}"
    return Source(headers, (first.columns, first.rows, len(slices)), affine, series)


def choose_series(found: SeriesList, folder: PathLike, series_uid: str | None) -> SeriesHeaders:
    """Return the series with a UID, or the only image series.

    Raises:
        UserError: none, or several without a UID to choose by.
    """
    images = [series for series in found if series.is_image]
    if series_uid is not None:
        images = [series for series in images if series.series_uid == series_uid]
    if len(images) == 1:
        return images[0]
    if not images:
        which = "DICOM image series" if series_uid is None else f"image series with the UID {series_uid}"
        raise UserError(f"{folder}: there is no {which}; give the folder of the series with --series")
    if series_uid is None and all(len(series.slices) == 1 for series in images):
        raise UserError(
            f"{folder}: each of {len(images)} slices has a SeriesInstanceUID of its own (anonymisation does that), so "
            "there is no series that SEG or RTSTRUCT could refer to; give the files one UID, or keep the mask as NIfTI"
        )
    if series_uid is not None:
        dates = " and ".join(sorted(str(series.slices[0].study_date or series.study_uid) for series in images[:4]))
        raise UserError(
            f"{folder}: {len(images)} series share the SeriesInstanceUID {series_uid} ({dates}); give the folder that "
            "holds one of them alone (move the files of each visit to a folder of their own)"
        )
    listed = "; ".join(f"{series.series_uid} ({series.modality}, {len(series.slices)} slices)" for series in images[:4])
    more = "; ..." if len(images) > 4 else ""
    raise UserError(f"{folder}: holds {len(images)} image series ({listed}{more}); choose one with --series_uid")


def place_on_series(mask: NDArray[np.int32], affine: NDArray[np.float64], source: Source) -> NDArray[np.int32] | None:
    """Turn a mask's axes as the series has them; voxels stay where they are in the patient.

    Args:
        mask: [X, Y, Z] in any order and direction of the axes.
        affine: [4, 4], voxel indices of the mask to RAS+ mm.
        source: the series.

    Returns:
        [X, Y, Z] on the grid of the series, or None where the mask does not lie on that grid.
    """
    change = np.linalg.inv(source.affine) @ affine
    axes = np.abs(change[:3, :3]).argmax(axis=0)  # of the series, for each axis of the mask
    if sorted(axes) != [0, 1, 2]:
        return None
    order = np.argsort(axes)
    if tuple(np.array(mask.shape)[order]) != source.shape:
        return None
    flipped = change[axes, range(3)] < 0
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(mask.shape)[:, None] - 1)
    expected = np.where(flipped[:, None], np.array(mask.shape)[:, None] - 1 - corners, corners)[order]
    if np.abs(change[:3, :3] @ corners + change[:3, 3:] - expected).max() > GRID_TOLERANCE:
        return None
    return np.flip(mask, tuple(np.flatnonzero(flipped).tolist())).transpose(order)


def describe_grid(shape: Sequence[int], affine: NDArray[np.float64]) -> str:
    """Say where a grid lies: ``96 x 96 x 16 voxels of 1 x 1 x 3 mm along L, P, S from (10, 20, -4) mm``."""
    spacing = " x ".join(f"{size:.4g}" for size in nib.affines.voxel_sizes(affine))
    origin = ", ".join(f"{value:.6g}" for value in affine[:3, 3])
    directions = ", ".join(str(code) for code in nib.aff2axcodes(affine))
    return f"{' x '.join(map(str, shape))} voxels of {spacing} mm along {directions} from ({origin}) mm"


def _require(keyword: str, headers: Sequence[Dataset], series: SeriesHeaders) -> None:
    for header, slice_header in zip(headers, sorted_slices(series), strict=True):
        if not header.get(keyword):
            raise UserError(
                f"{slice_header.path}: has no {keyword}, which every SEG and RTSTRUCT refers to; "
                "export the series again from its source"
            )
