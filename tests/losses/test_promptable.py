"""Tests of monai_ext.losses.promptable against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monai_ext.losses.promptable import DenseClassLoss, PromptableLoss, mask_iou


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_iou(logits: Tensor, mask: Tensor) -> float:
    both = either = 0
    for x, y in zip(logits.flatten().tolist(), mask.flatten().tolist(), strict=True):
        both += x > 0 and y > 0.5
        either += x > 0 or y > 0.5
    return both / either if either else 1.0


def slow_dice_loss(logits: Tensor, mask: Tensor) -> float:
    p = [sigmoid(x) for x in logits.flatten().tolist()]
    y = mask.flatten().tolist()
    return 1 - (2 * sum(a * b for a, b in zip(p, y, strict=True)) + 1e-5) / (sum(p) + sum(y) + 1e-5)


def slow_focal_loss(logits: Tensor, mask: Tensor) -> float:
    """Lin et al. 2017, Eq. 5, with alpha 0.25 and gamma 2; the mean over the pixels."""
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), mask.flatten().tolist(), strict=True):
        p, alpha = (sigmoid(x), 0.25) if y else (1 - sigmoid(x), 0.75)
        total -= alpha * (1 - p) ** 2 * math.log(p)
    return total / logits.numel()


def case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 1, 6, 5, generator=generator) * 2
    masks = (torch.rand(4, 1, 6, 5, generator=generator) < 0.4).float()
    logits[1], masks[2] = -3.0, 0.0  # an empty prediction, an empty mask
    logits[3], masks[3] = -1.0, 0.0  # both empty
    return logits, torch.rand(4, 1, generator=generator), masks


def test_iou_is_counted_pixel_by_pixel() -> None:
    logits, _, masks = case()
    expected = [slow_iou(x, y) for x, y in zip(logits, masks, strict=True)]
    assert mask_iou(logits, masks > 0.5).tolist() == pytest.approx(expected)
    assert mask_iou(logits, masks > 0.5)[1:].tolist() == [0, 0, 1]


def test_a_structure_that_covers_half_of_no_pixel_is_missed_by_an_empty_prediction() -> None:
    shares = torch.zeros(1, 1, 4, 4)
    shares[0, 0, 1, 1] = 0.3
    logits, quality = torch.full((1, 1, 4, 4), -5.0), torch.zeros(1, 1)
    loss = PromptableLoss(0.0, 0.0, 1.0)
    assert float(loss(logits, quality, shares, shares > 0)) == 0  # predicted and true IoU are 0
    assert float(loss(logits, quality, shares)) == 1


@pytest.mark.parametrize("weights", [(1.0, 20.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_loss_is_the_weighted_sum_of_its_parts(weights: tuple[float, float, float]) -> None:
    logits, quality, masks = case()
    dice, focal, iou = weights
    expected = 0.0
    for x, q, y in zip(logits, quality, masks, strict=True):
        error = (float(q) - slow_iou(x, y)) ** 2
        expected += (dice * slow_dice_loss(x, y) + focal * slow_focal_loss(x, y) + iou * error) / len(logits)
    assert float(PromptableLoss(*weights)(logits, quality, masks)) == pytest.approx(expected, rel=1e-5)


def test_weights_are_those_of_the_paper_by_default() -> None:
    logits, quality, masks = case()
    assert torch.equal(PromptableLoss()(logits, quality, masks), PromptableLoss(1, 20, 1)(logits, quality, masks))


def test_shares_of_a_pixel_are_targets_too() -> None:
    """Focal loss with alpha and the probability of the truth mixed by the share, as torchvision defines it."""
    logits, quality, _ = case()
    shares = torch.rand(logits.shape, generator=torch.Generator().manual_seed(3))
    expected = 0.0
    for x, y in zip(logits.flatten().tolist(), shares.flatten().tolist(), strict=True):
        p = sigmoid(x)
        alpha, truth = 0.25 * y + 0.75 * (1 - y), p * y + (1 - p) * (1 - y)
        expected -= alpha * (1 - truth) ** 2 * (y * math.log(p) + (1 - y) * math.log(1 - p)) / logits.numel()
    assert float(PromptableLoss(0, 1, 0)(logits, quality, shares)) == pytest.approx(expected, rel=1e-5)


def test_iou_head_is_taught_without_moving_the_mask() -> None:
    logits, quality, masks = case()
    logits.requires_grad_(), quality.requires_grad_()
    PromptableLoss(0, 0, 1)(logits, quality, masks).backward()
    assert logits.grad is None or not bool(logits.grad.any())
    assert bool(quality.grad.any())


def test_loss_falls_towards_the_mask() -> None:
    _, _, masks = case()
    values = [
        float(PromptableLoss()((2 * masks - 1) * sure, torch.full((4, 1), iou), masks))
        for sure, iou in ((-5.0, 0.0), (1.0, 0.5), (5.0, 1.0), (20.0, 1.0))
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.01


def test_dense_targets_are_shares_of_pixels() -> None:
    torch.manual_seed(0)
    loss = DenseClassLoss(channels=5, classes=2)
    features = torch.randn(2, 5, 2, 3)
    weights, biases = loss.classifier.weight.detach()[:, :, 0, 0], loss.classifier.bias.detach()
    labels = torch.randint(0, 3, (2, 8, 12))
    expected = 0.0
    for b in range(2):
        for i in range(2):
            for j in range(3):
                scores = [
                    sum(float(w * f) for w, f in zip(row, features[b, :, i, j], strict=True)) + float(bias)
                    for row, bias in zip(weights, biases, strict=True)
                ]
                norm = math.log(sum(math.exp(s) for s in scores))
                cell = labels[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten().tolist()
                expected -= sum(scores[c] - norm for c in cell) / len(cell)
    known = torch.tensor([True, True])
    assert float(loss(features, labels, known).detach()) == pytest.approx(expected / 12, rel=1e-5)


def test_dense_loss_ignores_images_of_other_classes() -> None:
    torch.manual_seed(0)
    loss = DenseClassLoss(channels=5, classes=2)
    features, labels = torch.randn(3, 5, 2, 2), torch.randint(0, 3, (3, 4, 4))
    labels[1] = 9  # not a class at all
    known = torch.tensor([True, False, True])
    expected = loss(features[known], labels[known], torch.tensor([True, True]))
    assert torch.equal(loss(features, labels, known), expected)


def test_dense_loss_is_zero_where_nothing_is_known() -> None:
    loss = DenseClassLoss(channels=5, classes=2)
    assert float(loss(torch.randn(2, 5, 2, 2), torch.ones(2, 4, 4), torch.tensor([False, False]))) == 0


def test_pixels_of_unknown_class_have_no_share_in_a_cell() -> None:
    torch.manual_seed(0)
    loss = DenseClassLoss(channels=5, classes=2)
    features, labels, decided = torch.randn(1, 5, 1, 1), torch.tensor([[[1, 0], [2, 2]]]), torch.ones(1, 2, 2).bool()
    decided[0, 0, 1] = decided[0, 1, 0] = False
    surprise = (-loss.classifier(features)[0, :, 0, 0].log_softmax(0)).tolist()
    known = torch.tensor([True])
    assert loss(features, labels, known, decided).item() == pytest.approx(
        float(surprise[1] + surprise[2]) / 4, rel=1e-5
    )
