"""A support that is annotated by points or a box given as numbers, in place of a file with its mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.contents import content_key
from monai_ext.data.images import read_geometry, write_mask
from monai_ext.data.manifest import DataList
from monai_ext.data.slice_axis import stored_slice_axis
from monai_ext.data.supports import parse_support
from monai_ext.errors import UserError
from monai_ext.files import PathLike, sha256_of
from monai_ext.made import note_file

FRAME_SIDE = 256
"""Pixels along the longer side of the smallest input frame; a dot has to cover one of them."""


def draw_support(
    datalist: DataList,
    support: str,
    organ: str,
    folder: PathLike,
    points: Sequence[Sequence[float]] | None = None,
    box: Sequence[Sequence[float]] | None = None,
    slice_axis: str | None = None,
) -> DataList:
    """Return a data list in which the support's label holds what was drawn and nothing else.

    Places are voxel indices of the image file, [i, j, k], as viewers show them; of a picture [x, y]. A dot has a width
    of 1 pixel of its slice, 3 where that is 256 to 511 pixels long, and so on, so that it is not lost when the slice is
    made smaller.

    >>> draw_support(datalist, "chaos05_T2SPIR", "spleen", "out/supports", points=[[120, 96, 14]])  # doctest: +SKIP

    Args:
        datalist: has the support; a label of it is not read.
        support: see :func:`monai_ext.data.supports.parse_support`.
        organ: the structure that was annotated; one of the data list.
        folder: where the mask is written to.
        points: in the object.
        box: two opposite corners, both included, on one slice or over several.
        slice_axis: "R", "A" or "S" where slices are cut orthogonal to it.

    Raises:
        UserError: both are given or one is empty, a place lies outside the image, or there is no such case or organ.
    """
    if (points is None) == (box is None):
        raise UserError("--support_points and --support_box are two ways to annotate a support: give one of them.")
    name = parse_support(support).case
    case = next((one for one in datalist.cases if one.case == name), None)
    if case is None:
        raise UserError(f"support {support}: {datalist.dataset} has no such case: name one of its cases.")
    if organ not in datalist.labels:
        raise UserError(f"class {organ!r} is unknown: {datalist.dataset} has {', '.join(datalist.labels)}.")
    geometry = read_geometry(case.image)
    shape = tuple(geometry.shape)
    places = _places(box if points is None else points, shape, case.image, "box" if points is None else "points")
    axis = stored_slice_axis(shape, geometry.affine, slice_axis)
    mask = np.zeros(shape, np.uint8)
    for first, last in _blocks(places, shape, axis) if points is not None else [_corners(places)]:
        mask[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = datalist.labels[organ]
    key = content_key([sha256_of(case.image), places.tolist(), points is None, datalist.labels[organ], slice_axis])
    path = Path(folder) / f"{case.case}_drawn_{key[:10]}{'.png' if mask.ndim == 2 else '.nii.gz'}"
    if not path.is_file():
        note_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(path, mask, like=case.image)
    drawn = case.model_copy(update={"label": str(path.absolute())})
    return datalist.model_copy(update={"cases": [drawn if one is case else one for one in datalist.cases]})


def _places(given: Any, shape: tuple[int, ...], image: str, what: str) -> NDArray[np.int64]:
    """Return voxel indices [n, 2 or 3] of what the user gave."""
    form = "[x, y] of a picture" if len(shape) == 2 else "[i, j, k] of a volume"
    try:
        places = np.rint(np.asarray(given, dtype=float).reshape(len(given), -1)).astype(int)
    except (TypeError, ValueError):
        places = np.zeros((0, 0), int)
    if not len(places) or places.shape[1] != len(shape) or (what == "box" and len(places) != 2):
        count = "two corners" if what == "box" else "a list of points"
        raise UserError(f"--support_{what} is {given}: give {count}, voxel indices {form}.")
    for place in places.tolist():
        if not all(0 <= index < side for index, side in zip(place, shape, strict=True)):
            size = " x ".join(map(str, shape))
            raise UserError(f"--support_{what}: {place} lies outside {image} of {size} voxels.")
    return places


def _blocks(
    places: NDArray[np.int64], shape: tuple[int, ...], axis: int | None
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the first and last voxels of the dots; in the plane of a slice alone."""
    plane = [side for k, side in enumerate(shape) if k != axis]
    reach = np.array([0 if k == axis else max(plane) // FRAME_SIDE for k in range(len(shape))])
    return [(np.maximum(p - reach, 0), np.minimum(p + reach, np.array(shape) - 1)) for p in places]


def _corners(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return places.min(axis=0), places.max(axis=0)
