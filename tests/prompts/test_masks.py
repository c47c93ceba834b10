"""Tests of monai_ext.prompts.masks."""

from __future__ import annotations

import pytest
import torch

from monai_ext.prompts.masks import (
    background_cells,
    official_candidate_tokens,
    official_tokens,
    paper_tokens,
    persam_tokens,
    valid_cells,
)

STRIDE = 4
GRID = (6, 6)
SIDE = 24


def disc(radius: float, x: float, y: float, size: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def covered_share(mask: torch.Tensor, i: int, j: int) -> float:
    pixels = [
        bool(mask[y, x]) if y < mask.shape[0] and x < mask.shape[1] else False
        for y in range(i * STRIDE, (i + 1) * STRIDE)
        for x in range(j * STRIDE, (j + 1) * STRIDE)
    ]
    return sum(pixels) / len(pixels)


@pytest.mark.parametrize("size", [(24, 24), (18, 24), (24, 13)])
def test_paper_tokens_are_the_cells_covered_by_half(size) -> None:
    mask = disc(6.3, 9.2, 8.7, size)
    foreground, recovered = paper_tokens(mask, STRIDE, GRID)
    expected = [[covered_share(mask, i, j) >= 0.5 for j in range(6)] for i in range(6)]
    assert foreground.tolist() == expected
    assert foreground.any()
    assert not recovered


def test_exactly_half_a_cell_is_foreground() -> None:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[8:12, 12:14] = True
    foreground, recovered = paper_tokens(mask, STRIDE, GRID)
    assert foreground.nonzero().tolist() == [[2, 3]]
    assert not recovered


def test_odd_strides_count_exactly() -> None:
    mask = torch.zeros(14, 14, dtype=torch.bool)
    mask[0:7, 0:3] = mask[0:4, 3] = True  # 25 of 49 pixels
    mask[7:14, 7:10] = mask[7:10, 10] = True  # 24 of 49
    foreground, _ = paper_tokens(mask, 7, (2, 2))
    assert foreground.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 0), (-1, 1)])
def test_moving_the_mask_by_a_cell_moves_the_tokens(down, right) -> None:
    before, _ = paper_tokens(disc(5.5, 11.3, 12.1), STRIDE, GRID)
    after, _ = paper_tokens(disc(5.5, 11.3 + right * STRIDE, 12.1 + down * STRIDE), STRIDE, GRID)
    assert before.any()
    assert torch.equal(after, before.roll((down, right), dims=(0, 1)))


def test_tiny_mask_is_recovered_and_says_so() -> None:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[7, 8:11] = True  # 3 pixels of cell (1, 2)
    mask[8, 8:10] = True  # 2 of cell (2, 2): at least half of the largest
    mask[8, 7] = True  # 1 of cell (2, 1): less
    foreground, recovered = paper_tokens(mask, STRIDE, GRID)
    assert recovered
    assert foreground.nonzero().tolist() == [[1, 2], [2, 2]]


def test_single_pixel_gives_its_own_cell() -> None:
    mask = torch.zeros(18, SIDE, dtype=torch.bool)
    mask[17, 23] = True
    foreground, recovered = paper_tokens(mask, STRIDE, GRID)
    assert foreground.nonzero().tolist() == [[4, 5]]
    assert recovered


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_empty_mask_is_refused(dtype) -> None:
    empty = torch.zeros(SIDE, SIDE, dtype=dtype)
    with pytest.raises(ValueError, match="empty mask"):
        paper_tokens(empty, STRIDE, GRID)
    with pytest.raises(ValueError, match="empty mask"):
        official_tokens(empty, SIDE, GRID)


def test_mask_larger_than_the_grid_is_refused() -> None:
    too_wide = torch.ones(SIDE, SIDE + 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="24 x 25 mask exceeds 6 x 6 cells of 4 pixels"):
        paper_tokens(too_wide, STRIDE, GRID)
    with pytest.raises(ValueError, match="24 x 25 mask does not fit into 24 x 24"):
        official_tokens(too_wide, SIDE, GRID)


