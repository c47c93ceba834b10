"""Tests of monai_ext.metrics.episodes against sums over sets of pixels."""

from __future__ import annotations

import pytest
import torch

from monai_ext.metrics.episodes import EpisodeCounts


def random_masks(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, truth = torch.rand(2, 6, 6, generator=generator) > 0.5
    return prediction, truth


EPISODES = [("liver", "a", 0), ("liver", "a", 1), ("liver", "b", 2), ("spleen", "a", 3)]


@pytest.fixture
def counts() -> EpisodeCounts:
    counts = EpisodeCounts()
    for name, case, seed in EPISODES:
        counts.add(name, case, *random_masks(seed))
    return counts


def pooled_iou(seeds: list[int], invert: bool = False) -> float:
    common = union = 0
    for seed in seeds:
        prediction, truth = random_masks(seed)
        if invert:
            prediction, truth = ~prediction, ~truth
        common += int((prediction & truth).sum())
        union += int((prediction | truth).sum())
    return common / union


def test_class_iou_pools_the_episodes_of_a_class(counts) -> None:
    expected = {"liver": pooled_iou([0, 1, 2]), "spleen": pooled_iou([3])}
    assert counts.class_iou() == pytest.approx(expected)
    assert counts.mean_iou() == pytest.approx(sum(expected.values()) / 2)


def test_fb_iou_pools_all_episodes(counts) -> None:
    assert counts.fb_iou() == pytest.approx((pooled_iou([0, 1, 2, 3]) + pooled_iou([0, 1, 2, 3], invert=True)) / 2)


def test_dice_of_a_case_pools_its_slices(counts) -> None:
    (p0, t0), (p1, t1) = random_masks(0), random_masks(1)
    common = (p0 & t0).sum() + (p1 & t1).sum()
    expected = float(2 * common / (p0.sum() + t0.sum() + p1.sum() + t1.sum()))
    dice = counts.case_dice()
    assert dice["a", "liver"] == pytest.approx(expected)
    liver = (dice["a", "liver"] + dice["b", "liver"]) / 2
    assert counts.mean_dice() == pytest.approx((liver + dice["a", "spleen"]) / 2)


def test_pixels_that_are_not_valid_do_not_count() -> None:
    prediction, truth = random_masks(5)
    valid = torch.ones(6, 6, dtype=torch.bool)
    valid[2:] = False
    part, whole = EpisodeCounts(), EpisodeCounts()
    part.add("x", "a", prediction, truth, valid)
    whole.add("x", "a", prediction[:2], truth[:2])
    assert part.case_dice() == whole.case_dice()
    assert part.fb_iou() == whole.fb_iou()


def test_nothing_predicted_is_0() -> None:
    counts = EpisodeCounts()
    truth = torch.ones(3, 3, dtype=torch.bool)
    counts.add("x", "a", ~truth, truth)
    assert (counts.mean_dice(), counts.mean_iou(), counts.fb_iou()) == (0, 0, 0)
