from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.prompts.annotations import KINDS, annotate, downsample, from_box, from_points


@pytest.fixture
def ellipse() -> np.ndarray:
    y, x = np.mgrid[:40, :64]
    return ((y - 18) / 10) ** 2 + ((x - 30) / 15) ** 2 <= 1


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_mask_is_itself(ellipse):
    assert np.array_equal(annotate(ellipse, "mask", rng()), ellipse)


def test_a_box_is_filled_and_tight(ellipse):
    box = annotate(ellipse, "box", rng())
    rows, columns = np.flatnonzero(ellipse.any(axis=1)), np.flatnonzero(ellipse.any(axis=0))
    expected = np.zeros_like(ellipse)
    expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert np.array_equal(box, expected)


def test_points_are_pixels_of_the_object(ellipse):
    points = annotate(ellipse, "points", rng(), count=20)
    assert points.sum() == 20
    assert not (points & ~ellipse).any()


def test_a_small_object_has_fewer_points():
    mask = np.zeros((8, 8), dtype=bool)
    mask[2, 3:5] = True
    assert np.array_equal(annotate(mask, "points", rng()), mask)


@pytest.mark.parametrize("seed", range(5))
def test_scribbles_stay_inside_and_leave_something(ellipse, seed):
    scribble = annotate(ellipse, "scribble", rng(seed), count=3)
    assert scribble.any()
    assert not (scribble & ~ellipse).any()
    assert scribble.sum() < ellipse.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel_is_never_lost_and_seeds_repeat(kind):
    mask = np.zeros((9, 9), dtype=bool)
    mask[4, 7] = True
    assert np.array_equal(annotate(mask, kind, rng(1)), mask)
    large = np.ones((30, 20), dtype=bool)
    assert np.array_equal(annotate(large, kind, rng(1)), annotate(large, kind, rng(1)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_is_refused(kind):
    with pytest.raises(UserError, match="annotation of a reference is empty"):
        annotate(np.zeros((4, 4), dtype=bool), kind, rng())


def test_unknown_kinds_and_impossible_counts_are_refused(ellipse):
    with pytest.raises(UserError, match="annotation 'text' is unknown: choose one of mask, box, scribble, points"):
        annotate(ellipse, "text", rng())
    with pytest.raises(UserError, match="points or strokes is 0"):
        annotate(ellipse, "points", rng(), count=0)


def test_given_points_become_pixels():
    assert np.argwhere(from_points([(3, 1), (0.4, 5.6)], (7, 5))).tolist() == [[1, 3], [6, 0]]


@pytest.mark.parametrize("point", [(5, 0), (-1, 0), (0, 7)])
def test_points_outside_their_image_are_refused(point):
    with pytest.raises(UserError, match=r"lies outside its image of 5 x 7 pixels"):
        from_points([(1, 1), point], (7, 5))


def test_no_point_and_no_box_are_refused():
    with pytest.raises(UserError, match="has no point"):
        from_points([], (4, 4))
    with pytest.raises(UserError, match="does not touch"):
        from_box((9, 9, 12, 12), (4, 4))


# ---- onto the grid ---------------------------------------------------------------------------------------------------


def slow_cells(mask: np.ndarray, side: int, grid: int, rule: str) -> np.ndarray:
    step = side // grid
    padded = np.zeros((side, side))
    padded[: mask.shape[0], : mask.shape[1]] = mask
    cells = np.zeros((grid, grid))
    for i in range(grid):
        for j in range(grid):
            block = padded[i * step : (i + 1) * step, j * step : (j + 1) * step]
            cells[i, j] = {"max": block.max(), "area": block.mean(), "nearest": block[0, 0]}[rule]
    return cells


@pytest.mark.parametrize("rule", ["max", "area", "nearest"])
def test_same_as_the_slow_version(ellipse, rule):
    cells = downsample(torch.from_numpy(ellipse)[None], 64, 8, rule)
    np.testing.assert_allclose(cells[0].numpy(), slow_cells(ellipse, 64, 8, rule), atol=1e-6)


def test_points_are_lost_between_the_cells_by_nearest_alone(ellipse):
    points = torch.from_numpy(from_points([(13, 11)], (40, 64)))[None]
    for rule in ("max", "area"):
        assert int((downsample(points, 64, 8, rule) > 0).sum()) == 1
    with pytest.raises(UserError, match="nothing of a reference's annotation is left on 8 x 8 cells"):
        downsample(points, 64, 8, "nearest")


def test_how_often_points_are_lost_by_nearest():
    """About (63/64)^20 of the draws on 64 x 64 cells of 512 pixels, the note's 73 %."""
    full, lost = np.ones((512, 512), dtype=bool), 0
    for seed in range(200):
        drawn = annotate(full, "points", rng(seed))
        lost += not drawn[::8, ::8].any()
    assert lost / 200 == pytest.approx((63 / 64) ** 20, abs=0.1)


def test_an_empty_annotation_is_never_passed_on(ellipse):
    both = torch.stack([torch.from_numpy(ellipse), torch.zeros(40, 64, dtype=torch.bool)])
    with pytest.raises(UserError, match="annotation of a reference is empty"):
        downsample(both, 64, 8)
    with pytest.raises(UserError, match="mask_downsample 'mean' is unknown"):
        downsample(both, 64, 8, "mean")
