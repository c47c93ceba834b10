"""One candidate mask a slice, such that neighbouring slices agree: chosen together, by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def choose_chain(costs: Sequence[Tensor], masks: Sequence[Tensor]) -> list[int]:
    r"""Choose a candidate of each slice of a stack.

    .. math:: \min_{c} \sum_k d_k(c_k) + \sum_k \frac{d_k(c_k) + d_{k+1}(c_{k+1})}{2} (1 - \mathrm{Dice}(c_k, c_{k+1}))

    with the cost d of a candidate: a disagreement doubles what the two candidates cost. Exact (Viterbi).

    Args:
        costs: of each slice ``[K]``, not negative; infinite for a candidate that must not be chosen. At least one of
            each slice is finite.
        masks: of each slice ``[K, H, W]`` bool; K may differ from slice to slice.

    Returns:
        The number of the candidate of each slice; of equally good ones the first.
    """
    if not costs:
        return []
    total = costs[0].double()
    best_before: list[Tensor] = []
    for k in range(1, len(costs)):
        before, own = costs[k - 1].double(), costs[k].double()
        apart = 1 - pairwise_dice(masks[k - 1], masks[k])
        ways = total[:, None] + own[None, :] + (before[:, None] + own[None, :]) / 2 * apart
        total, previous = ways.nan_to_num(nan=torch.inf, posinf=torch.inf).min(dim=0)  # infinity times 0 is none
        best_before.append(previous)
    chosen = [int(total.argmin())]
    for previous in reversed(best_before):
        chosen.append(int(previous[chosen[-1]]))
    return chosen[::-1]


def pairwise_dice(a: Tensor, b: Tensor) -> Tensor:
    """Dice of each mask of ``a [N, H, W]`` with each of ``b [M, H, W]``: ``[N, M]`` float64; 1 where both are empty."""
    one, other = a.flatten(1).double(), b.flatten(1).double()
    sizes = one.sum(dim=1)[:, None] + other.sum(dim=1)[None, :]
    return torch.where(sizes > 0, 2 * (one @ other.T) / sizes.clamp(min=1), 1.0)
