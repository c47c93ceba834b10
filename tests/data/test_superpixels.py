"""Tests of monai_ext.data.superpixels."""

from __future__ import annotations

import numpy as np
import pytest

from few_shot_cases import few_shot_case
from monai_ext.data.superpixels import Superpixels, store_superpixels
from monai_ext.errors import UserError


def picture() -> np.ndarray:
    """Four bright squares of 16 x 16 on black, of different grey values, with a little noise."""
    grey = np.zeros((64, 64))
    for k, (y, x) in enumerate(((8, 8), (8, 40), (40, 8), (40, 40))):
        grey[y : y + 16, x : x + 16] = 90 + 50 * k
    return grey + np.random.default_rng(0).normal(0, 1, grey.shape)


def test_squares_are_found_and_the_background_is_dropped() -> None:
    pieces = Superpixels(smallest=0.03, sigma=0.3)(picture())
    assert pieces.dtype == np.uint8
    centres = [pieces[16, 16], pieces[16, 48], pieces[48, 16], pieces[48, 48]]
    assert len(set(centres)) == 4
    assert 0 not in centres
    assert pieces[32, 32] == 0
    assert set(np.unique(pieces)) == {0, *range(1, pieces.max() + 1)}


def test_no_piece_is_smaller_or_larger_than_asked() -> None:
    noise = np.random.default_rng(1).uniform(50, 200, (64, 64))
    pieces = Superpixels(smallest=0.02, largest=0.1)(noise)
    sizes = np.bincount(pieces.ravel())[1:]
    assert len(sizes)
    assert sizes.min() >= 0.02 * 64 * 64
    assert sizes.max() <= 0.1 * 64 * 64


def test_an_empty_slice_has_none() -> None:
    assert not Superpixels()(np.zeros((32, 32))).any()


def test_they_are_cut_once_and_other_options_lie_beside_them(tmp_path) -> None:
    case = few_shot_case(tmp_path, "a", [("liver",), ()])
    cut = Superpixels(smallest=0.03)
    store_superpixels([case], cut)
    found = np.array(case.load(cut.name))
    np.testing.assert_array_equal(found, np.stack([cut(plane) for plane in case.grey()]))
    np.save(f"{case.stem}_{cut.name}.npy", found * 0)
    store_superpixels([case], cut)
    assert not case.load(cut.name).any()
    assert Superpixels(smallest=0.04).name != cut.name


def test_impossible_sizes() -> None:
    with pytest.raises(UserError, match=r"superpixels from 0\.3 to 0\.2 of a slice are not possible"):
        Superpixels(smallest=0.3)
