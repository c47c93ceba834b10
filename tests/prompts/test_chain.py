from __future__ import annotations

from itertools import product

import pytest
import torch

from monai_ext.prompts.chain import choose_chain, pairwise_dice


def total(costs, masks, chosen) -> float:
    """The formula, written out."""
    value = sum(float(cost[c]) for cost, c in zip(costs, chosen, strict=True))
    for k in range(len(costs) - 1):
        a, b = masks[k][chosen[k]], masks[k + 1][chosen[k + 1]]
        dice = 2 * int((a & b).sum()) / (int(a.sum()) + int(b.sum()))
        value += (float(costs[k][chosen[k]]) + float(costs[k + 1][chosen[k + 1]])) / 2 * (1 - dice)
    return value


def test_the_chain_is_the_best_of_all():
    generator = torch.Generator().manual_seed(3)
    counts = [3, 2, 4, 3]
    costs = [torch.rand(n, generator=generator) for n in counts]
    masks = [torch.rand(n, 6, 6, generator=generator) > 0.5 for n in counts]
    best = min(product(*(range(n) for n in counts)), key=lambda chosen: total(costs, masks, chosen))
    assert tuple(choose_chain(costs, masks)) == best


def test_a_slightly_nearer_candidate_elsewhere_yields_to_its_neighbours():
    here, there = torch.zeros(2, 8, 8, dtype=torch.bool)
    here[:4], there[4:] = True, True
    masks = [torch.stack([here, there])] * 3
    costs = [torch.tensor([0.1, 0.2]), torch.tensor([0.12, 0.11]), torch.tensor([0.1, 0.2])]
    assert choose_chain(costs, masks) == [0, 0, 0]
    assert choose_chain(costs[1:2], masks[1:2]) == [1]
    assert choose_chain([], []) == []


def test_a_candidate_of_infinite_cost_is_not_taken():
    masks = [torch.ones(2, 4, 4, dtype=torch.bool)] * 2
    assert choose_chain([torch.tensor([torch.inf, 1.0]), torch.tensor([1.0, torch.inf])], masks) == [1, 0]


def test_dice_of_all_pairs():
    a = torch.tensor([[[True, True]], [[False, False]]])
    b = torch.tensor([[[True, False]], [[False, False]]])
    assert pairwise_dice(a, b).tolist() == [[pytest.approx(2 / 3), 0.0], [0.0, 1.0]]
