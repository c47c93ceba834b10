"""Tests of monai_ext.networks.mutual_guidance: Eqs. 9 and 10 against a slow reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_ext.networks.mutual_guidance import MutualGuidance


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_number_of_parameters() -> None:
    assert sum(p.numel() for p in MutualGuidance().parameters()) == 131_584


@pytest.mark.parametrize("normalise", ["softmax", "mean", "none"])
@pytest.mark.parametrize("share", [None, 0.25])
def test_guidance_against_a_slow_reference(normalise: str, share: float | None) -> None:
    module = MutualGuidance(3, 3, normalise, share="whole" if share is None else "learned")
    if share is not None:
        nn.init.constant_(module.share, share)
    query, support = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    z_query, z_support = query.flatten(1).T, support.flatten(1).T  # [M, E1], as the paper writes them
    alpha = z_query.T @ z_query + z_support.T @ z_query  # Eq. 9
    if normalise == "softmax":
        alpha = torch.stack([row.exp() / row.exp().sum() for row in alpha / math.sqrt(8)])
    elif normalise == "mean":
        alpha = alpha / 8
    expected = torch.empty_like(z_query)
    for place in range(8):
        for channel in range(3):
            total = sum(alpha[channel, c] * z_query[place, c] for c in range(3))
            expected[place, channel] = total if share is None else share * total
    torch.testing.assert_close(module(query, support).flatten(1).T, expected + z_query)


def test_the_other_order_of_equation_10_is_another_result() -> None:
    module = MutualGuidance(3, 3)
    query, support = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    other = (query.flatten(1).T @ module.attention(query, support)).T.view_as(query) + query
    assert not torch.allclose(module(query, support), other, atol=1e-3)


def test_guidance_starts_alike_or_not() -> None:
    alike, apart = MutualGuidance(3, 3), MutualGuidance(3, 3, start="random")
    assert torch.equal(alike.query.weight, alike.support.weight)
    assert not torch.equal(apart.query.weight, apart.support.weight)
    assert alike.query.weight is not alike.support.weight


def test_a_learned_share_starts_as_the_plain_comparison_and_learns() -> None:
    module = MutualGuidance(3, 3, share="learned")
    query, support = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    guided = module(query, support)
    assert torch.equal(guided, query)
    (guided * torch.randn_like(query)).sum().backward()
    assert float(module.share.grad) != 0
