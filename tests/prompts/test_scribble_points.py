"""Tests of monai_ext.prompts.scribble_points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.prompts.prompt import POSITIVE
from monai_ext.prompts.scribble_points import SAMPLINGS, combine_masks, sample_scribble, scribble_prompts


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def scribble() -> np.ndarray:
    """Lines of class 1 (30 pixels), 2 (4 pixels) and background (20 pixels); 255 elsewhere, [24, 40]."""
    result = np.full((24, 40), 255, np.uint8)
    result[5, 4:34], result[12:16, 8], result[2, 10:30] = 1, 2, 0
    return result


def placed(prompt, positive: bool) -> list[tuple[int, int]]:
    chosen = prompt.points[(prompt.labels == POSITIVE) == positive]
    return [(int(x), int(y)) for x, y in chosen]


@pytest.mark.parametrize("sampling", ["random", "even"])
def test_points_lie_on_the_line_and_are_not_repeated(sampling: str) -> None:
    mask = scribble() == 1
    points = sample_scribble(mask, 10, sampling, rng()).astype(int)
    assert len({tuple(p) for p in points}) == 10
    assert all(mask[y, x] for x, y in points)


def test_even_points_are_at_equal_steps_from_end_to_end() -> None:
    points = sample_scribble(scribble() == 1, 10, "even", rng())
    assert points[:, 0].tolist() == [4 + int(k * 29 / 9) for k in range(10)]


def test_skeleton_points_lie_within_a_pixel_of_a_thick_line() -> None:
    mask = np.zeros((20, 40), bool)
    mask[8:13, 5:35] = True
    points = sample_scribble(mask, 10, "skeleton", rng())
    assert len(points) == 10
    assert (np.abs(points[:, 1] - 10) <= 1).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_short_scribbles_give_all_their_pixels_and_empty_ones_none(sampling: str) -> None:
    mask = np.zeros((9, 9), bool)
    assert sample_scribble(mask, 10, sampling, rng()).shape == (0, 2)
    mask[4, 4] = True
    assert sample_scribble(mask, 10, sampling, rng()).tolist() == [[4, 4]]


def test_random_points_follow_the_seed() -> None:
    mask = scribble() == 1
    first, again = (sample_scribble(mask, 5, "random", np.random.default_rng(1)) for _ in range(2))
    other = sample_scribble(mask, 5, "random", np.random.default_rng(2))
    assert (first == again).all()
    assert (first != other).any()


def test_negatives_are_on_every_other_scribble_and_the_background_never_on_unlabelled_pixels() -> None:
    drawn = scribble()
    prompts = scribble_prompts(drawn, 3, rng())
    assert set(prompts) == {1, 2}  # class 3 is not scribbled on
    for own, prompt in prompts.items():
        assert {int(drawn[y, x]) for x, y in placed(prompt, True)} == {own}
        values = [int(drawn[y, x]) for x, y in placed(prompt, False)]
        assert set(values) == {0, 1, 2} - {own}
        assert max(values.count(v) for v in set(values)) <= 10


def test_one_class_takes_the_first_of_its_order_that_is_there() -> None:
    drawn = scribble()
    prompts = scribble_prompts(drawn, 3, rng(), negatives="one_class", order={1: [3, 2], 2: [3]})
    assert {int(drawn[y, x]) for x, y in placed(prompts[1], False)} == {2}
    assert {int(drawn[y, x]) for x, y in placed(prompts[2], False)} == {0}  # class 3 is missing


def test_without_any_other_scribble_there_are_no_negatives() -> None:
    drawn = np.full((8, 8), 255, np.uint8)
    drawn[3, 2:6] = 1
    assert placed(scribble_prompts(drawn, 2, rng())[1], False) == []


@pytest.mark.parametrize("wrong", [{"sampling": "grid"}, {"negatives": "none"}, {"points": 0}])
def test_unknown_options_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        scribble_prompts(scribble(), 3, rng(), **wrong)


def slow_argmax(probabilities: np.ndarray, present: list[int]) -> np.ndarray:
    result = np.zeros(probabilities.shape[1:], np.uint8)
    for y in range(result.shape[0]):
        for x in range(result.shape[1]):
            best = 0.5
            for c, p in zip(present, probabilities[:, y, x], strict=True):
                if p >= best and not (p == best and result[y, x]):
                    best, result[y, x] = p, c
    return result


def slow_paint(probabilities: np.ndarray, present: list[int], order: list[int]) -> np.ndarray:
    result = np.zeros(probabilities.shape[1:], np.uint8)
    for c in order:
        for n, other in enumerate(present):
            if other == c:
                result[probabilities[n] >= 0.5] = c
    return result


def test_masks_are_combined_as_the_references_say() -> None:
    probabilities, present = torch.rand(3, 12, 9, generator=torch.Generator().manual_seed(0)), [1, 2, 4]
    assert (combine_masks(probabilities, present).numpy() == slow_argmax(probabilities.numpy(), present)).all()
    painted = combine_masks(probabilities, present, [2, 3, 1, 4]).numpy()
    assert (painted == slow_paint(probabilities.numpy(), present, [2, 3, 1, 4])).all()
    assert {0, 1, 2, 4} == set(np.unique(painted))


@pytest.mark.parametrize("order", [None, [2, 1]])
def test_a_missing_class_does_not_empty_the_slice(order: list[int] | None) -> None:
    probabilities = torch.full((1, 4, 4), 0.9)
    assert (combine_masks(probabilities, [1], order) == 1).all()
    assert not combine_masks(torch.zeros(0, 4, 4), [], order).any()
