from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from monai_ext.prompts.distances import assignment_cost, common_parts, jensen_shannon
from monai_ext.prompts.retrieval import retrieve_masks


def tokens(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    found = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    found[:, 0] += shift
    return found


def slow_hungarian(a: torch.Tensor, b: torch.Tensor, k: int) -> float:
    """Cluster both, then try every pairing of the parts."""
    parts = []
    for array in (a.numpy(), b.numpy()):
        members = KMeans(k, init="k-means++", n_init=10, random_state=0).fit(array).labels_
        parts.append([array[members == part].mean(axis=0) for part in range(k)])
    cost = [[1 - p @ q / np.linalg.norm(p) / np.linalg.norm(q) for q in parts[1]] for p in parts[0]]
    return min(sum(cost[i][j] for i, j in enumerate(order)) / k for order in permutations(range(k)))


def slow_jensen_shannon(reference: torch.Tensor, candidates: list[torch.Tensor], bins: int = 8) -> list[float]:
    """Project by SVD, count tokens into cells one by one, add up p log p / m."""
    sets = [part.double().numpy() for part in (reference, *candidates)]
    everything = np.concatenate(sets)
    centre = everything.mean(axis=0)
    axes = np.linalg.svd(everything - centre)[2][:2]
    low = ((everything - centre) @ axes.T).min(axis=0)
    high = ((everything - centre) @ axes.T).max(axis=0)

    def density(part: np.ndarray) -> dict[tuple[int, int], float]:
        cells: dict[tuple[int, int], float] = {}
        for token in part:
            place = (axes @ (token - centre) - low) / (high - low) * bins
            cell = (min(max(int(place[0]), 0), bins - 1), min(max(int(place[1]), 0), bins - 1))
            cells[cell] = cells.get(cell, 0) + 1 / len(part)
        return cells

    p, found = density(sets[0]), []
    for part in sets[1:]:
        q, divergence = density(part), 0.0
        for cell in {*p, *q}:
            for mine in (p.get(cell, 0), q.get(cell, 0)):
                if mine:
                    divergence += mine / 2 * math.log2(mine / ((p.get(cell, 0) + q.get(cell, 0)) / 2))
        found.append(divergence)
    return found


def on_grid(*sets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [C, 8, 8] and masks [K, 8, 8] whose foreground tokens are the sets."""
    features, masks, start = torch.zeros(64, 6), torch.zeros(len(sets), 64, dtype=torch.bool), 0
    for number, part in enumerate(sets):
        features[start : start + len(part)] = part
        masks[number, start : start + len(part)] = True
        start += len(part)
    return features.T.reshape(6, 8, 8), masks.reshape(-1, 8, 8)


CANDIDATES = [tokens(15, 1, 2), tokens(12, 2), tokens(20, 3, 1)]


@pytest.mark.parametrize("distance", ["hungarian", "jensen_shannon"])
def test_retrieval_takes_the_nearest(distance) -> None:
    reference = tokens(18, 0)
    slow = (
        [slow_hungarian(reference, part, 4) for part in CANDIDATES]
        if distance == "hungarian"
        else slow_jensen_shannon(reference, CANDIDATES)
    )
    features, masks = on_grid(*CANDIDATES)
    masks = torch.cat([masks, torch.zeros(1, 8, 8, dtype=torch.bool)])
    found = retrieve_masks(reference, features, masks, distance=distance)
    assert found.distances == pytest.approx([*slow, math.inf], rel=1e-5)
    assert found.index == slow.index(min(slow))
    assert found.margin == pytest.approx(sorted(slow)[1] - sorted(slow)[0], rel=1e-4)


def test_few_tokens_make_fewer_parts_of_both() -> None:
    assert [len(part) for part in common_parts(tokens(9, 0), tokens(2, 1))] == [2, 2]
    assert [len(part) for part in common_parts(tokens(9, 0), tokens(1, 1).repeat(5, 1))] == [1, 1]
    with pytest.raises(ValueError, match="empty set"):
        common_parts(tokens(3, 0), tokens(0, 0))


def test_assignment_is_one_to_one() -> None:
    assert assignment_cost(np.array([[0.0, 1.0], [0.0, 5.0]])) == 0.5


def test_divergence_is_0_to_itself_and_1_where_nothing_is_shared() -> None:
    one = tokens(20, 0)
    found = jensen_shannon(one, {3: one.flip(0), 5: one + 100})
    assert found == pytest.approx({3: 0, 5: 1})
    assert jensen_shannon(one, {}) == {}


def test_unknown_distances_are_refused() -> None:
    features, masks = on_grid(tokens(4, 0))
    with pytest.raises(ValueError, match="got 'kl'"):
        retrieve_masks(tokens(4, 1), features, masks, distance="kl")  # type: ignore[arg-type]
