"""Tests of monai_ext.losses.partial against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monai_ext.losses.partial import PartialCrossEntropy, PseudoLabelDice, ScribbleMaskLoss, mix_pseudo_labels

IGNORE = 255


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> Tensor:
    """Class 3 is nowhere; the second slice is half unlabelled."""
    values = torch.randint(0, 3, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    values[1, :, 2:] = IGNORE
    return values


def test_cross_entropy_is_the_mean_over_labelled_pixels(logits, target) -> None:
    costs = []
    for b, h, w in torch.cartesian_prod(*(torch.arange(n) for n in target.shape)).tolist():
        if target[b, h, w] != IGNORE:
            values = logits[b, :, h, w].exp()
            costs.append(-math.log(float(values[target[b, h, w]] / values.sum())))
    assert float(PartialCrossEntropy()(logits, target)) == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_cross_entropy_of_nothing_is_zero_and_can_be_differentiated(logits) -> None:
    logits.requires_grad_()
    loss = PartialCrossEntropy()(logits, torch.full((2, 3, 5), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert not bool(logits.grad.any())


def slow_dice(p: Tensor, target: Tensor, smooth: float = 1e-5) -> float:
    losses = []
    for k in range(p.shape[1]):
        common = predicted = true = 0.0
        for b, h, w in torch.cartesian_prod(*(torch.arange(n) for n in target.shape)).tolist():
            if target[b, h, w] == IGNORE:
                continue
            probability, truth = float(p[b, k, h, w]), float(target[b, h, w] == k)
            common += probability * truth
            predicted += probability**2
            true += truth**2
        losses.append(1 - (2 * common + smooth) / (predicted + true + smooth))
    return sum(losses) / len(losses)


def test_dice_sums_over_the_known_pixels_of_the_batch(logits, target) -> None:
    p = logits.softmax(1)
    assert float(PseudoLabelDice()(p, target)) == pytest.approx(slow_dice(p, target), rel=1e-5)


def test_dice_mask_belongs_to_its_own_slice(logits, target) -> None:
    """What is ignored may be anything; a mask that broadcasts over pairs of slices would let it count."""
    p = logits.softmax(1)
    changed = p.clone()
    changed[1, :, :, 2:] = changed[1, :, :, 2:].flip(0)
    assert torch.equal(PseudoLabelDice()(p, target), PseudoLabelDice()(changed, target))


def test_absent_class_that_is_not_predicted_costs_nothing() -> None:
    target = torch.tensor([[[0, 1]]])
    perfect = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]]])
    assert float(PseudoLabelDice()(perfect, target)) == pytest.approx(0, abs=1e-6)
    wrong = torch.tensor([[[[0.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]]])
    assert float(PseudoLabelDice()(wrong, target)) == pytest.approx(2 / 3, abs=1e-4)


def test_empty_slice_is_background_alone() -> None:
    empty = torch.zeros(1, 2, 2, dtype=torch.long)
    p = torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)], dim=1)
    assert float(PseudoLabelDice()(p, empty)) == pytest.approx(0, abs=1e-6)


def test_mixture_is_of_the_better_branch_where_it_weighs_all() -> None:
    main, aux = torch.tensor([[[[0.6]], [[0.4]]]]), torch.tensor([[[[0.1]], [[0.9]]]])
    assert mix_pseudo_labels(main, aux, 1.0).item() == 0
    assert mix_pseudo_labels(main, aux, 0.5).item() == 1
    assert not mix_pseudo_labels(main.requires_grad_(), aux, 0.5).requires_grad


def test_mask_loss_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, target = torch.randn(2, 4, 4, generator=generator), torch.rand(2, 4, 4, generator=generator)
    scribble = torch.randint(-1, 2, (2, 4, 4), generator=generator)
    scribble[1] = -1  # a mask without scribbles
    expected = []
    for n in range(2):
        p = torch.sigmoid(logits[n])
        both, sizes = float((p * target[n]).sum()), float((p + target[n]).sum())
        cost = 2 - (2 * both + 1e-5) / (sizes + 1e-5) - (both + 1e-5) / (sizes - both + 1e-5)
        on = [
            -math.log(float(q if s == 1 else 1 - q))
            for q, s in zip(p.flatten(), scribble[n].flatten(), strict=True)
            if s >= 0
        ]
        expected.append(cost + (sum(on) / len(on) if on else 0))
    assert float(ScribbleMaskLoss()(logits, target, scribble)) == pytest.approx(sum(expected) / 2, rel=1e-5)
