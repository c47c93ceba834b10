"""Matcher's steps between two feature grids (Liu et al. 2024, "Matcher", §3): match, sample prompts, score masks.

Written from the paper. Matcher matches features of DINOv2; in P²SAM's comparison, and here, they are SAM's own.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from monai_ext.prompts.parts import cluster
from monai_ext.prompts.retrieval import cost_matrix
from monai_ext.prompts.ties import TOLERANCE

JITTER = 0.01
"""Pixels by which points are moved to be clustered: on a grid many clusterings are equally good."""


def match_both_ways(reference: Tensor, inside: Tensor, target: Tensor) -> Tensor:
    """Match patches forward and back; keep matches that lead back into the reference mask (patch-level matching, §3.2).

    Forward, each foreground patch of the reference is assigned a patch of the target of its own, of greatest total
    cosine similarity (Hungarian method). Backward, each patch so found is assigned one of all the reference's patches.
    It is kept where that lies in the foreground. Similarities are counted in whole steps of
    :data:`~monai_ext.prompts.ties.TOLERANCE`, so that sums of equal ones are equal; of equal sums SciPy's choice.

    Args:
        reference: ``[n, C]`` features of the reference.
        inside: ``[n]`` bool, its foreground.
        target: ``[m, C]`` features of the target.

    Returns:
        Indices of the matched target patches, ascending; empty where no match leads back into the mask.
    """
    _, forward = linear_sum_assignment(_steps(reference[inside], target))
    found = torch.from_numpy(np.sort(forward)).to(target.device)
    rows, backward = linear_sum_assignment(_steps(target[found], reference))
    back_inside = inside[torch.from_numpy(backward).to(inside.device)]
    return found[torch.from_numpy(rows).to(found.device)][back_inside.to(found.device)]


def _steps(a: Tensor, b: Tensor) -> np.ndarray:
    """Cost of each pair in whole steps: sums of whole numbers are exact."""
    return np.round(cost_matrix(a, b) / TOLERANCE)


def cluster_centres(points: Tensor, count: int, seed: int = 0) -> Tensor:
    """Cluster point coordinates by k-means++ (robust prompt sampler, §3.2).

    Points of a grid can be clustered in many equally good ways: each is moved by up to :data:`JITTER`, the same for the
    same seed, and one way is the best. Centres are those of the points before.

    Args:
        points: ``[n, 2]``.
        count: number of centres; with no more distinct points than that, the points themselves are returned.
        seed: of k-means++ and of the jitter.

    Returns:
        ``[k, 2]`` float32, k at most ``count``, sorted by coordinates.
    """
    distinct = torch.unique(points.float(), dim=0)
    if len(distinct) <= count:
        return distinct
    jitter = np.random.default_rng(seed).uniform(-JITTER, JITTER, tuple(points.shape))
    members = torch.from_numpy(cluster(points.cpu().numpy() + jitter, count, seed)).to(points.device)
    centres = torch.stack([points[members == part].float().mean(dim=0) for part in range(count)])
    return torch.unique(centres, dim=0)


def point_subsets(count: int, sizes: tuple[int, int]) -> list[tuple[int, ...]]:
    """List all subsets of the centres with numbers of points in a range (the sampler's global prompts).

    Args:
        count: number of centres.
        sizes: fewest and most points; with fewer centres than the fewest, all of them are the only subset.

    Returns:
        Tuples of indices: C(8,4) + C(8,5) + C(8,6) = 154 for 8 centres and sizes 4 to 6; none for no centres.
    """
    least, most = min(sizes[0], count), min(sizes[1], count)
    return [s for size in range(max(least, 1), most + 1) for s in combinations(range(count), size)]


def mask_scores(
    distances: Tensor, masks: Tensor, matched: Tensor, alpha: float = 0.8, beta: float = 0.2, exponent: float = 1.0
) -> Tensor:
    r"""Score mask proposals (instance-level matching, §3.3).

    .. math:: \alpha (1 - \mathrm{emd}) + \beta \cdot \mathrm{purity} \cdot \mathrm{coverage}^{\lambda}

    purity: matched points in the mask / cells of the mask; coverage: matched points in the mask / matched points.

    Args:
        distances: ``[K]`` earth mover's distances in [0, 1] to the reference's foreground, cost (1 - cos) / 2; infinite
            for an empty mask.
        masks: ``[K, m]`` bool, cells of each proposal.
        matched: ``[m]`` bool, cells of the matched points, at least one.
        alpha: weight of the distance.
        beta: weight of purity and coverage.
        exponent: lambda.

    Returns:
        ``[K]`` float64, minus infinity for empty masks.
    """
    hits = (masks & matched).sum(dim=1).double()
    purity = hits / masks.sum(dim=1).clamp(min=1)
    coverage = hits / matched.sum()
    return alpha * (1 - distances.double()) + beta * purity * coverage**exponent
