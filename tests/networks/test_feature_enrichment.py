"""Tests of monai_ext.networks.feature_enrichment: Eq. 2 against a slow reference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_ext.networks.feature_enrichment import FeatureEnrichment


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_number_of_parameters() -> None:
    assert sum(p.numel() for p in FeatureEnrichment().parameters()) == 280_064


@pytest.mark.parametrize("form", ["residual", "printed"])
def test_enrichment_against_a_slow_reference(form: str) -> None:
    """Eq. 2, channel by channel."""
    module = FeatureEnrichment(3, 2, form)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    features, z = torch.randn(2, 3, 4, 4), torch.randn(2, 2)
    enriched = module(features, z)
    beta, alpha = module.scale(z), module.shift(z)
    for b in range(2):
        for t in range(3):
            factor = beta[b, t] + (1 if form == "residual" else 0)
            torch.testing.assert_close(enriched[b, t], factor * features[b, t] + alpha[b, t])


def test_enrichment_starts_as_the_identity() -> None:
    features = torch.randn(1, 8, 4, 4)
    assert torch.equal(FeatureEnrichment(8, 4)(features, torch.randn(1, 4)), features)
