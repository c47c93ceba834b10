"""Tests of monai_ext.losses.correspondence against a loop over cells."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ext.losses.correspondence import CorrespondenceLoss


def slow(
    features: Tensor, labels: Tensor, valid: Tensor, number: int, one: int, other: int, temperature: float
) -> float:
    """-log of the mass that region ``number`` of image ``one`` has on itself in image ``other``."""
    cells, factor = features.shape[-1], labels.shape[-1] // features.shape[-1]

    def share(image: int, i: int, j: int) -> float:
        cell = labels[image, factor * i : factor * (i + 1), factor * j : factor * (j + 1)]
        return float((cell == number).float().mean())

    places = [(i, j) for i in range(cells) for j in range(cells)]
    mean = sum(share(one, i, j) * features[one, :, i, j] for i, j in places)
    weights = {
        (i, j): math.exp(float(F.cosine_similarity(mean, features[other, :, i, j], dim=0)) / temperature)
        for i, j in places
        if valid[other, factor * i : factor * (i + 1), factor * j : factor * (j + 1)].float().mean() > 0.5
    }
    inside = sum(w * share(other, i, j) for (i, j), w in weights.items())
    return -math.log(inside / sum(weights.values()) + 1e-6)


def pair() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 8, 8), generator=generator)
    labels[1][labels[1] == 3] = 0  # region 3 is seen in the first view alone
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[1, 6:] = False
    return torch.randn(2, 5, 4, 4, generator=generator), labels, valid


def test_loss_is_counted_cell_by_cell() -> None:
    features, labels, valid = pair()
    expected = [slow(features, labels, valid, n, a, 1 - a, 0.2) for n in (1, 2) for a in (0, 1)]
    found = CorrespondenceLoss(temperature=0.2)(features, labels, valid, torch.Generator())
    assert sorted(found.tolist()) == pytest.approx(sorted(expected), rel=1e-4)


def test_loss_falls_to_nothing_where_a_region_finds_itself() -> None:
    _, labels, valid = pair()
    labels = torch.zeros_like(labels)
    labels[0, :4, :4], labels[1, 2:6, 4:] = 1, 1
    shares = F.avg_pool2d((labels == 1).float()[:, None], 2)
    features = torch.cat([shares, 1 - shares], dim=1)
    valid[:] = True
    loss = CorrespondenceLoss(temperature=0.02)
    assert float(loss(features, labels, valid, torch.Generator()).max()) < 1e-4
    assert float(loss(features.flip(2), labels, valid, torch.Generator()).min()) > 1


def test_no_more_regions_than_asked_for() -> None:
    features, labels, valid = pair()
    drawn = CorrespondenceLoss(regions=1)(features, labels, valid, torch.Generator().manual_seed(1))
    assert len(drawn) == 2  # both ways
    assert torch.equal(drawn, CorrespondenceLoss(regions=1)(features, labels, valid, torch.Generator().manual_seed(1)))


def test_pairs_do_not_mix() -> None:
    features, labels, valid = pair()
    other = torch.randn(2, 5, 4, 4), torch.randint(0, 3, (2, 8, 8)), torch.ones(2, 8, 8, dtype=torch.bool)
    both = [torch.cat(parts) for parts in zip((features, labels, valid), other, strict=True)]
    loss = CorrespondenceLoss()
    alone = loss(features, labels, valid, torch.Generator())
    assert loss(*both, torch.Generator())[: len(alone)].tolist() == pytest.approx(alone.tolist())


def test_nothing_shared_gives_no_loss() -> None:
    features, _, valid = pair()
    labels = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]).long()
    assert CorrespondenceLoss()(features, labels, valid, torch.Generator()).shape == (0,)
