"""The structure loss against a slow reference: PraNet's formula, pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch

from monai_ext.losses.structure import StructureLoss


def slow_loss(logits: torch.Tensor, mask: torch.Tensor, window: int) -> float:
    """The formula for one sample [H, W], in loops."""
    height, width = mask.shape
    half = window // 2
    entropies = weights = common = both = 0.0
    for y in range(height):
        for x in range(width):
            total = 0.0
            for v in range(y - half, y + half + 1):
                for u in range(x - half, x + half + 1):
                    if 0 <= v < height and 0 <= u < width:
                        total += float(mask[v, u])
            weight = 1 + 5 * abs(total / window**2 - float(mask[y, x]))
            p, t = 1 / (1 + math.exp(-float(logits[y, x]))), float(mask[y, x])
            entropies += weight * -(t * math.log(p) + (1 - t) * math.log(1 - p))
            weights += weight
            common += weight * p * t
            both += weight * (p + t)
    return entropies / weights + 1 - (common + 1) / (both - common + 1)


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 1, 9, 7, generator=generator), torch.rand(2, 1, 9, 7, generator=generator).round()


def test_each_sample_has_the_loss_of_the_formula(samples):
    logits, masks = samples
    expected = [slow_loss(a[0], b[0], 5) for a, b in zip(logits, masks, strict=True)]
    torch.testing.assert_close(StructureLoss(window=5)(logits, masks), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_sample_does_not_see_the_others(samples):
    logits, masks = samples
    loss = StructureLoss(window=5)
    torch.testing.assert_close(loss(logits, masks)[:1], loss(logits[:1], masks[:1]))


def test_the_official_entropy_is_the_mean_over_the_batch(samples):
    logits, masks = samples
    official = StructureLoss(official=True, window=5)(logits, masks)
    shared = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks)
    ours = StructureLoss(window=5)(logits, masks)
    assert not torch.allclose(official, ours)
    other = StructureLoss(official=True, window=5)(torch.cat([logits[:1], logits[1:] * 3]), masks)
    assert float(official[0]) != float(other[0])  # the second sample has changed the first one's loss
    assert float(official.min()) > float(shared)


def test_a_perfect_answer_costs_nothing():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 8:20] = 1
    assert float(StructureLoss()(80 * mask - 40, mask)) < 1e-3
