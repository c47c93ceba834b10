from __future__ import annotations

import math

import pytest
import torch

from monai_ext.prompts.pseudo_mask import EMPTY, SHORTEST, masked_mean, pseudo_mask


@pytest.fixture
def features() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 5, 4, 4)


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 1:3, 1] = 1
    mask[1, 0, 3, 2:] = 1
    return mask


def test_same_as_the_slow_version(features, mask):
    query = torch.rand(2, 5, 4, 4)
    fast = pseudo_mask(query, features, mask)
    for b in range(2):
        for i in range(16):
            q = query[b, :, i // 4, i % 4].tolist()
            best = -math.inf
            for j in range(16):
                s = (features[b, :, j // 4, j % 4] * mask[b, 0, j // 4, j % 4]).tolist()
                lengths = math.hypot(*q) * math.hypot(*s)
                best = max(best, sum(a * c for a, c in zip(q, s, strict=True)) / (lengths + SHORTEST))
            assert float(fast[b, 0, i // 4, i % 4]) == pytest.approx(best, abs=1e-5)


def test_an_image_is_most_like_itself_inside_the_mask(features, mask):
    prior = pseudo_mask(features, features, mask)
    torch.testing.assert_close(prior[mask > 0], torch.ones(4), rtol=1e-5, atol=1e-5)
    assert bool((prior[mask == 0] < 1).all())


def test_an_empty_mask_says_nothing(features):
    assert not pseudo_mask(features, features, torch.zeros(2, 1, 4, 4)).any()
    assert not masked_mean(features, torch.zeros(2, 1, 4, 4)).any()


def test_masked_mean_is_a_plain_mean_inside_the_mask(features, mask):
    mean = masked_mean(features, mask)
    assert mean.shape == (2, 5, 1, 1)
    for b, cells in ((0, [(1, 1), (2, 1)]), (1, [(3, 2), (3, 3)])):
        plain = sum(features[b, :, i, j] for i, j in cells) / len(cells)
        torch.testing.assert_close(mean[b, :, 0, 0], plain * 2 / (2 + EMPTY))
