from __future__ import annotations

import math

import pytest
import torch

from monai_ext.losses.sampled_masks import SampledMaskLoss


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    masks = torch.rand(2, 5, 6) > 0.6
    masks[1] = False  # an image without the object
    return 2 * torch.randn(3, 2, 5, 6), masks


def slow_loss(logits: torch.Tensor, masks: torch.Tensor, counts: torch.Tensor) -> float:
    losses = []
    for one in logits:  # K
        bces, dices = [], []
        for image, mask, counted in zip(one, masks, counts, strict=True):
            bce, shared, total, pixels = 0.0, 0.0, 0.0, 0
            for x, t, c in zip(image.flatten(), mask.flatten(), counted.flatten(), strict=True):
                if not c:
                    continue
                p = 1 / (1 + math.exp(-float(x)))
                bce -= math.log(p if t else 1 - p)
                shared, total, pixels = shared + p * float(t), total + p + float(t), pixels + 1
            bces.append(bce / pixels)
            dices.append(1 - (2 * shared + 1) / (total + 1))
        losses.append(sum(bces) / len(bces) + sum(dices) / len(dices))
    return sum(losses) / len(losses)


def test_same_as_the_slow_version(drawn):
    logits, masks = drawn
    expected = slow_loss(logits, masks, torch.ones_like(masks))
    assert float(SampledMaskLoss()(logits, masks)) == pytest.approx(expected, rel=1e-5)


def test_pixels_without_a_label_can_be_left_out(drawn):
    logits, masks = drawn
    valid = torch.rand(2, 5, 6) > 0.3
    expected = slow_loss(logits, masks, valid)
    assert float(SampledMaskLoss()(logits, masks, valid)) == pytest.approx(expected, rel=1e-5)


def test_it_is_the_mean_over_the_draws_and_not_the_loss_of_a_mean(drawn):
    logits, masks = drawn
    loss = SampledMaskLoss()
    each = torch.stack([loss(one[None], masks) for one in logits])
    torch.testing.assert_close(loss(logits, masks), each.mean())
    assert abs(float(loss(logits.mean(dim=0, keepdim=True), masks) - each.mean())) > 1e-3


def test_all_draws_at_once_have_the_gradient_of_a_loop(drawn):
    logits, masks = drawn
    at_once, in_turn = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    SampledMaskLoss()(at_once, masks).backward()
    for one in in_turn:
        (SampledMaskLoss()(one[None], masks) / len(in_turn)).backward()
    torch.testing.assert_close(at_once.grad, in_turn.grad)


def test_weights(drawn):
    logits, masks = drawn
    parts = SampledMaskLoss(bce=1, dice=0)(logits, masks) + 3 * SampledMaskLoss(bce=0, dice=1)(logits, masks)
    torch.testing.assert_close(SampledMaskLoss(bce=1, dice=3)(logits, masks), parts)
