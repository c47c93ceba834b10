"""Tests of monai_ext.prompts.retrieval."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from monai_ext.prompts import retrieval
from monai_ext.prompts.retrieval import Retrieval, cost_matrix, lower_bound, retrieve_masks, wasserstein
from monai_ext.prompts.ties import TOLERANCE

COSTS = ("cosine", "sqeuclidean")


def tokens(n: int, seed: int, channels: int = 6, shift: float = 0.0) -> torch.Tensor:
    noise = torch.randn(n, channels, generator=torch.Generator().manual_seed(seed))
    noise[:, 0] += shift
    return noise


def retrieve(
    reference: torch.Tensor, candidates: list[torch.Tensor | None], cost: str = "cosine", prune: bool = True
) -> Retrieval:
    """Retrieve among candidates whose tokens [m, C] lie side by side on one grid."""
    held = [reference[:0] if c is None else c.reshape(-1, reference.shape[1]) for c in candidates]
    number = torch.repeat_interleave(torch.arange(len(held)), torch.tensor([len(c) for c in held]))
    masks = number == torch.arange(len(held))[:, None]
    return retrieve_masks(reference, torch.cat(held).T[:, None], masks[:, None], cost, prune)


def slow_cost(a: torch.Tensor, b: torch.Tensor, cost: str) -> np.ndarray:
    matrix = np.empty((len(a), len(b)))
    for i, x in enumerate(a.tolist()):
        for j, y in enumerate(b.tolist()):
            if cost == "cosine":
                dot = sum(p * q for p, q in zip(x, y, strict=True))
                matrix[i, j] = 1 - dot / (math.hypot(*x) * math.hypot(*y))
            else:
                matrix[i, j] = sum((p - q) ** 2 for p, q in zip(x, y, strict=True))
    return matrix


def slow_wasserstein(matrix: np.ndarray) -> float:
    """Solve the linear programme of Eq. 5 as it is written."""
    n, m = matrix.shape
    rows = np.zeros((n, n, m))
    columns = np.zeros((m, n, m))
    for i in range(n):
        rows[i, i, :] = 1
    for j in range(m):
        columns[j, :, j] = 1
    constraints = np.concatenate([rows.reshape(n, -1), columns.reshape(m, -1)])
    weights = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return linprog(matrix.ravel(), A_eq=constraints, b_eq=weights, method="highs").fun


@pytest.mark.parametrize("cost", COSTS)
def test_cost_is_pairwise(cost) -> None:
    a, b = tokens(4, 0), tokens(3, 1)
    np.testing.assert_allclose(cost_matrix(a, b, cost), slow_cost(a, b, cost), rtol=1e-9)


@pytest.mark.parametrize("cost", COSTS)
def test_equal_numbers_of_tokens_are_an_assignment(cost) -> None:
    a, b = tokens(12, 0), tokens(12, 1, shift=1)
    matrix = slow_cost(a, b, cost)
    assert wasserstein(a, b, cost) == pytest.approx(matrix[linear_sum_assignment(matrix)].sum() / 12, rel=1e-9)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (5, 3), (4, 7)])
def test_unequal_numbers_of_tokens_are_a_transport(cost, n, m) -> None:
    a, b = tokens(n, 2), tokens(m, 3)
    expected = slow_wasserstein(slow_cost(a, b, cost))
    assert wasserstein(a, b, cost) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("cost", COSTS)
def test_distance_to_itself_is_zero_in_any_order(cost) -> None:
    a = tokens(15, 4)
    assert wasserstein(a, a.flip(0), cost) == pytest.approx(0, abs=1e-12)
    assert wasserstein(a, tokens(9, 5), cost) == pytest.approx(wasserstein(tokens(9, 5), a, cost), rel=1e-9)


def test_similar_tokens_are_nearer_than_opposite_ones() -> None:
    a = tokens(5, 6)
    assert wasserstein(a, 3 * a) < 1e-9
    assert wasserstein(a, -a) > 1e-2  # Eq. 5 as printed would prefer these


def test_empty_sets_unknown_costs_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="empty set of tokens"):
        wasserstein(tokens(3, 0), torch.empty(0, 6))
    with pytest.raises(ValueError, match="got 'euclidean'"):
        wasserstein(tokens(3, 0), tokens(3, 1), "euclidean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN or infinity"):
        wasserstein(tokens(3, 0), torch.full((2, 6), float("nan")))
    with pytest.raises(ValueError, match="reference has no foreground"):
        retrieve_masks(torch.empty(0, 6), torch.zeros(6, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))


@given(n=st.integers(1, 8), m=st.integers(1, 8), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_lower_bound_is_below_the_distance(n, m, seed) -> None:
    a, b = tokens(n, seed), tokens(m, seed + 1)
    matrix = cost_matrix(a, b)
    cheapest = [min(row) for row in matrix.tolist()], [min(column) for column in matrix.T.tolist()]
    assert lower_bound(matrix) == pytest.approx(max(sum(c) / len(c) for c in cheapest))
    assert lower_bound(matrix) <= wasserstein(a, b) + 1e-12


@pytest.mark.parametrize("cost", COSTS)
def test_nearest_candidate_is_chosen(cost) -> None:
    reference = tokens(10, 0)
    candidates = [tokens(8, 1, shift=2), None, tokens(9, 2), torch.empty(0, 6), tokens(10, 3, shift=1)]
    slow = [
        math.inf if c is None or len(c) == 0 else slow_wasserstein(slow_cost(reference, c, cost)) for c in candidates
    ]
    found = retrieve(reference, candidates, cost, prune=False)
    assert found.distances == pytest.approx(slow, rel=1e-7)
    assert found.index == min(range(5), key=lambda i: slow[i])
    assert found.distance == found.distances[found.index]
    assert found.margin == pytest.approx(sorted(slow)[1] - sorted(slow)[0], rel=1e-6)


def test_nothing_is_chosen_where_all_candidates_are_empty() -> None:
    found = retrieve(tokens(3, 0), [None, torch.empty(0, 6)])
    assert found == retrieval.Retrieval(index=None, distances=[math.inf, math.inf], margin=None)
    assert found.distance is None
    empty = torch.zeros(2, 3, 3, dtype=torch.bool)
    assert retrieve_masks(tokens(3, 0), torch.rand(6, 3, 3), empty) == found


def test_only_candidate_has_no_margin() -> None:
    found = retrieve(tokens(3, 0), [None, tokens(4, 1)])
    assert found.index == 1
    assert found.margin is None


@pytest.mark.parametrize("prune", [True, False])
def test_first_of_equally_near_candidates_is_chosen(prune) -> None:
    reference = torch.tensor([[1.0, 0.0, 0.0]])
    far, left, right = ([[-1.0, 0, 0]], [[0.0, 1, 0]], [[0.0, 0, 1]])
    found = retrieve(reference, [torch.tensor(c) for c in (far, left, right)], prune=prune)
    assert found.index == 1
    assert found.margin == 0


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("length", [1.0, 30.0])
def test_rounding_does_not_choose_among_equally_near_candidates(prune, cost, length) -> None:
    reference = length * torch.tensor([[1.0, 0.0, 0.0]])
    for seed in range(20):
        noise = 1e-6 * torch.randn(3, 1, 3, generator=torch.Generator().manual_seed(seed))
        far, left, right = length * (torch.tensor([[[-1.0, 0, 0]], [[0.0, 1, 0]], [[0.0, 0, 1]]]) + noise)
        found = retrieve(reference, [far, left, right], cost, prune=prune)
        assert found.index == 1
        assert 0 <= found.margin < 1e-5 * length**2


def test_what_is_nearer_by_more_than_the_tolerance_is_chosen() -> None:
    reference = torch.tensor([[1.0, 0.0]])
    angles = torch.tensor([1.0, 1.0 - 3 * TOLERANCE])
    found = retrieve(reference, [torch.stack([a.cos(), a.sin()])[None] for a in angles])
    assert found.index == 1


def test_identical_candidates_are_computed_once_and_are_no_rivals(monkeypatch) -> None:
    solved = []
    solve = retrieval._transport
    monkeypatch.setattr(retrieval, "_transport", lambda cost: solved.append(cost) or solve(cost))
    near, far = [True] * 6 + [False] * 7, [False] * 6 + [True] * 7
    features = torch.cat([tokens(6, 1), tokens(7, 2, shift=3)]).T[:, None]
    found = retrieve_masks(tokens(5, 0), features, torch.tensor([far, near, near, far])[:, None], prune=False)
    assert len(solved) == 2
    assert found.index == 1
    assert found.distances[1] == found.distances[2]
    assert found.distances[0] == found.distances[3]
    assert found.margin == found.distances[0] - found.distances[1] > 0


def test_pruning_leaves_out_hopeless_candidates(monkeypatch) -> None:
    solved = []
    solve = retrieval._transport
    monkeypatch.setattr(retrieval, "_transport", lambda cost: solved.append(cost) or solve(cost))
    reference = tokens(8, 0, shift=20)
    candidates = [tokens(7, seed, shift=-20) for seed in (1, 2, 3)]
    candidates += [tokens(7, 4, shift=20), tokens(7, 5, shift=20)]
    found = retrieve(reference, candidates)
    assert len(solved) == 2
    assert found.distances[:3] == [None, None, None]


@st.composite
def retrieval_cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    # few distinct values: ties between candidates, and repeated tokens within one, do happen
    levels = draw(st.sampled_from([2, 3, 1000]))
    features = torch.randint(1, levels + 1, (3, 4, 4), generator=generator).float()
    density = torch.rand(draw(st.integers(1, 8)), generator=generator)[:, None, None]
    masks = torch.rand(len(density), 4, 4, generator=generator) < density
    reference = torch.randint(1, levels + 1, (draw(st.integers(1, 6)), 3), generator=generator).float()
    return reference, features, masks


@pytest.mark.slow
@given(case=retrieval_cases(), cost=st.sampled_from(COSTS))
@settings(max_examples=150, deadline=None)
def test_pruning_changes_neither_choice_nor_margin(case, cost) -> None:
    reference, features, masks = case
    full = retrieve_masks(reference, features, masks, cost, prune=False)
    pruned = retrieve_masks(reference, features, masks, cost)
    assert pruned.index == full.index
    assert pruned.margin == full.margin
    for quick, slow in zip(pruned.distances, full.distances, strict=True):
        assert quick == slow or (quick is None and slow > full.distance + full.margin - 1e-12)
    if full.index is not None:
        tolerance = TOLERANCE * (float((reference**2).sum(1).mean()) if cost == "sqeuclidean" else 1)
        nearest = [i for i, d in enumerate(full.distances) if d <= min(full.distances) + tolerance]
        assert full.index == nearest[0]


@given(case=retrieval_cases(), cost=st.sampled_from(COSTS))
@settings(max_examples=40, deadline=None)
def test_distances_of_masks_are_those_of_their_tokens(case, cost) -> None:
    reference, features, masks = case
    expected = [wasserstein(reference, features[:, mask].T, cost) if mask.any() else math.inf for mask in masks]
    found = retrieve_masks(reference, features, masks, cost, prune=False)
    assert found.distances == pytest.approx(expected, rel=1e-9, abs=1e-12)
