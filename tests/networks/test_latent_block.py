"""Tests of monai_ext.networks.latent_block: the prior and posterior blocks against a slow reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_ext.networks.latent_block import LOG_VARIANCE_LIMIT, Gaussian, LatentBlock


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_number_of_parameters() -> None:
    assert parameters(LatentBlock(256, 32)) == 8_536_896
    assert parameters(LatentBlock(256, 32, pool=4)) == 2_245_440
    with torch.device("meta"):
        assert parameters(LatentBlock(256, 32, pool=None)) == 134_366_016


def test_latent_block_against_a_slow_reference() -> None:
    block = LatentBlock(3, 4, latent=2, hidden=(6, 5), pool=2)
    features = torch.randn(2, 3, 4, 4)
    cells = [features[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(dim=(2, 3)) for y in (0, 1) for x in (0, 1)]
    h = torch.stack(cells, dim=2).flatten(1)
    first, second, last = (m for m in block.layers if isinstance(m, nn.Linear))
    h = (h @ first.weight.T + first.bias).clamp(min=0)
    h = (h @ second.weight.T + second.bias).clamp(min=0)
    h = h @ last.weight.T + last.bias
    mean, log_variance = block(features)
    torch.testing.assert_close(mean, h[:, :2])
    torch.testing.assert_close(log_variance, h[:, 2:])


def test_log_variances_are_bounded() -> None:
    block = LatentBlock(1, 2, latent=1, hidden=(2, 2), pool=None)
    nn.init.constant_(block.layers[-1].bias, 1e6)
    assert float(block(torch.zeros(1, 1, 2, 2)).log_variance.detach()) == LOG_VARIANCE_LIMIT


def test_samples_have_the_distributions_mean_and_variance() -> None:
    gaussian = Gaussian(torch.full((20000, 2), 3.0), torch.full((20000, 2), math.log(4.0)))
    z = gaussian.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(dim=0), torch.full((2,), 3.0), atol=0.06, rtol=0)
    torch.testing.assert_close(z.std(dim=0), torch.full((2,), 2.0), atol=0.06, rtol=0)
    assert torch.equal(z, gaussian.sample(torch.Generator().manual_seed(0)))
