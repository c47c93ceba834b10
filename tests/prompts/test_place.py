from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_ext.prompts.place import (
    fit_shift,
    implausibility,
    near_cells,
    place_prior,
    prior_width,
    shift_mask,
    to_cells,
    weigh_maps,
    within,
)


def square(row: int, column: int, side: int = 8, size: int = 32) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[row : row + side, column : column + side] = True
    return mask


def test_the_prior_falls_with_the_distance_to_the_mask():
    mask = square(4, 4)
    prior, width = place_prior(mask, 2), prior_width(mask, 2)
    assert width == pytest.approx(0.75 * math.sqrt(64 / math.pi))
    assert bool((prior[mask] == 1).all())
    assert float(prior[8, 16]) == pytest.approx(math.exp(-(5**2) / (2 * width**2)))
    assert prior_width(square(4, 4, 1), 4) == 4  # a cell at least


def test_a_look_alike_elsewhere_loses_to_the_expected_place():
    maps = torch.zeros(1, 8, 8)
    maps[0, 7, 7], maps[0, 1, 1] = 0.9, 0.8
    weighed = weigh_maps(maps, to_cells(place_prior(square(4, 4), 4), 4, (8, 8)))
    assert int(weighed.argmax()) == 1 * 8 + 1


def test_cells_take_the_mean_of_their_pixels_and_padding_counts_as_nothing():
    assert to_cells(torch.ones(6, 4), 4, (2, 2)).tolist() == [[1, 0], [0.5, 0]]


def test_neighbourhood_reaches_three_widths_and_not_into_padding():
    mask = square(4, 4, 4)[:, :20]
    near = near_cells(mask, 4, (8, 8))
    assert bool(near[1, 1])
    assert not bool(near[7, 1])
    assert not bool(near[:, 5:].any())
    assert within(mask, 4, 3)[4, 16:].tolist() == [True] * 4  # 9 to 12 pixels away, the width is 4


def test_implausibility_counts_place_and_size():
    mask = square(4, 4)
    prior = place_prior(mask, 2)
    candidates = torch.stack([mask, square(20, 20), square(4, 4, 2), torch.zeros_like(mask)])
    same, away, small, empty = implausibility(candidates, mask, prior).tolist()
    assert same == pytest.approx(0)
    assert away == pytest.approx(1, abs=0.01)
    assert small == pytest.approx(math.log(16) - math.log(2))
    assert empty == math.inf


@pytest.mark.parametrize("shift", [(0, 0), (3, -4), (-5, 2)])
def test_the_shift_of_an_image_is_found(shift):
    rng = np.random.default_rng(1)
    reference = ndimage.gaussian_filter(rng.normal(size=(48, 64, 3)), (2, 2, 0))
    target = np.roll(reference, shift, axis=(0, 1)) + 0.01 * rng.normal(size=reference.shape)
    assert fit_shift(target, reference) == shift


def test_images_that_have_nothing_in_common_are_not_shifted():
    rng = np.random.default_rng(2)
    flat = np.zeros((32, 32, 1))
    assert fit_shift(flat, rng.normal(size=(32, 32, 1))) == (0, 0)


def test_a_shifted_mask_loses_what_leaves_the_image():
    moved = shift_mask(square(4, 4), (3, -6))
    assert moved.nonzero().amin(dim=0).tolist() == [7, 0]
    assert int(moved.sum()) == 8 * 6