@pytest.mark.parametrize("size", [(24, 24), (18, 24), (17, 19), (24, 14), (5, 24)])
def test_valid_cells_have_their_centre_in_the_image(size) -> None:
    expected = [
        [i * STRIDE + STRIDE / 2 < size[0] and j * STRIDE + STRIDE / 2 < size[1] for j in range(6)] for i in range(6)
    ]
    assert valid_cells(size, STRIDE, GRID).tolist() == expected


def test_image_thinner_than_half_a_cell_keeps_its_first_column() -> None:
    valid = valid_cells((24, 1), STRIDE, GRID)
    assert valid[:, 0].all()
    assert not valid[:, 1:].any()


def test_background_is_the_image_without_the_foreground() -> None:
    valid = valid_cells((18, 24), STRIDE, GRID)
    foreground, _ = paper_tokens(disc(5, 9, 9, (18, 24)), STRIDE, GRID)
    background = background_cells(foreground, valid)
    for i in range(6):
        for j in range(6):
            assert bool(background[i, j]) == (bool(valid[i, j]) and not bool(foreground[i, j]))
    assert not background[5].any()


@pytest.mark.parametrize(("size", "highest"), [((24, 24), 255.0), ((18, 24), 255.0), ((24, 11), 1.0)])
def test_official_tokens_follow_the_authors_steps(resize_bilinear, size, highest) -> None:
    grey = disc(6.2, 8.4, 7.7, size).float() * highest
    grey += torch.rand(size, generator=torch.Generator().manual_seed(1)) * (highest - grey) * 0.6
    grey[grey < 0.2 * highest] = 0
    padded = [[0.0] * SIDE for _ in range(SIDE)]
    for i in range(size[0]):
        for j in range(size[1]):
            padded[i][j] = float(grey[i, j])
    level = (max(map(max, padded)) + min(map(min, padded))) / 2
    sampled = resize_bilinear([[value - level for value in row] for row in padded], GRID)
    foreground, recovered = official_tokens(grey, SIDE, GRID)
    assert foreground.tolist() == [[value > 0 for value in row] for row in sampled]
    assert foreground.any()
    assert not recovered


def test_official_tokens_see_only_the_centre_of_a_cell() -> None:
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    mask[9:11, 13:15] = False  # the four pixels in the middle of cell (2, 3)
    assert (~official_tokens(mask, SIDE, GRID)[0]).nonzero().tolist() == [[2, 3]]
    assert paper_tokens(mask, STRIDE, GRID)[0].all()


def test_official_tokens_of_a_full_mask_are_all_cells() -> None:
    assert official_tokens(torch.full((SIDE, SIDE), 255.0), SIDE, GRID)[0].all()


def test_mask_that_the_authors_code_loses_is_recovered() -> None:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[8, 12] = True
    foreground, recovered = official_tokens(mask, SIDE, GRID)
    assert recovered
    assert foreground.nonzero().tolist() == [[2, 3]]


def test_official_candidates_are_sampled_from_low_resolution_logits(resize_bilinear) -> None:
    logits = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(2))
    expected = [
        [[value > 0 for value in row] for row in resize_bilinear(candidate.tolist(), (3, 3))] for candidate in logits
    ]
    assert official_candidate_tokens(logits, (3, 3)).tolist() == expected


def test_persam_asks_for_all_pixels_at_the_centre_of_a_cell():
    """Its masks are 128 where the mean of red is 123.675; three of four pixels give 96."""
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[3:5, 3:5] = True
    mask[11:13, 11:13] = True
    mask[12, 12] = False
    cells, recovered = persam_tokens(mask, 16, (2, 2))
    assert cells.tolist() == [[True, False], [False, False]]
    assert not recovered


def test_persam_recovers_what_has_no_cell():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[9, 2] = True
    cells, recovered = persam_tokens(mask, 16, (2, 2))
    assert cells.tolist() == [[False, False], [True, False]]
    assert recovered
