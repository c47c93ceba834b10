"""Distribution-guided retrieval (P²SAM §3.2, Eq. 3; Appendix F, Eq. 5) of one among several masks.

Each candidate mask selects a set of target features; the one with the smallest Wasserstein distance to the
reference's foreground features is taken. Eq. 5 as printed minimises transported *similarity* and would reward
dissimilarity: the cost ``"cosine"`` is 1 - cos, a declared deviation. ``"sqeuclidean"`` on raw features is
what the authors' code computes. Table 7's other two distances can take the Wasserstein distance's place.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ext.prompts.distances import assignment_cost, common_parts, jensen_shannon
from monai_ext.prompts.parts import foreground_features
from monai_ext.prompts.ties import TOLERANCE, first_minimum

Cost = Literal["cosine", "sqeuclidean"]
Distance = Literal["wasserstein", "hungarian", "jensen_shannon"]

DISTANCES = ("wasserstein", "hungarian", "jensen_shannon")

# POT's network simplex stops at 1e5 iterations by default: not always exact for some thousand tokens
_MAX_ITERATIONS = 10_000_000


@dataclass(frozen=True)
class Retrieval:
    """What :func:`retrieve_masks` found.

    Attributes:
        index: the chosen candidate, or None where all are empty (``no_foreground``).
        distances: one a candidate: its distance, ``inf`` where it is empty, None where pruning showed that it
            is neither the best nor the runner-up.
        margin: second-smallest distance minus the smallest, of *different* candidates, exact with and without
            pruning; None where there is no different one. Candidates with the same tokens are no rivals.
    """

    index: int | None
    distances: list[float | None]
    margin: float | None

    @property
    def distance(self) -> float | None:
        """Distance of the chosen candidate, None where all are empty."""
        return None if self.index is None else self.distances[self.index]


def cost_matrix(a: Tensor, b: Tensor, cost: Cost = "cosine") -> np.ndarray:
    """Pairwise cost of two sets of tokens, in double precision (distances of candidates can be close).

    Args:
        a: ``[n, C]``.
        b: ``[m, C]``.
        cost: ``"cosine"``: 1 - cos, in [0, 2]; ``"sqeuclidean"``: squared Euclidean on raw features.

    Returns:
        ``[n, m]`` float64, not negative.

    Raises:
        ValueError: for an unknown cost, or features that are not finite.
    """
    a, b = (tokens.detach().cpu().double() for tokens in (a, b))
    if cost == "cosine":
        matrix = 1 - F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    elif cost == "sqeuclidean":
        matrix = a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2 * a @ b.T
    else:
        raise ValueError(f'cost must be "cosine" or "sqeuclidean", got {cost!r}')
    if not bool(matrix.isfinite().all()):
        raise ValueError("features hold NaN or infinity: no distance is defined")
    return matrix.clamp_(min=0).numpy()


def wasserstein(a: Tensor, b: Tensor, cost: Cost = "cosine") -> float:
    r"""Exact Wasserstein distance of two sets of tokens with uniform weights (Eq. 5).

    .. math:: D_w(a, b) = \min_{T \ge 0} \sum_{ij} T_{ij} c_{ij}
        \quad \text{with} \quad \sum_j T_{ij} = 1/n, \; \sum_i T_{ij} = 1/m

    Args:
        a: ``[n, C]``.
        b: ``[m, C]``.
        cost: as in :func:`cost_matrix`; the result has its unit.

    Raises:
        ValueError: if one set is empty.
    """
    if len(a) == 0 or len(b) == 0:
        raise ValueError("the distance to an empty set of tokens is not defined")
    return _transport(cost_matrix(a, b, cost))


def lower_bound(cost: np.ndarray) -> float:
    """Bound the transport cost from below: every token at least pays its cheapest partner.

    Args:
        cost: ``[n, m]`` of :func:`cost_matrix`.

    Returns:
        max(mean row minimum, mean column minimum), never above the Wasserstein distance.
    """
    return float(max(cost.min(axis=1).mean(), cost.min(axis=0).mean()))


def retrieve_masks(
    reference_tokens: Tensor,
    features: Tensor,
    masks: Tensor,
    cost: Cost = "cosine",
    prune: bool = True,
    distance: Distance = "wasserstein",
    seed: int = 0,
) -> Retrieval:
    """Choose the candidate mask nearest to the reference (Eq. 3); of equally near ones the first.

    Equally near are distances within :data:`~monai_ext.prompts.ties.TOLERANCE` of the smallest, for ``sqeuclidean``
    times the mean squared length of the reference's tokens.

    Masks on one feature grid overlap, so the cost of each cell below any of them is computed once. Pruning goes through
    the candidates by their lower bound and stops where it passes the second-smallest distance so far (not the smallest,
    so that the margin is exact too): same choice, same margin, less work.

    Args:
        reference_tokens: ``[n, C]`` foreground features F_R^f of the reference.
        features: ``[C, g, g]`` features F_T of the target.
        masks: ``[K, g, g]`` bool, foreground cells of each candidate; may be empty.
        cost: as in :func:`cost_matrix`; of the pairs of parts for ``hungarian``, not used by ``jensen_shannon``.
        prune: False computes every distance; for ``wasserstein`` alone.
        distance: Table 7's ``wasserstein`` (Eq. 5), ``hungarian`` (:func:`monai_ext.prompts.distances.common_parts`
            and :func:`~monai_ext.prompts.distances.assignment_cost`) or ``jensen_shannon``
            (:func:`monai_ext.prompts.distances.jensen_shannon`).
        seed: of k-means++, for ``hungarian``.

    Raises:
        ValueError: if the reference has no tokens, or for an unknown distance.
    """
    _require_tokens(reference_tokens)
    union = masks.any(dim=0)
    members = masks[:, union].cpu().numpy()
    owners = _first_with_same_key([row.tobytes() for row in members], [not row.any() for row in members])
    if distance != "wasserstein":
        tokens = {owner: foreground_features(features, masks[owner]) for owner in dict.fromkeys(owners.values())}
        tolerance = TOLERANCE if distance == "jensen_shannon" else _tolerance(reference_tokens, cost)
        return _choose(_other_distances(distance, reference_tokens, tokens, cost, seed), owners, len(masks), tolerance)
    shared = cost_matrix(reference_tokens, foreground_features(features, union), cost)
    costs = {owner: shared[:, members[owner]] for owner in dict.fromkeys(owners.values())}
    return _nearest(costs, owners, len(masks), prune, _tolerance(reference_tokens, cost))


def _require_tokens(reference_tokens: Tensor) -> None:
    if len(reference_tokens) == 0:
        raise ValueError("the reference has no foreground tokens to compare with")


def _tolerance(reference_tokens: Tensor, cost: Cost) -> float:
    """Distances that differ by no more count as equal: in the unit of the cost."""
    return TOLERANCE * (float(reference_tokens.square().sum(dim=1).mean()) if cost == "sqeuclidean" else 1.0)


def _first_with_same_key(keys: Sequence[Hashable], empty: Sequence[bool]) -> dict[int, int]:
    """Map each candidate that is not empty to the first one with the same key."""
    first: dict[Hashable, int] = {}
    return {
        index: first.setdefault(key, index)
        for index, (key, is_empty) in enumerate(zip(keys, empty, strict=True))
        if not is_empty
    }


def _nearest(
    costs: Mapping[int, np.ndarray], owners: Mapping[int, int], count: int, prune: bool, tolerance: float
) -> Retrieval:
    bounds = {index: lower_bound(cost) for index, cost in costs.items()}
    found: dict[int, float] = {}
    runner_up = math.inf
    for index in sorted(costs, key=lambda index: (bounds[index], index)):
        # what is left out is then further away than all that count as equally near
        if prune and bounds[index] > runner_up + tolerance:
            break
        found[index] = _transport(costs[index])
        runner_up = sorted(found.values())[1] if len(found) > 1 else math.inf
    return _choose(found, owners, count, tolerance)


def _other_distances(
    distance: Distance, reference: Tensor, candidates: Mapping[int, Tensor], cost: Cost, seed: int
) -> dict[int, float]:
    if distance == "jensen_shannon":
        return jensen_shannon(reference, candidates)
    if distance != "hungarian":
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
    return {
        number: assignment_cost(cost_matrix(*common_parts(reference, tokens, seed=seed), cost))
        for number, tokens in candidates.items()
    }


def _choose(found: Mapping[int, float], owners: Mapping[int, int], count: int, tolerance: float) -> Retrieval:
    """Take the nearest of the candidates whose distance is known; one that is not known is not the runner-up."""
    distances = [found.get(owners[i]) if i in owners else math.inf for i in range(count)]
    if not found:
        return Retrieval(None, distances, None)
    numbers = sorted(found)
    best = numbers[int(first_minimum(torch.tensor([found[k] for k in numbers]), tolerance=tolerance))]
    nearest = sorted(found.values())
    return Retrieval(best, distances, nearest[1] - nearest[0] if len(found) > 1 else None)


def _transport(cost: np.ndarray) -> float:
    import ot  # here, since it imports networkx: mistakes in the options are answered before that

    n, m = cost.shape
    weights = np.full(n, 1 / n), np.full(m, 1 / m)
    return float(ot.emd2(*weights, np.ascontiguousarray(cost), numItermax=_MAX_ITERATIONS, numThreads=1))
