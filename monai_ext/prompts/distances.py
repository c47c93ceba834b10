"""What the paper compares its Wasserstein distance with in retrieval (P²SAM §4.3, Table 7).

The paper names both in half a sentence each and the authors' code holds neither. What it leaves open is chosen here and
declared at each function.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from monai_ext.prompts.parts import part_sets

HUNGARIAN_PARTS = 4
"""Parts that both sets are divided into: n = 4 in Table 7."""

BINS = 8
"""Bins along each principal component."""


def common_parts(a: Tensor, b: Tensor, most: int = HUNGARIAN_PARTS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Divide two sets of tokens into an equal number of parts, as many as both can fill up to ``most``.

    Args:
        a: ``[n, C]``.
        b: ``[m, C]``.
        most: number of parts where the tokens suffice (the paper does not say what happens where they do not).
        seed: of k-means++.

    Returns:
        Part features ``[k, C]`` of each, k in 1..``most``.

    Raises:
        ValueError: if one set is empty.
    """
    if len(a) == 0 or len(b) == 0:
        raise ValueError("the distance to an empty set of tokens is not defined")
    for count in range(min(most, len(a), len(b)), 1, -1):
        sets = [part_sets(tokens, [count], seed).get(count) for tokens in (a, b)]
        if sets[0] is not None and sets[1] is not None:
            return sets[0], sets[1]
    return a.float().mean(dim=0, keepdim=True), b.float().mean(dim=0, keepdim=True)


def assignment_cost(cost: np.ndarray) -> float:
    r"""Mean cost of the best one-to-one assignment (Hungarian algorithm).

    .. math:: D_h = \min_\pi \frac{1}{k} \sum_i c_{i, \pi(i)}

    The paper does not say whether the costs of the pairs are summed or averaged; the mean lets candidates of fewer
    parts be compared with those of more.

    Args:
        cost: ``[k, k]`` between the parts of two sets.
    """
    return float(cost[linear_sum_assignment(cost)].mean())


def jensen_shannon(reference: Tensor, candidates: Mapping[int, Tensor], bins: int = BINS) -> dict[int, float]:
    r"""Jensen-Shannon divergence to the reference in the plane of the first two principal components.

    .. math:: D_{js}(p, q) = H\left(\tfrac{p + q}{2}\right) - \tfrac{1}{2} H(p) - \tfrac{1}{2} H(q)

    in bits, hence in [0, 1]. The paper says "based on the first two principal components of each feature". Left open
    and chosen: the components are those of the reference and all candidates together, so that the divergences of the
    candidates are comparable; densities are histograms of ``bins`` x ``bins`` equal cells over the range of all tokens,
    not smoothed. A token that is in several candidates counts in each.

    Args:
        reference: ``[n, C]``.
        candidates: number -> ``[m, C]``, none empty.
        bins: along each component.

    Returns:
        number -> divergence.
    """
    if not candidates:
        return {}
    sets = [tokens.detach().cpu().double() for tokens in (reference, *candidates.values())]
    centred = torch.cat(sets)
    if not bool(centred.isfinite().all()):
        raise ValueError("features hold NaN or infinity: no distance is defined")
    centred = centred - centred.mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    plane = (centred @ axes[:, -2:]).numpy()
    edges = [_edges(plane[:, axis], bins) for axis in range(plane.shape[1])]
    densities = [
        np.histogramdd(part, bins=edges)[0].ravel() / len(part)
        for part in np.split(plane, np.cumsum([len(tokens) for tokens in sets])[:-1])
    ]
    p = densities[0]
    return {
        number: max(0.0, _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)
        for number, q in zip(candidates, densities[1:], strict=True)
    }


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high if high > low else low + 1, bins + 1)


def _entropy(density: np.ndarray) -> float:
    held = density[density > 0]
    return float(-(held * np.log2(held)).sum())
