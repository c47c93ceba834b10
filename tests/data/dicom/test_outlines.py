from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from monai_ext.data.dicom.outlines import trace_outlines

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans())


def windings(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Slow and obvious: how often a polygon winds around each pixel's centre (Sunday 2001)."""
    turns = np.zeros(shape, dtype=int)
    for x, y in np.ndindex(*shape):
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            left = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
            turns[x, y] += int(y0 <= y < y1 and left > 0) - int(y1 <= y < y0 and left < 0)
    return turns


def area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@pytest.mark.slow
@given(masks)
@settings(max_examples=150, deadline=None)
def test_polygons_hold_the_centres_of_the_mask_and_no_others(mask):
    """No centre twice: even-odd, winding number, union and XOR all read the same."""
    turns = [windings(polygon, mask.shape) for polygon in trace_outlines(mask)]
    np.testing.assert_array_equal(sum(turns, np.zeros(mask.shape, dtype=int)), mask)
    assert all(((turn == 0) | (turn == 1)).all() for turn in turns)


@given(masks)
@settings(max_examples=50, deadline=None)
def test_outlines_keep_away_from_centres(mask):
    """Also along the channels to holes: no rounding puts a centre on the other side."""
    centres = np.argwhere(np.ones_like(mask)).astype(float)
    for polygon in trace_outlines(mask):
        for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            along = np.clip((centres - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
            distance = np.linalg.norm(centres - start - along[:, None] * (end - start), axis=1)
            assert distance.min() >= 0.125


def test_channel_of_a_long_hole_meets_no_centre():
    mask = np.ones((7, 9), dtype=bool)
    mask[2:4, 2:7] = False
    (polygon,) = trace_outlines(mask)
    ys = polygon[:, 1][polygon[:, 1] * 2 % 1 != 0]
    assert len(ys)
    assert (np.abs(ys - np.rint(ys)) >= 0.125).all()


def test_no_mask_no_outline():
    assert trace_outlines(np.zeros((4, 5), dtype=bool)) == []


def test_single_pixel_is_a_diamond():
    mask = np.zeros((5, 4), dtype=bool)
    mask[3, 1] = True
    (polygon,) = trace_outlines(mask)
    assert {tuple(point) for point in polygon} == {(2.5, 1), (3.5, 1), (3, 0.5), (3, 1.5)}


def test_straight_edges_have_no_points_between():
    (polygon,) = trace_outlines(np.ones((30, 20), dtype=bool))
    assert len(polygon) == 8  # four sides, four cut corners


def test_holes_and_islands():
    """An island in a hole in a disc: two polygons, the outer one with its hole on a channel."""
    x, y = np.mgrid[:21, :21] - 10
    radius = np.hypot(x, y)
    mask = (radius < 9) & ~((radius > 3) & (radius < 6))
    outer, island = sorted(trace_outlines(mask), key=lambda polygon: -np.ptp(polygon[:, 0]))
    assert (island**2).sum() < (outer**2).sum()
    assert area(outer) + area(island) == pytest.approx(mask.sum(), abs=1.5)


@pytest.mark.parametrize("radius", [2, 5, 20])
def test_area_is_that_of_the_mask_to_half_a_pixel(radius):
    x, y = np.mgrid[: 2 * radius + 3, : 2 * radius + 3] - radius - 1
    mask = np.hypot(x, y) <= radius
    (polygon,) = trace_outlines(mask)
    assert area(polygon) == pytest.approx(mask.sum() - 0.5)
