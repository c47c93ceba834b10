"""Outlines that are stored twice, which the even-odd rule would make holes of.

A copy may begin at another point, run the other way round, repeat its first point at the end, have points on its
edges that the first one lacks, or differ by rounding. What counts is therefore the curve and not the list of points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Points = NDArray[np.float64]


def without_copies(polygons: Sequence[Points], tolerance: float) -> list[Points]:
    """Drop polygons that run along an earlier one.

    Args:
        polygons: each [N, 2], of one plane, closed implicitly.
        tolerance: how far copies may lie from each other, in the unit of the points.
    """
    if len(polygons) < 2:
        return list(polygons)
    boxes = np.array([np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]) for polygon in polygons])
    dropped: set[int] = set()
    for first, second in sorted(cKDTree(boxes).query_pairs(tolerance, p=np.inf)):
        if first not in dropped and is_same_outline(polygons[first], polygons[second], tolerance):
            dropped.add(second)
    return [polygon for number, polygon in enumerate(polygons) if number not in dropped]


def is_same_outline(one: Points, other: Points, tolerance: float) -> bool:
    """Tell whether two polygons [N, 2] are one curve: no vertex of either is further than that from the other's edges.

    Their areas are compared too, for a polygon may run twice around the same edges.
    """
    longest = max(_length(one), _length(other))
    if abs(abs(_area(one)) - abs(_area(other))) > tolerance * longest:
        return False
    return max(_farthest(one, other), _farthest(other, one)) <= tolerance


def _area(polygon: Points) -> float:
    x, y = (polygon - polygon[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _length(polygon: Points) -> float:
    return float(np.linalg.norm(np.roll(polygon, -1, axis=0) - polygon, axis=1).sum())


def _farthest(points: Points, polygon: Points) -> float:
    """The largest distance of a point to the nearest edge of a polygon."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    squares = np.maximum((edges**2).sum(axis=1), np.finfo(np.float64).tiny)  # of a repeated point: no division by 0
    away = points[:, None] - polygon  # [points, edges, 2]
    along = np.clip((away * edges).sum(axis=2) / squares, 0, 1)
    return float(np.sqrt(((away - along[..., None] * edges) ** 2).sum(axis=2).min(axis=1).max()))
