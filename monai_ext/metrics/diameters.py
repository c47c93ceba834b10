"""Diameters of a structure in the plane of its slices, as they are measured by hand in follow-up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

EVERY_NEIGHBOUR = np.ones((3, 3), dtype=int)

SAME = 1e-9
"""Share of the longest by which others may differ from it and be as long: what rounding leaves."""


def longest_diameters(mask: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Longest diameter of any connected piece on any slice, and the width of that piece across it.

    Pixels are rectangles: a single pixel has its diagonal. Pieces are connected over sides and corners. Where several
    diameters are the longest, the width is the largest of theirs, so that a mirrored mask has the same.

    Args:
        mask: ``[H, W, D]`` bool, slices along the last axis.
        spacing: of H and W, in mm; further numbers are not used.

    Returns:
        Both in the unit of the spacing; (0, 0) for an empty mask.
    """
    found = [
        _diameters(pieces == number, spacing)
        for k in np.flatnonzero(mask.any(axis=(0, 1)))
        for pieces, count in [ndimage.label(mask[..., k], EVERY_NEIGHBOUR)]
        for number in range(1, count + 1)
    ]
    longest = max((length for length, _ in found), default=0.0)
    across = max((width for length, width in found if length >= longest * (1 - SAME)), default=0.0)
    return longest, across


def _diameters(piece: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Diameters of one piece ``[H, W]`` from the corners of its outline's pixels."""
    pixels = np.argwhere(piece & ~ndimage.binary_erosion(piece, EVERY_NEIGHBOUR))
    corners = np.concatenate([pixels + offset for offset in ((0, 0), (0, 1), (1, 0), (1, 1))])
    points = corners * np.asarray(spacing[:2], float)
    hull = points[ConvexHull(points).vertices]
    distances = squareform(pdist(hull))
    longest = distances.max()
    first, second = np.nonzero(np.triu(distances >= longest * (1 - SAME)))
    along = (hull[second] - hull[first]) / longest
    across = hull @ np.stack([-along[:, 1], along[:, 0]])  # [corners, diameters]
    return float(longest), float(np.ptp(across, axis=0).max())
