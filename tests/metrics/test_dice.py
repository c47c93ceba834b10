"""Dice of a case and the mean of its slices' Dice."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_ext.metrics.dice import dice, dice_slice_mean


def volume(*slices: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Return reference and prediction [1, 4, slices] from one row of 0 and 1 per slice."""
    rows = [[[int(mark) for mark in row] for row in pair] for pair in slices]
    reference, prediction = np.array(rows, dtype=bool).transpose(1, 2, 0)[:, None]
    return reference, prediction


def test_half_of_the_voxels_in_common():
    reference, prediction = volume(("1100", "0110"))
    assert dice(reference, prediction) == 2 * 1 / (2 + 2)


def test_identical_and_disjoint():
    reference, prediction = volume(("1100", "0011"))
    assert dice(reference, reference) == 1.0
    assert dice(reference, prediction) == 0.0


def test_no_value_without_voxels():
    empty = np.zeros((3, 3), dtype=bool)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(dice_slice_mean(empty, ~empty))


def test_other_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        dice(np.ones((2, 3), dtype=bool), np.ones((3, 2), dtype=bool))


def test_slice_mean_leaves_out_slices_without_reference():
    reference, prediction = volume(("1100", "1100"), ("1100", "0110"), ("0000", "1111"))
    assert dice_slice_mean(reference, prediction) == pytest.approx((1.0 + 0.5) / 2)
    assert dice(reference, prediction) == pytest.approx(2 * 3 / (4 + 8))


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slice_mean_is_the_mean_of_a_loop(slice_axis):
    rng = np.random.default_rng(3)
    reference, prediction = rng.random((2, 5, 6, 7)) > 0.6
    slices = zip(np.moveaxis(reference, slice_axis, 0), np.moveaxis(prediction, slice_axis, 0), strict=True)
    expected = np.mean([dice(a, b) for a, b in slices if a.any()])
    assert dice_slice_mean(reference, prediction, slice_axis) == pytest.approx(expected)


def test_one_frame_is_one_slice():
    reference, prediction = np.random.default_rng(4).random((2, 6, 5)) > 0.5
    assert dice_slice_mean(reference, prediction) == dice(reference, prediction)
