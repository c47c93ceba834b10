"""Tests of monai_ext.prompts.parts."""

from __future__ import annotations

import warnings

import pytest
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info

from monai_ext.prompts.parts import foreground_features, part_sets


def blobs(sizes: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 20 * torch.eye(len(sizes), 8)
    return [centres[i] + torch.randn(n, 8, generator=generator) for i, n in enumerate(sizes)]


def test_foreground_features_are_those_below_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) > 0.6
    expected = [features[:, i, j].tolist() for i in range(4) for j in range(6) if mask[i, j]]
    assert foreground_features(features, mask).tolist() == expected


def test_one_part_is_the_mean() -> None:
    tokens = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    expected = [sum(tokens[i, c].item() for i in range(7)) / 7 for c in range(3)]
    assert part_sets(tokens, [1])[1][0].tolist() == pytest.approx(expected, abs=1e-6)


def test_each_part_is_the_mean_of_its_members() -> None:
    groups = blobs([9, 4, 6])
    shuffled = torch.cat(groups)[torch.randperm(19, generator=torch.Generator().manual_seed(1))]
    parts = part_sets(shuffled, [3])[3]
    expected = torch.stack([group.mean(dim=0) for group in groups])
    order = parts[:, :3].argmax(dim=1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(parts, expected[order])


def test_parts_are_those_of_ten_restarts_on_raw_features() -> None:
    tokens = torch.randn(60, 6, generator=torch.Generator().manual_seed(3))
    fitted = KMeans(4, init="k-means++", n_init=10, random_state=5).fit(tokens.numpy())
    expected = torch.from_numpy(fitted.cluster_centers_)
    torch.testing.assert_close(part_sets(tokens, [4], seed=5)[4], expected)


def test_same_seed_gives_the_same_parts() -> None:
    tokens = torch.randn(200, 6, generator=torch.Generator().manual_seed(4))
    assert torch.equal(part_sets(tokens, [5], seed=1)[5], part_sets(tokens, [5], seed=1)[5])


def test_counts_above_the_number_of_tokens_are_left_out() -> None:
    tokens = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    sets = part_sets(tokens, range(1, 6))
    assert {count: parts.shape for count, parts in sets.items()} == {1: (1, 4), 2: (2, 4), 3: (3, 4)}


def test_no_tokens_have_no_parts() -> None:
    assert part_sets(torch.empty(0, 4), [1, 2]) == {}


@pytest.mark.parametrize(("distinct", "copies"), [(1, 6), (2, 5), (3, 1)])
def test_repeated_tokens_count_once_and_without_noise(distinct, copies) -> None:
    tokens = torch.randn(distinct, 4, generator=torch.Generator().manual_seed(0)).repeat(copies, 1)
    with warnings.catch_warnings(record=True) as noise:
        sets = part_sets(tokens, [1, 2, 3, 4])
    assert noise == []
    assert sorted(sets) == list(range(1, distinct + 1))
    assert all(parts.isfinite().all() for parts in sets.values())


@pytest.mark.parametrize("length", [1e-2, 1.0, 50.0])
def test_tokens_that_differ_by_rounding_are_not_distinct(length) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 16, generator=generator).repeat(6, 1)
    noisy = length * tokens * (1 + 1e-6 * torch.randn(18, 16, generator=generator))
    assert sorted(part_sets(noisy, [1, 2, 3, 4, 5])) == [1, 2, 3]
    apart = length * tokens * (1 + 1e-2 * torch.randn(18, 16, generator=generator))
    assert sorted(part_sets(apart, [1, 2, 3, 4, 5])) == [1, 2, 3, 4, 5]


def test_zero_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        part_sets(torch.randn(5, 4), [0])


def test_threads_are_given_back() -> None:
    part_sets(torch.randn(20, 4), [2])
    before = [pool["num_threads"] for pool in threadpool_info()]
    part_sets(torch.randn(20, 4), [2])
    assert [pool["num_threads"] for pool in threadpool_info()] == before


def test_clustering_runs_on_one_thread(monkeypatch) -> None:
    threads = []
    fit = KMeans.fit

    def spy(self, tokens):
        threads.extend(pool["num_threads"] for pool in threadpool_info())
        return fit(self, tokens)

    monkeypatch.setattr(KMeans, "fit", spy)
    part_sets(torch.randn(20, 4), [2])
    assert set(threads) == {1}
