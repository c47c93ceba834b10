"""Outlines to masks: outlines in patient millimetres become voxels of a volume.

The rule: a voxel belongs to the structure when its centre lies inside the outlines, by even-odd over all outlines
of its slice, so that an outline in another one is a hole, and a keyhole outline too. A centre that lies exactly on
an outline belongs to the structure on the side of lower row or column only. Nothing is truncated to whole pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.geometry import LPS_TO_RAS
from monai_ext.data.dicom.outline_copies import without_copies
from monai_ext.data.dicom.rtstruct_reader import Contour
from monai_ext.errors import UserError

Points = NDArray[np.float64]

CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "")
SAME_OUTLINE = 0.1  # of a voxel: an outline so near to another one is its copy
SAME_PLANE = 0.02  # of a slice distance: what rounding leaves of the height of a slice
BETWEEN = 0.4  # of a slice distance: so far from its slice an outline might as well be of the next one
MOST_SLICES = 10  # in a message
_DECIMALS = 4  # of a voxel: what decimal strings leave of exact coordinates is noise below


def contour_mask(
    contours: Iterable[Contour], shape: Sequence[int], affine: NDArray[Any]
) -> tuple[NDArray[np.bool_], list[str]]:
    """Fill the outlines of one structure on the grid of a volume.

    Outlines go to the nearest slice; where outlines of several planes have the same nearest slice (they were drawn
    on thinner slices), the nearest plane is taken.

    Args:
        contours: outlines in LPS+ mm. What is not closed (POINT, OPEN_PLANAR) and copies are passed over.
        shape: (X, Y, Z) of the volume.
        affine: [4, 4], voxel indices to RAS+ mm.

    Returns:
        bool [X, Y, Z], and what was passed over or encloses nothing, in sentences.

    Raises:
        UserError: an outline lies outside the slices (by more than half their distance) or across them.
    """
    closed, notes = _closed(contours)
    slices = _slices(closed, shape[2], affine)
    mask = np.zeros(tuple(shape), dtype=bool, order="F")
    copies = crowded = between = 0
    empty = []
    for k, outlines in slices.items():
        nearest, is_only = _nearest_plane(outlines, k)
        polygons = without_copies(nearest, SAME_OUTLINE)
        copies += len(nearest) - len(polygons)
        crowded += not is_only
        between += min(abs(height - k) for height, _ in outlines) >= BETWEEN
        mask[:, :, k] = fill_polygons(polygons, (shape[0], shape[1]))
        if not mask[:, :, k].any():
            empty.append(k)
    if copies:
        notes.append(f"{copies} copies of outlines were passed over")
    if between:
        notes.append(
            f"on {between} slices the outlines lie about half-way to the next one (the upper slice was taken at the "
            "middle); look whether the contours were drawn on another series"
        )
    if crowded:
        notes.append(f"on {crowded} slices lie outlines of several planes; the nearest plane was taken")
    if empty:
        notes.append(f"contours enclose no voxel on {_listed(empty)}; look at them in a viewer")
    if gaps := _gaps(slices):
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


def closed_contours(contours: Iterable[Contour]) -> list[Contour]:
    """Return the outlines that have an inside."""
    return _closed(contours)[0]


def contour_heights(contour: Contour, affine: NDArray[Any]) -> tuple[float, float]:
    """Return the slice coordinates of the lowest and the highest point of an outline, in voxels."""
    to_voxels = _to_voxels(affine)[2]
    heights = contour.points @ to_voxels[:3] + to_voxels[3]
    return float(heights.min()), float(heights.max())


def _closed(contours: Iterable[Contour]) -> tuple[list[Contour], list[str]]:
    """Sort out what has no inside."""
    closed = []
    kinds: Counter[str] = Counter()
    for contour in contours:
        if contour.kind not in CLOSED_TYPES:
            kinds[contour.kind] += 1
        elif len(contour.points) < 3:
            kinds["outlines of less than 3 points"] += 1
        else:
            closed.append(contour)
    listed = ", ".join(sorted(kinds))
    return closed, [f"{kinds.total()} contours without an inside were passed over ({listed})"] if kinds else []


def _slices(closed: Iterable[Contour], depth: int, affine: NDArray[Any]) -> dict[int, list[tuple[float, Points]]]:
    """Return height and polygon [N, 2] of the outlines nearest to each slice, in voxels."""
    to_voxels = _to_voxels(affine)
    slices: dict[int, list[tuple[float, Points]]] = {}
    for contour in closed:
        voxels = contour.points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        height = _height(voxels, depth, affine)
        slices.setdefault(int(np.floor(height + 0.5)), []).append((height, voxels[:, :2]))
    return slices


def _to_voxels(affine: NDArray[Any]) -> NDArray[np.float64]:
    """[4, 4] from LPS+ mm to voxel indices."""
    return np.linalg.inv(LPS_TO_RAS @ np.asarray(affine, dtype=np.float64))


def _nearest_plane(outlines: Sequence[tuple[float, Points]], k: int) -> tuple[list[Points], bool]:
    """Return the outlines of the plane nearest to slice ``k``, and whether it is the only one."""
    heights = np.array([height for height, _ in outlines])
    nearest = min(heights.tolist(), key=lambda height: (abs(height - k), height))
    own = np.abs(heights - nearest) <= SAME_PLANE
    return [polygon for (_, polygon), is_own in zip(outlines, own, strict=True) if is_own], bool(own.all())


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


def _listed(slices: Iterable[int]) -> str:
    """Name slices by their number along the volume's third axis, counted from 0: ``slices 3-5, 9``."""
    runs = groupby(enumerate(sorted(slices)), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    names = [f"{first}" if first == last else f"{first}-{last}" for first, last in ends]
    more = ", ..." if len(names) > MOST_SLICES else ""
    plural = "slices" if len(names) > 1 or ends[0][0] != ends[0][1] else "slice"
    return f"{plural} {', '.join(names[:MOST_SLICES])}{more} (counted from 0)"
