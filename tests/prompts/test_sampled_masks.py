from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.prompts.sampled_masks import MERGES, STRATEGIES, check_strategy, mask_uncertainty, merge_logits

FOUR = torch.tensor(
    [
        [3.0, -1.0, 5.0, -1.0, -1.0],
        [3.0, -1.0, -9.0, 1.0, -1.0],
        [3.0, -1.0, -1.0, 1.0, -1.0],
        [3.0, 2.0, -1.0, -1.0, -1.0],
    ]
)
"""Four masks of five pixels: all, one, one (sure), two of four, none."""


@pytest.mark.parametrize(
    ("strategy", "held"),
    [
        ("max_logits", [1, 1, 1, 1, 0]),
        ("max_binary", [1, 1, 1, 1, 0]),
        ("mean_logits", [1, 0, 0, 0, 0]),
        ("mean_binary", [1, 0, 0, 1, 0]),  # a tie is in
        ("majority", [1, 0, 0, 0, 0]),  # a tie is out
    ],
)
def test_merged_by_hand(strategy, held):
    assert (merge_logits(FOUR, strategy) > 0).int().tolist() == held


@pytest.mark.parametrize("strategy", ["max_binary", "mean_binary", "majority"])
def test_of_two_structures_the_one_with_more_votes_gets_a_pixel(strategy):
    fewer, more = torch.tensor([[1.0], [2.0], [9.0], [-1.0]]), torch.tensor([[1.0], [1.0], [1.0], [1.0]])
    assert merge_logits(more, strategy) > merge_logits(fewer, strategy) > 0


def test_logits_are_merged_as_numbers():
    assert merge_logits(FOUR, "max_logits").tolist() == [3, 2, 5, 1, -1]
    assert merge_logits(FOUR, "mean_logits").tolist() == [3, -0.25, -1.5, 0, -1]


@pytest.mark.parametrize("strategy", MERGES)
def test_equal_masks_stay(strategy):
    logits = torch.randn(1, 6).expand(5, -1)
    assert torch.equal(merge_logits(logits, strategy) > 0, logits[0] > 0)


def test_unknown_strategies_are_refused():
    with pytest.raises(UserError, match="strategy 'median' is unknown"):
        merge_logits(FOUR, "median")
    with pytest.raises(UserError, match="strategy 'mean_prompt' is unknown"):
        merge_logits(FOUR, "mean_prompt")  # there is nothing to merge
    for strategy in STRATEGIES:
        check_strategy(strategy)


def test_uncertainty_same_as_the_slow_version():
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 3, 5)
    found = mask_uncertainty(logits)
    probability = [[[1 / (1 + math.exp(-x)) for x in row] for row in one] for one in logits.tolist()]
    entropies, spread, total = [], 0.0, 0.0
    for i in range(3):
        for j in range(5):
            values = [p[i][j] for p in probability]
            mean = sum(values) / 4
            variance = sum((v - mean) ** 2 for v in values) / 4
            assert float(found.variance[i, j]) == pytest.approx(variance, abs=1e-6)
            spread, total = spread + variance, total + mean
            if any(v > 0.5 for v in values):
                entropies.append(-mean * math.log(mean) - (1 - mean) * math.log(1 - mean))
    assert found.entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    assert found.variance_ratio == pytest.approx(spread / total, rel=1e-5)
    dices = []
    for a, b in combinations([{(i, j) for i in range(3) for j in range(5) if p[i][j] > 0.5} for p in probability], 2):
        dices.append(2 * len(a & b) / (len(a) + len(b)))
    assert found.agreement == pytest.approx(sum(dices) / 6, rel=1e-5)


def test_equal_masks_are_sure():
    found = mask_uncertainty(torch.randn(1, 4, 4).expand(3, -1, -1))
    assert found.agreement == 1
    assert float(found.variance.max()) == pytest.approx(0, abs=1e-12)


def test_masks_that_hold_nothing_agree():
    found = mask_uncertainty(torch.full((3, 4, 4), -5.0))
    assert (found.agreement, found.entropy, found.variance_ratio) == (1, 0, 0)


def test_one_mask_has_no_uncertainty():
    with pytest.raises(ValueError, match="draw two or more"):
        mask_uncertainty(torch.zeros(1, 4, 4))
