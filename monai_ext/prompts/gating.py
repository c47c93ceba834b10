"""GF-SAM's steps between two feature grids and a set of masks (Zhang et al. 2024, "Bridge the Points", §4).

Written from the paper; the numbers of equations are its own. GF-SAM compares features of DINOv2; in P²SAM's comparison,
and here, they are SAM's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from monai_ext.prompts.ties import TOLERANCE, first_maximum, from_largest


def similarity_maps(target: Tensor, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and greatest similarity of each target cell to the foreground, and its mean to the background (Eqs. 1, 2).

    Args:
        target: ``[m, C]`` features.
        foreground: ``[n, C]`` features of the reference, n at least 1.
        background: ``[b, C]`` features of the reference, b may be 0.

    Returns:
        S+_mean, S+_max and S-_mean, each ``[m]``; S-_mean is 0 without background.
    """
    positive = _correlation(target, foreground)
    negative = _correlation(target, background)
    mean_negative = negative.mean(dim=1) if len(background) else positive.new_zeros(len(target))
    return positive.mean(dim=1), positive.amax(dim=1), mean_negative


def select_points(mean_positive: Tensor, max_positive: Tensor, mean_negative: Tensor) -> Tensor:
    """Select cells that resemble the foreground more than the background (positive-negative alignment, Eq. 3).

    As many as S_p sums up to, rounded down: at least one where any cell is left. Of equal cells
    (:mod:`monai_ext.prompts.ties`) the first; a map that is flat but for rounding selects nothing.

    Args:
        mean_positive: ``[m]`` S+_mean.
        max_positive: ``[m]`` S+_max.
        mean_negative: ``[m]`` S-_mean.

    Returns:
        Indices of the cells, the highest S_p first; empty where S_p is 0 throughout.
    """
    mixture = _unit_range(mean_positive * max_positive)
    kept = torch.where(mixture > _unit_range(mean_negative), mixture, torch.zeros_like(mixture))
    count = min(max(int(kept.double().sum() + TOLERANCE), 1), int((kept > 0).sum()))
    return from_largest(kept.masked_fill(kept == 0, float("-inf")))[:count]


def clusters_by_coverage(covers: Tensor) -> Tensor:
    """Group points whose masks cover one another (point-mask clustering, §4.2).

    Args:
        covers: ``[N, N]`` bool, row l and column m: the mask of point l covers point m. The diagonal does not matter.

    Returns:
        ``[N]`` number of each point's weakly connected component.
    """
    _, members = connected_components(covers.cpu().numpy(), directed=True, connection="weak")
    return torch.from_numpy(members).long().to(covers.device)


def polarity(mean_positive: Tensor, mean_negative: Tensor) -> Tensor:
    """Tell positive from negative cells, 1 from -1 (Eq. 4); s_mid is the middle of the range of S+_mean.

    Args:
        mean_positive: ``[m]`` S+_mean.
        mean_negative: ``[m]`` S-_mean.
    """
    middle = (mean_positive.max() + mean_positive.min()) / 2
    return torch.where(mean_positive.square() > middle * mean_negative, 1.0, -1.0)


def grow_masks(masks: Tensor, clusters: Tensor, signs: Tensor) -> Tensor:
    """Keep the masks that add more positive than negative area to their cluster (positive gating, Eq. 5, Algorithm 1).

    Args:
        masks: ``[N, f * g, f * g]`` bool: whole pixels within each of the g x g cells.
        clusters: ``[N]`` of :func:`clusters_by_coverage`.
        signs: ``[g, g]`` of :func:`polarity`, 0 on padding.

    Returns:
        ``[N]`` bool: members of P+. An empty mask is none.
    """
    factor = masks.shape[-1] // signs.shape[-1]
    fine = signs.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)
    area = masks.flatten(1).sum(dim=1)
    ratio = (masks * fine).flatten(1).sum(dim=1) / area.clamp(min=1)
    kept = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    for cluster in clusters.unique().tolist():
        grown = torch.zeros_like(masks[0])
        members = (clusters == cluster).nonzero()[:, 0]
        for index in members[ratio[members].argsort(descending=True, stable=True)].tolist():
            added = masks[index] & ~grown
            if bool((added * fine).sum() > 0):
                kept[index] = True
                grown |= added
    return kept


def self_consistent(features: Tensor, shares: Tensor, points: Tensor, clusters: Tensor) -> Tensor:
    r"""Keep the points that are most similar to the masks of their own cluster (overshooting gating, Eq. 6).

    .. math:: s(l, p) = \frac{\sum_i \mathrm{Sim}(F(P_l), F(i)) \, I(y_p)(i)}
        {\sum_i I(y_p)(i) \cdot \mathrm{dist}(l, p)}

    dist is the distance from point l to the nearest point of cluster p, in cells, but at least 1: to its own cluster it
    would be 0, and every point would be consistent. Of equally similar clusters the first.

    Args:
        features: ``[C, g, g]`` of the target.
        shares: ``[P, g, g]`` share of each cell that the union of each cluster's masks covers.
        points: ``[N]`` cells of the points, row by row.
        clusters: ``[N]`` of :func:`clusters_by_coverage`, numbers below P.

    Returns:
        ``[N]`` bool: members of P_sc. A cluster whose masks are empty is similar to nothing.
    """
    cells = features.flatten(1).T
    weights = shares.float().flatten(1)
    total = (_correlation(cells[points], cells) @ weights.T) / weights.sum(dim=1).clamp(min=1e-9)
    columns = features.shape[-1]
    place = torch.stack([points // columns, points % columns], dim=1).double()
    apart = torch.cdist(place, place)
    nearest = torch.stack([apart[:, clusters == p].amin(dim=1) for p in range(len(shares))], dim=1)
    similarity = total / nearest.clamp(min=1).to(total)
    return first_maximum(similarity, dim=1) == clusters


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    return (F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T).relu()


def _unit_range(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if bool(high > low + TOLERANCE) else torch.zeros_like(values)
