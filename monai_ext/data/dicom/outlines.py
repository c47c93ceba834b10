"""From a binary mask to closed planar outlines that hold exactly the centres of its pixels.

The outline runs through the middles between the centres of a pixel inside and a pixel outside (marching squares at
level 0.5), so that a polygon's even-odd interior holds the centre of a pixel exactly if the mask does, and its area
is that of the mask to half a pixel a contour. A contour of type CLOSED_PLANAR has no inside boundaries; a hole is
therefore joined to the outline around it by a channel of no width (the "keyhole" of DICOM PS3.3 C.8.8.6.3), which
reads the same under the even-odd rule, under the winding rule, and where a reader unites or XORs contours.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from scipy import ndimage

Points = NDArray[np.float64]


def trace_outlines(mask: NDArray[np.bool_]) -> list[Points]:
    """Trace one polygon around each connected part of a slice; parts that touch at a corner may be one or two.

    Args:
        mask: [X, Y], True inside.

    Returns:
        For each polygon its vertices [n, 2] in pixel units, (x, y) with pixel centres at whole numbers,
        counterclockwise, the first vertex not repeated at the end. No mask, no polygon.
    """
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return []
    box = found[0]
    padded = np.pad(mask[box], 1).astype(np.float64)  # so that outlines close where the mask touches the border
    origin = np.array([side.start - 1 for side in box], dtype=np.float64)
    generator = contour_generator(z=padded.T, fill_type=FillType.OuterOffset)
    return [_polygon(points, offsets) + origin for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True)]


def _polygon(points: Points, offsets: NDArray[np.uint32]) -> Points:
    """Make one polygon of an outer ring and the rings of its holes, which lie one after the other in ``points``."""
    outer, *holes = (_without_needless(points[start : stop - 1]) for start, stop in pairwise(offsets))
    for hole in sorted(holes, key=lambda ring: -ring[:, 0].max()):
        outer = _join(outer, hole)
    return outer


def _without_needless(ring: Points) -> Points:
    """Drop vertices on a straight line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _join(outer: Points, hole: Points) -> Points:
    """Cut a channel from the rightmost end of a hole along +x to the first boundary there.

    Holes come from right to left, so that what the channel meets belongs to ``outer``. Vertices lie on multiples of a
    half, and no edge ahead of a rightmost vertex is horizontal: an eighth of a pixel further along y the channel meets
    no centre of a pixel and no vertex.
    """
    last = int(hole[:, 0].argmax())
    edge_ahead = hole[(last + 1) % len(hole)] - hole[last]
    start = hole[last] + edge_ahead * 0.125 / abs(edge_ahead[1])
    ends = np.roll(outer, -1, axis=0)
    above, above_end = outer[:, 1] > start[1], ends[:, 1] > start[1]
    edges = np.flatnonzero(above != above_end)
    along = (start[1] - outer[edges, 1]) / (ends[edges, 1] - outer[edges, 1])
    x = outer[edges, 0] + along * (ends[edges, 0] - outer[edges, 0])
    ahead = np.flatnonzero(x > start[0])
    nearest = ahead[x[ahead].argmin()]
    edge, meeting = edges[nearest], np.array([x[nearest], start[1]])
    ring = np.roll(hole, -(last + 1), axis=0)
    return np.concatenate([outer[: edge + 1], [meeting, start], ring, [start, meeting], outer[edge + 1 :]])
