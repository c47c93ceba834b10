from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ext.prompts.prototypes import lead, prototype, prototype_scores

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(5, 3, 4))


def test_prototype_is_the_weighted_mean():
    weights = RNG.uniform(size=(3, 4))
    expected = sum(weights[i, j] * FEATURES[:, i, j] for i in range(3) for j in range(4)) / weights.sum()
    found = prototype(torch.tensor(FEATURES), torch.tensor(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert prototype(torch.tensor(FEATURES), torch.zeros(3, 4)) is None


def test_scores_are_twenty_times_the_cosine():
    prototypes = RNG.normal(size=(2, 5))
    scores = prototype_scores(torch.tensor(prototypes), torch.tensor(FEATURES))
    for n in range(2):
        for i in range(3):
            for j in range(4):
                a, b = prototypes[n], FEATURES[:, i, j]
                assert float(scores[n, i, j]) == pytest.approx(20 * a @ b / np.sqrt(a @ a * (b @ b)), abs=1e-4)


def test_lead_is_positive_for_the_argmax_alone():
    scores = torch.tensor(RNG.normal(size=(3, 4, 5)))
    ahead = lead(scores)
    for n in range(3):
        others = torch.stack([scores[k] for k in range(3) if k != n]).amax(dim=0)
        torch.testing.assert_close(ahead[n], scores[n] - others)
    assert torch.equal(ahead.argmax(dim=0), scores.argmax(dim=0))
    assert torch.equal(ahead > 0, torch.arange(3)[:, None, None] == scores.argmax(dim=0))
    with pytest.raises(ValueError, match="one class alone"):
        lead(scores[:1])


def test_of_equal_classes_the_first_leads_whatever_the_rounding():
    noise = 1e-6 * torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0))
    scores = noise + torch.tensor([0.1, 0.7, 0.7])[:, None, None]
    assert torch.equal(lead(scores) > 0, torch.tensor([False, True, False])[:, None, None].expand(3, 20, 20))
