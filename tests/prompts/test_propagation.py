from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_ext.prompts.propagation import cell_positions, propagate_labels


def test_labels_are_the_softmax_mean_of_the_most_similar_nearby():
    rng = np.random.default_rng(0)
    source, target, labels = rng.normal(size=(9, 4)), rng.normal(size=(6, 4)), rng.uniform(size=(9, 3))
    near = rng.uniform(size=(9, 6)) < 0.6
    near[:, 0], near[:, 1] = False, np.arange(9) == 4  # none, and a single one
    found = propagate_labels(*(torch.tensor(x) for x in (source, labels, target, near)), top_k=3, temperature=0.2)
    for j in range(6):
        cosine = {
            i: source[i] @ target[j] / math.dist(source[i], [0] * 4) / math.dist(target[j], [0] * 4) for i in range(9)
        }
        best = sorted((i for i in range(9) if near[i, j]), key=lambda i: -cosine[i])[:3]
        weights = [math.exp(cosine[i] / 0.2) for i in best]
        expected = sum(w * labels[i] for w, i in zip(weights, best, strict=True)) / sum(weights) if best else [0] * 3
        np.testing.assert_allclose(found[j], expected, atol=1e-5)


def test_of_equally_similar_sources_the_first_serve_whatever_the_rounding():
    """One source is the most similar, four are equal: of these the first."""
    source = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    labels, target = torch.eye(5), torch.tensor([[1.0, 0.1]])
    for seed in range(20):
        noise = 1e-6 * torch.randn(5, 2, generator=torch.Generator().manual_seed(seed))
        found = propagate_labels(source + noise, labels, target, torch.ones(5, 1, dtype=torch.bool), top_k=3)
        assert (found[0] > 0).tolist() == [True, True, True, False, False]
        assert float(found.sum()) == pytest.approx(1, abs=1e-6)


def test_positions_are_shares_of_the_image():
    found = cell_positions((20, 40), 8, (5, 5)).reshape(5, 5, 2)
    assert found[1, 3].tolist() == pytest.approx([12 / 20, 28 / 40])
    assert float(found[4, 0, 0]) > 1
