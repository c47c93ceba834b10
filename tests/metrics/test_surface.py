"""HD95 and NSD against MONAI, against a slow loop, and by hand."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter

from monai_ext.metrics.surface import (
    foreground_box,
    hd95,
    image_diagonal_mm,
    nsd,
    surface_distances,
    surface_mask,
)


@st.composite
def masks(draw: st.DrawFn, dimensions: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two non-empty masks, from single voxels to blobs that fill the image and touch its borders; spacing."""
    shape = tuple(draw(st.integers(1, 14)) for _ in range(dimensions))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pair = []
    for _ in range(2):
        noise = gaussian_filter(rng.standard_normal(shape), draw(st.sampled_from([0.0, 1.0, 2.5])), mode="wrap")
        share = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
        mask = noise >= np.quantile(noise, 1 - share)
        mask.flat[rng.integers(mask.size)] = True
        pair.append(mask)
    spacing = tuple(draw(st.sampled_from([0.3, 0.9375, 1.0, 1.37, 10.0])) for _ in range(dimensions))
    return pair[0], pair[1], spacing


def of_monai(function, reference: np.ndarray, prediction: np.ndarray, *args, **kwargs) -> float:
    tensors = [torch.from_numpy(mask[None, None]) for mask in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(function(*tensors, *args, include_background=True, **kwargs))


def slow_distances(points: np.ndarray, others: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    return [min(math.dist(np.multiply(p, spacing), np.multiply(q, spacing)) for q in others) for p in points]


def slow_surface(mask: np.ndarray) -> np.ndarray:
    surface = np.zeros_like(mask)
    for index in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = index.copy()
            neighbour[axis] += step
            inside = 0 <= neighbour[axis] < mask.shape[axis]
            if not inside or not mask[tuple(neighbour)]:
                surface[tuple(index)] = True
    return surface


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
def test_hd95_is_that_of_monai(dimensions):
    @settings(max_examples=30, deadline=None)
    @given(masks(dimensions))
    def check(case):
        reference, prediction, spacing = case
        expected = of_monai(compute_hausdorff_distance, reference, prediction, percentile=95, spacing=spacing)
        assert hd95(reference, prediction, spacing) == pytest.approx(expected, rel=1e-6, abs=1e-5)

    check()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_nsd_is_that_of_monai(dimensions):
    @settings(max_examples=20, deadline=None)
    @given(masks(dimensions), st.sampled_from([0.0, 1.0, 2.0, 3.3]))
    def check(case, tolerance):
        reference, prediction, spacing = case
        expected = of_monai(compute_surface_dice, reference, prediction, [tolerance + 1e-6], spacing=spacing)
        assert nsd(reference, prediction, spacing, tolerance) == pytest.approx(expected, abs=1e-6)

    check()


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(masks(3))
def test_surface_distances_are_those_of_a_loop(case):
    reference, prediction, spacing = (case[0][:6, :6, :6], case[1][:6, :6, :6], case[2])
    surfaces = [np.argwhere(slow_surface(mask)) for mask in (reference, prediction)]
    if not len(surfaces[0]) or not len(surfaces[1]):
        return
    found = surface_distances(reference, prediction, spacing)
    np.testing.assert_allclose(found[0], slow_distances(surfaces[1], surfaces[0], spacing))
    np.testing.assert_allclose(found[1], slow_distances(surfaces[0], surfaces[1], spacing))


def test_two_voxels_three_and_four_pixels_apart():
    reference, prediction = np.zeros((2, 9, 9), dtype=bool)
    reference[1, 1], prediction[4, 5] = True, True
    assert hd95(reference, prediction) == 5.0
    assert hd95(reference, prediction, (2.0, 1.0)) == pytest.approx(math.hypot(6, 4))


def test_hd95_is_that_of_monai_where_the_percentile_falls_into_a_gap():
    reference, prediction = np.zeros((2, 1, 3050), dtype=bool)
    reference[0, :2849], prediction[0, :2849], prediction[0, 2900:] = True, True, True
    expected = of_monai(compute_hausdorff_distance, reference, prediction, percentile=95, spacing=(1, 1))
    assert hd95(reference, prediction) == pytest.approx(expected, abs=1e-5)
    assert abs(np.percentile(surface_distances(reference, prediction)[0], 95) - expected) > 1e-3


def test_hd95_takes_the_larger_direction_and_not_the_pool():
    reference, prediction = np.zeros((2, 1, 41), dtype=bool)
    reference[0, 0], prediction[0, :] = True, True
    assert surface_distances(reference, prediction)[1].tolist() == [0.0]
    assert hd95(reference, prediction) == pytest.approx(38.0)
    pooled = np.percentile(np.concatenate(surface_distances(reference, prediction)), 95)
    assert pooled < 38.0


def test_every_voxel_of_a_single_slice_is_surface():
    mask = np.ones((5, 5, 1), dtype=bool)
    assert surface_mask(mask).all()
    assert np.count_nonzero(surface_mask(mask[..., 0])) == 16


def test_far_corner_and_memory_order_change_nothing():
    reference, prediction = np.zeros((2, 40, 30, 20), dtype=bool)
    reference[36:, 25:, 15:], prediction[33:, 27:, 12:18] = True, True
    expected = of_monai(compute_hausdorff_distance, reference, prediction, percentile=95, spacing=(1, 2, 3))
    assert hd95(reference, prediction, (1, 2, 3)) == pytest.approx(expected, abs=1e-5)
    assert hd95(np.asfortranarray(reference), prediction[::-1][::-1], (1, 2, 3)) == hd95(
        reference, prediction, (1, 2, 3)
    )


def test_empty_masks_have_no_distance():
    empty, full = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)
    for pair in ((empty, full), (full, empty), (empty, empty)):
        assert math.isnan(hd95(*pair))
    assert nsd(empty, full, None, 1.0) == 0.0
    assert math.isnan(nsd(empty, empty, None, 1.0))


def test_nsd_tolerance_is_inclusive():
    reference, prediction = np.zeros((2, 1, 9), dtype=bool)
    reference[0, 2], prediction[0, 5] = True, True
    assert nsd(reference, prediction, (1.0, 0.1), 0.3) == 1.0
    assert nsd(reference, prediction, (1.0, 0.1), 0.29) == 0.0


def test_box_is_tight():
    mask = np.zeros((7, 8, 9), dtype=bool)
    assert foreground_box(mask) is None
    mask[2, 3, 4] = mask[5, 3, 8] = True
    assert foreground_box(mask) == (slice(2, 6), slice(3, 4), slice(4, 9))
    assert foreground_box(np.asfortranarray(mask)) == foreground_box(mask)


def test_diagonal_of_the_extent():
    assert image_diagonal_mm((30, 40), None) == 50.0
    assert image_diagonal_mm((30, 20, 1), (1.0, 2.0, 120.0)) == 130.0


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, math.nan)])
def test_spacing_that_does_not_fit_is_refused(spacing):
    mask = np.ones((4, 4), dtype=bool)
    with pytest.raises(ValueError, match="spacing"):
        hd95(mask, mask, spacing)
