"""Tests of monai_ext.networks.spatial_interaction: Eqs. 3 to 6 against a slow reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ext.networks.spatial_interaction import Projected, SpatialInteraction


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_number_of_parameters() -> None:
    assert sum(p.numel() for p in SpatialInteraction().parameters()) == 197_376


def slow_relevance(a: dict[str, Tensor], b: dict[str, Tensor], values: str) -> float:
    """r of two images, place by place; each has Q, K, V of [M, E] and weights w of [M]."""

    def one_side(own: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        total = weight = 0.0
        for place in range(len(own["w"])):
            if values == "other":
                logits = [float(own["Q"][place] @ k) / math.sqrt(len(k)) for k in other["K"]]
            else:
                logits = [float(other["Q"][place] @ k) / math.sqrt(len(k)) for k in own["K"]]
            exps = [math.exp(x) for x in logits]
            aligned = sum(e / sum(exps) * v for e, v in zip(exps, other["V"], strict=True))
            cosine = float(own["V"][place] @ aligned) / float(own["V"][place].norm() * aligned.norm())
            total += cosine * float(own["w"][place])
            weight += float(own["w"][place])
        return total / weight

    return one_side(a, b) + one_side(b, a)


@pytest.mark.parametrize("values", ["other", "printed"])
@pytest.mark.parametrize("anchors", [None, 2])
def test_relevance_against_a_slow_reference(values: str, anchors: int | None) -> None:
    module = SpatialInteraction(5, 4, values)
    features = torch.randn(3, 5, 3, 3)
    weights = torch.rand(3, 9) * (torch.rand(3, 9) > 0.4)
    projected = module(features)
    relevance = module.relevance(projected, weights, anchors)
    assert relevance.shape == (anchors or 3, 3)
    images = [dict(zip("QKVw", (*(p[k] for p in projected), weights[k]), strict=True)) for k in range(3)]
    for i in range(anchors or 3):
        for j in range(3):
            assert float(relevance[i, j].detach()) == pytest.approx(
                slow_relevance(images[i], images[j], values), abs=1e-5
            )


def test_projections_are_one_by_one_convolutions() -> None:
    """Eq. 3."""
    module = SpatialInteraction(5, 4)
    features = torch.randn(2, 5, 3, 3)
    keys = module(features).keys
    assert keys.shape == (2, 9, 4)
    place = module.keys.weight[:, :, 0, 0] @ features[1, :, 2, 0] + module.keys.bias
    torch.testing.assert_close(keys[1, 6], place)


def test_an_image_without_mask_is_compared_everywhere() -> None:
    module = SpatialInteraction(5, 4)
    projected = module(torch.randn(2, 5, 3, 3))
    everywhere = module.relevance(projected, torch.ones(2, 9))
    torch.testing.assert_close(module.relevance(projected, torch.zeros(2, 9)), everywhere)


def test_relevance_of_an_image_with_itself_is_largest_for_sharp_attention() -> None:
    values = F.normalize(torch.randn(1, 9, 4), dim=-1)
    projected = Projected(100 * values, values, values)
    relevance = SpatialInteraction(5, 4).relevance(projected, torch.ones(1, 9))
    assert float(relevance) == pytest.approx(2, abs=1e-4)
