from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_ext.prompts.gating import (
    clusters_by_coverage,
    grow_masks,
    polarity,
    select_points,
    self_consistent,
    similarity_maps,
)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return max(0.0, float(a @ b / math.sqrt(a @ a * (b @ b))))


def test_similarity_maps_are_mean_and_maximum():
    rng = np.random.default_rng(0)
    target, inside, outside = (rng.normal(size=(n, 4)) for n in (5, 3, 6))
    found = similarity_maps(*(torch.tensor(x) for x in (target, inside, outside)))
    for i in range(5):
        positive = [correlation(target[i], f) for f in inside]
        expected = [np.mean(positive), max(positive), np.mean([correlation(target[i], f) for f in outside])]
        assert [float(m[i]) for m in found] == pytest.approx(expected, abs=1e-5)
    assert similarity_maps(torch.tensor(target), torch.tensor(inside), torch.empty(0, 4))[2].tolist() == [0] * 5


@pytest.mark.parametrize("seed", range(5))
def test_as_many_points_as_the_filtered_map_sums_up_to(seed):
    rng = np.random.default_rng(seed)
    mean, greatest, negative = (rng.uniform(size=20) for _ in range(3))
    mixture = mean * greatest
    unit = (mixture - mixture.min()) / (mixture.max() - mixture.min())
    rival = (negative - negative.min()) / (negative.max() - negative.min())
    kept = [u if u > r else 0 for u, r in zip(unit, rival, strict=True)]
    expected = sorted(range(20), key=lambda i: -kept[i])[: int(sum(kept))]
    assert select_points(*(torch.tensor(x) for x in (mean, greatest, negative))).tolist() == expected


def test_of_equal_cells_the_first_are_selected_whatever_the_rounding():
    greatest = torch.tensor([0.0, 0.5, 1.0, 0.5, 0.5, 0.5])  # squared, that sums up to two cells
    for seed in range(20):
        noise = 1e-6 * torch.rand(6, generator=torch.Generator().manual_seed(seed))
        assert select_points(greatest + noise, greatest, torch.zeros(6)).tolist() == [2, 1]


def test_a_map_that_is_flat_but_for_rounding_selects_nothing():
    noise = 1e-7 * torch.rand(9, generator=torch.Generator().manual_seed(0))
    assert select_points(0.7 + noise, torch.full((9,), 0.7), torch.zeros(9)).tolist() == []


def test_of_equally_similar_clusters_the_first_keeps_its_points():
    shares = torch.ones(2, 3, 3)
    for seed in range(20):
        features = 1 + 1e-6 * torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(seed))
        noisy = shares * (1 - 1e-6 * torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(99 + seed)))
        assert self_consistent(features, noisy, torch.tensor([0, 1]), torch.tensor([0, 1])).tolist() == [True, False]


def test_a_flat_map_selects_nothing():
    assert select_points(torch.ones(4), torch.ones(4), torch.ones(4)).tolist() == []


def test_clusters_are_joined_by_coverage_in_either_direction():
    covers = torch.zeros(5, 5, dtype=torch.bool)
    covers[0, 3] = covers[1, 3] = covers[4, 4] = True
    clusters = clusters_by_coverage(covers).tolist()
    assert clusters[0] == clusters[1] == clusters[3]
    assert len(set(clusters)) == 3


def test_polarity_compares_with_the_middle_and_the_background():
    mean, negative = [0.1, 0.5, 0.9, 0.6], [0.5, 0.4, 0.9, 0.9]
    expected = [1 if p * p > 0.5 * n else -1 for p, n in zip(mean, negative, strict=True)]
    assert polarity(torch.tensor(mean), torch.tensor(negative)).tolist() == expected
    assert set(expected) == {1, -1}


@pytest.mark.parametrize("seed", range(6))
def test_masks_grow_as_in_algorithm_1(seed):
    rng = np.random.default_rng(seed)
    masks, clusters = rng.uniform(size=(7, 8, 8)) < 0.4, np.array([0, 1, 0, 0, 1, 2, 2])
    masks[5] = False
    signs = rng.choice([-1, 0, 1], size=(4, 4), p=[0.4, 0.1, 0.5])
    value = {(y, x): signs[y // 2, x // 2] for y in range(8) for x in range(8)}
    areas = [{(int(y), int(x)) for y, x in np.argwhere(mask)} for mask in masks]
    kept = set()
    for cluster in range(3):
        members = [k for k in range(7) if clusters[k] == cluster]
        members.sort(key=lambda k: -sum(value[p] for p in areas[k]) / max(len(areas[k]), 1))
        grown: set[tuple[int, int]] = set()
        for k in members:
            added = areas[k] - grown
            if sum(value[p] for p in added) > 0:
                kept.add(k)
                grown |= added
    found = grow_masks(torch.tensor(masks), torch.tensor(clusters), torch.tensor(signs, dtype=torch.float32))
    assert set(found.nonzero()[:, 0].tolist()) == kept


def test_points_stay_with_the_cluster_they_resemble_most():
    rng = np.random.default_rng(1)
    features, shares = rng.normal(size=(3, 5, 5)), rng.uniform(size=(3, 5, 5))
    points, clusters = rng.choice(25, size=9, replace=False), np.array([0, 0, 1, 1, 1, 2, 2, 0, 2])
    expected = []
    for k, point in enumerate(points):
        scores = []
        for p in range(3):
            apart = min(math.dist(divmod(int(point), 5), divmod(int(q), 5)) for q in points[clusters == p])
            similar = sum(
                correlation(features[:, point // 5, point % 5], features[:, i, j]) * shares[p, i, j]
                for i in range(5)
                for j in range(5)
            )
            scores.append(similar / shares[p].sum() / max(apart, 1))
        expected.append(int(np.argmax(scores)) == clusters[k])
    found = self_consistent(*(torch.tensor(x) for x in (features, shares, points, clusters)))
    assert found.tolist() == expected
    assert len(set(expected)) == 2
