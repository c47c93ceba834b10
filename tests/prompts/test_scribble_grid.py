"""Tests of monai_ext.prompts.scribble_grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_ext.prompts.scribble_grid import resize_scribble

UNLABELLED = 9


def test_a_smaller_scribble_is_what_a_search_of_each_cell_finds() -> None:
    rng = np.random.default_rng(0)
    scribble = np.where(rng.random((2, 24, 18)) < 0.1, rng.integers(0, 4, (2, 24, 18)), UNLABELLED).astype(np.uint8)
    found = resize_scribble(torch.from_numpy(scribble), (8, 6), UNLABELLED).numpy()
    assert found.dtype == np.uint8
    for k, y, x in np.ndindex(2, 8, 6):
        cell = scribble[k, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3]
        drawn = [int(v) for v in cell.ravel() if v != UNLABELLED]
        assert found[k, y, x] == (max(drawn) if drawn else UNLABELLED)


@pytest.mark.parametrize("size", [(61, 47), (50, 90), (97, 33), (128, 128)])
def test_a_thin_line_stays_in_one_piece(size: tuple[int, int]) -> None:
    angle = np.linspace(0, 1.6 * np.pi, 2000)
    scribble = np.full((96, 80), UNLABELLED)
    scribble[(48 + 40 * np.sin(angle)).astype(int), (40 + 30 * np.cos(angle)).astype(int)] = 2
    resized = resize_scribble(torch.from_numpy(scribble), size, UNLABELLED).numpy()
    assert resized.shape == size
    assert set(np.unique(resized)) == {2, UNLABELLED}
    assert ndimage.label(resized == 2, np.ones((3, 3)))[1] == 1


def test_background_scribbles_count_and_nothing_drawn_stays_nothing() -> None:
    scribble = torch.full((4, 4), UNLABELLED)
    assert (resize_scribble(scribble, (2, 2), UNLABELLED) == UNLABELLED).all()
    scribble[0, 0] = 0
    assert resize_scribble(scribble, (2, 2), UNLABELLED).tolist() == [[0, 9], [9, 9]]
    assert resize_scribble(scribble, (4, 4), UNLABELLED) is scribble
    assert resize_scribble(torch.tensor([[1, 2]]), (2, 4), UNLABELLED).tolist() == [[1, 1, 2, 2]] * 2
