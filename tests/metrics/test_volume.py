"""Volumes in millilitres."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_ext.metrics.volume import relative_volume_error, volume_error_ml, volume_ml


def cube(side: int) -> np.ndarray:
    mask = np.zeros((12, 12, 12), dtype=bool)
    mask[:side, :side, :side] = True
    return mask


def test_a_cube_of_ten_millimetres_is_one_millilitre():
    assert volume_ml(cube(10), (1, 1, 1)) == pytest.approx(1.0)
    assert volume_ml(cube(5), (2, 2, 2)) == pytest.approx(1.0)
    assert volume_ml(cube(1), (0.5, 2.0, 8.0)) == pytest.approx(0.008)


def test_error_is_negative_where_too_little_is_predicted():
    assert volume_error_ml(cube(10), cube(5), (1, 1, 1)) == pytest.approx(0.125 - 1.0)


def test_relative_error_is_of_the_reference():
    assert relative_volume_error(cube(2), cube(4)) == pytest.approx((64 - 8) / 8)
    assert math.isnan(relative_volume_error(cube(0), cube(4)))


def test_a_frame_has_no_volume():
    with pytest.raises(ValueError, match="three axes"):
        volume_ml(np.ones((4, 4), dtype=bool), (1, 1))
