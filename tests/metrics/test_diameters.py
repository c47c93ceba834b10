from __future__ import annotations

import numpy as np
import pytest

from monai_ext.metrics.diameters import longest_diameters


def test_a_rectangle_has_its_diagonal_and_the_width_across_it():
    mask = np.zeros((20, 20, 3), bool)
    mask[4:7, 5:9, 1] = True  # 3 rows of 2 mm, 4 columns of 1 mm
    longest, across = longest_diameters(mask, (2.0, 1.0, 9.0))
    assert longest == pytest.approx(np.hypot(6, 4))
    assert across == pytest.approx(2 * 6 * 4 / np.hypot(6, 4))


def test_a_disc_has_its_diameter_both_ways():
    y, x = np.mgrid[:60, :60]
    mask = ((y - 30) ** 2 + (x - 30) ** 2 <= 20**2)[..., None]
    assert longest_diameters(mask, (0.5, 0.5)) == pytest.approx((20.5, 20.5), abs=0.6)


def test_the_longest_piece_of_any_slice_counts_not_the_distance_between_pieces():
    mask = np.zeros((30, 30, 2), bool)
    mask[0, 0, 0] = mask[29, 29, 0] = True
    mask[10:15, 10, 1] = True
    assert longest_diameters(mask, (1, 1)) == pytest.approx((np.hypot(5, 1), 10 / np.hypot(5, 1)))


@pytest.mark.parametrize("turned", [np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1]])
def test_a_mirrored_mask_has_the_same_where_two_diameters_are_the_longest(turned):
    rows = ([1, 0, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0])
    mask = np.array(rows, bool)[..., None]
    assert longest_diameters(mask, (1, 1)) == pytest.approx((5, 4.4))
    assert longest_diameters(mask[turned], (1, 1)) == pytest.approx(longest_diameters(mask, (1, 1)))


def test_an_empty_mask_has_none():
    assert longest_diameters(np.zeros((4, 4, 2), bool), (1, 1)) == (0, 0)
