"""Fusion and its weight against slow references."""

from __future__ import annotations

import pytest
import torch

from monai_ext.engines.online.fusion import best_alpha, check_alpha, current_alpha, fuse, soft_dice
from monai_ext.errors import UserError


def slow_alpha(sam: torch.Tensor, own: torch.Tensor, truth: torch.Tensor) -> float:
    best, chosen = -1.0, -1.0
    for number in range(21):
        alpha = number / 20
        common = shares = 0.0
        for s, u, y in zip(sam.flatten().tolist(), own.flatten().tolist(), truth.flatten().tolist(), strict=True):
            p = 1 / (1 + 2.718281828459045 ** -(alpha * s + (1 - alpha) * u))
            common += p * y
            shares += p
        score = (2 * common + 1) / (shares + float(truth.sum()) + 1)
        if score > best + 1e-6:
            best, chosen = score, alpha
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_the_optimal_alpha_is_that_of_the_grid(seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(6, 5, generator=generator) > 0.5
    sam = 2 * truth - 1 + torch.randn(6, 5, generator=generator)
    own = 2 * truth - 1 + (1 + seed) * torch.randn(6, 5, generator=generator)
    assert best_alpha(sam, own, truth) == slow_alpha(sam, own, truth)


def test_of_equal_alphas_the_smallest_is_taken():
    same = torch.randn(4, 4)
    assert best_alpha(same, same, same > 0) == 0.0


def test_alpha_is_sam_until_there_are_five_and_then_the_mean_of_the_last_five():
    assert current_alpha([]) == 1.0
    assert current_alpha([0.0] * 4) == 1.0
    assert current_alpha([1.0, 0.0, 0.5, 0.0, 0.5, 0.0]) == pytest.approx(0.2)
    assert current_alpha([0.0] * 9, fixed=0.5) == 0.5


def test_fuse_is_linear_in_alpha():
    sam, own = torch.tensor([2.0]), torch.tensor([-4.0])
    assert [float(fuse(sam, own, alpha)) for alpha in (0, 0.5, 1)] == [-4.0, -1.0, 2.0]


def test_soft_dice_of_a_mask_with_itself_is_one():
    mask = torch.rand(5, 5) > 0.5
    assert float(soft_dice(mask.float(), mask)) == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, "half", True])
def test_impossible_alphas_are_refused(alpha):
    with pytest.raises(UserError, match="alpha"):
        check_alpha(alpha)
