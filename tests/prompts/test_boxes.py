"""Tests of monai_ext.prompts.boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ext.prompts.boxes import cells_in_box, pixels_in_box, tight_box


def test_box_is_the_extent_of_the_nonzero_pixels() -> None:
    mask = torch.rand(9, 14, generator=torch.Generator().manual_seed(0)) > 0.95
    rows, columns = np.nonzero(mask.numpy())
    assert tight_box(mask).tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_single_pixel_has_a_box_without_extent() -> None:
    mask = torch.zeros(5, 8, dtype=torch.bool)
    mask[2, 6] = True
    assert tight_box(mask).tolist() == [6, 2, 6, 2]


def test_empty_mask_has_no_box() -> None:
    assert tight_box(torch.zeros(4, 4, dtype=torch.bool)) is None


def slow_inside(box, points, room):
    """Whether each point (x, y) lies in the box, grown by ``room`` (x, y)."""
    x0, y0, x1, y1 = box
    return [x0 - room[0] <= x <= x1 + room[0] and y0 - room[1] <= y <= y1 + room[1] for x, y in points]


@pytest.mark.parametrize("margin", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("box", [(20, 9, 55, 22), (0, 0, 0, 0), (30, 60, 63, 63)])
def test_cells_and_pixels_in_a_box_grown_by_its_sides(box, margin):
    x0, y0, x1, y1 = box
    room = max(margin * (x1 - x0), 8), max(margin * (y1 - y0), 8)
    centres = [(8 * j + 3.5, 8 * i + 3.5) for i in range(6) for j in range(8)]
    cells = cells_in_box(torch.tensor(box).float(), 8, (6, 8), margin)
    assert cells.flatten().tolist() == slow_inside(box, centres, room)
    pixels = pixels_in_box(torch.tensor(box).float(), 8, (48, 64), margin)
    assert pixels.flatten().tolist() == slow_inside(box, [(x, y) for y in range(48) for x in range(64)], room)


@pytest.mark.parametrize("noise", [-1e-4, 1e-4])
def test_the_edge_belongs_to_the_box_whatever_its_rounding(noise):
    box = torch.tensor([11.5, 11.5, 27.5, 27.5])  # with a cell around it: from the first to the fifth centre
    exact = cells_in_box(box, 8, (6, 8))
    assert exact.any(dim=0).tolist() == [True] * 5 + [False] * 3
    assert torch.equal(cells_in_box(box + noise, 8, (6, 8)), exact)


def test_a_box_on_the_grid_always_holds_a_cell():
    for x in range(64):
        assert cells_in_box(torch.tensor([x, 47, x, 47]).float(), 8, (6, 8)).any()
