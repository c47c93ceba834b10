from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from monai_ext.prompts.matching import cluster_centres, mask_scores, match_both_ways, point_subsets


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


def slow_assignment(similarity: np.ndarray) -> dict[int, int]:
    """Row -> column of the assignment with the greatest sum, by trying all."""
    rows, columns = similarity.shape
    best = max(permutations(range(columns), rows), key=lambda p: sum(similarity[r, c] for r, c in enumerate(p)))
    return dict(enumerate(best))


@pytest.mark.parametrize("seed", range(8))
def test_matches_are_those_that_come_home(seed):
    rng = np.random.default_rng(seed)
    reference, target, inside = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)), np.arange(6) < 3
    forward = sorted(slow_assignment(cosine(reference[inside], target)).values())
    back = slow_assignment(cosine(target[forward], reference))
    expected = [t for k, t in enumerate(forward) if inside[back[k]]]
    found = match_both_ways(torch.tensor(reference), torch.tensor(inside), torch.tensor(target))
    assert found.tolist() == expected


def test_some_matches_do_not_come_home():
    reference = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    target = torch.tensor([[0.6, 0.8]])  # like the third patch, which is outside
    assert match_both_ways(reference, torch.tensor([True, True, False]), target).tolist() == []


def test_more_foreground_than_target_patches_is_no_error():
    features = torch.eye(4)
    assert match_both_ways(features, torch.ones(4, dtype=torch.bool), features[:2]).tolist() == [0, 1]


def test_centres_of_separate_groups_are_their_means():
    groups = [
        torch.tensor([[x, y], [x + 1, y], [x, y + 2]], dtype=torch.float32) for x, y in ((0, 0), (50, 9), (90, 70))
    ]
    expected = torch.stack([group.mean(dim=0) for group in groups])
    torch.testing.assert_close(cluster_centres(torch.cat(groups), 3), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 5])
def test_centres_of_a_grid_do_not_depend_on_rounding(rows):
    """A grid has many equally good clusterings."""
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(float(rows))) * 8 + 3.5
    found = set()
    for seed in range(20):
        noise = 1e-5 * torch.randn(grid.shape, generator=torch.Generator().manual_seed(seed))
        centres = cluster_centres(grid + noise, 8)
        found.add(tuple(sorted((round(x, 1), round(y, 1)) for x, y in centres.tolist())))
    assert len(found) == 1


def test_patches_that_look_alike_are_matched_the_same_whatever_the_rounding():
    target = torch.eye(3)[[0, 1, 1, 2, 1, 0]]
    reference = torch.eye(3)[[0, 1, 2, 1]]
    inside = torch.tensor([True, True, False, False])
    found = set()
    for seed in range(20):
        noise = 1e-7 * torch.randn(10, 3, generator=torch.Generator().manual_seed(seed))
        found.add(tuple(match_both_ways(reference + noise[:4], inside, target + noise[4:]).tolist()))
    assert len(found) == 1


def test_few_points_are_their_own_centres():
    points = torch.tensor([[3.0, 1.0], [2.0, 5.0], [3.0, 1.0]])
    assert cluster_centres(points, 8).tolist() == [[2.0, 5.0], [3.0, 1.0]]
    assert cluster_centres(points[:0], 8).shape == (0, 2)


def test_eight_centres_give_154_prompts():
    subsets = point_subsets(8, (4, 6))
    assert len(subsets) == len(set(subsets)) == 70 + 56 + 28
    assert set(point_subsets(5, (4, 6))) == {*combinations(range(5), 4), tuple(range(5))}
    assert point_subsets(2, (4, 6)) == [(0, 1)]
    assert point_subsets(0, (4, 6)) == []


def test_score_weighs_distance_purity_and_coverage():
    rng = np.random.default_rng(0)
    masks, matched = rng.uniform(size=(4, 12)) < 0.5, rng.uniform(size=12) < 0.4
    masks[3] = False
    distances = [0.2, 0.5, 0.1, float("inf")]
    found = mask_scores(torch.tensor(distances), torch.tensor(masks), torch.tensor(matched), 0.7, 0.3, 2.0)
    for k in range(3):
        hits = sum(a and b for a, b in zip(masks[k], matched, strict=True))
        expected = 0.7 * (1 - distances[k]) + 0.3 * hits / masks[k].sum() * (hits / matched.sum()) ** 2
        assert float(found[k]) == pytest.approx(expected)
    assert found[3] == float("-inf")
