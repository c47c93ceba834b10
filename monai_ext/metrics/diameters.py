"""Diameters of a structure in the plane of its slices, as they are measured by hand in follow-up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

EVERY_NEIGHBOUR = np.ones((3, 3), dtype=int)


def longest_diameters(mask: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Longest diameter of any connected piece on any slice, and the width of that piece across it.

    Pixels are squares: a single pixel has its diagonal. Pieces are connected over sides and corners.

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
    return max(found, default=(0.0, 0.0))


def _diameters(piece: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Diameters of one piece ``[H, W]`` from the corners of its outline's pixels."""
    pixels = np.argwhere(piece & ~ndimage.binary_erosion(piece, EVERY_NEIGHBOUR))
    corners = np.concatenate([pixels + offset for offset in ((0, 0), (0, 1), (1, 0), (1, 1))])
    points = corners * np.asarray(spacing[:2], float)
    hull = points[ConvexHull(points).vertices]
    distances = squareform(pdist(hull))
    first, second = np.unravel_index(distances.argmax(), distances.shape)
    along = (hull[second] - hull[first]) / distances[first, second]
    across = hull @ np.array([-along[1], along[0]])
    return float(distances[first, second]), float(np.ptp(across))
