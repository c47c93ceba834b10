"""Which of several equal values is taken: within a tolerance, the first in reading order.

Products are rounded differently by another processor, another number of threads or another layout of the same numbers.
Two values that are equal in exact arithmetic (a map that repeats its edge, patches that look alike) then differ by
rounding alone, and a plain argmax would answer with the processor.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""Of similarities and costs in [-1, 1] and of distances between them: values that differ by no more count as equal."""

LOGIT_TOLERANCE = 1e-3
"""Of a mask's logits, which reach some tens."""


def first_maximum(values: Tensor, dim: int = -1, tolerance: float = TOLERANCE) -> Tensor:
    """Index of the first of the largest values along an axis: the first that is within ``tolerance`` of the largest.

    >>> first_maximum(torch.tensor([0.1, 0.9, 0.9000001]))
    tensor(1)

    Args:
        values: of any shape, not empty along ``dim``, without NaN.
        dim: axis to search along.
        tolerance: in the unit of the values.

    Returns:
        Integer indices, of the shape of ``values`` without ``dim``.
    """
    largest = values.amax(dim=dim, keepdim=True)
    return (values >= largest - tolerance).to(torch.uint8).argmax(dim=dim)


def first_minimum(values: Tensor, dim: int = -1, tolerance: float = TOLERANCE) -> Tensor:
    """Index of the first of the smallest values along an axis; see :func:`first_maximum`."""
    return first_maximum(-values, dim, tolerance)


def from_largest(values: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Sort values from the largest to the smallest, those that count as equal in reading order.

    The largest of what is left and all within ``tolerance`` below it come next, as one group.

    Args:
        values: ``[n]``.
        tolerance: in the unit of the values.

    Returns:
        ``[n]`` indices.
    """
    order = values.argsort(descending=True, stable=True)
    group, groups, leader = 0, [], float("inf")
    for value in values[order].tolist():
        if value < leader - tolerance:
            group, leader = group + 1, value
        groups.append(group)
    ranks = torch.empty_like(order)
    ranks[order] = torch.tensor(groups, dtype=order.dtype, device=order.device)
    return ranks.argsort(stable=True)


def likeliest_label(logits: Tensor) -> Tensor:
    """Merge logits of labels into numbers: 0, background, where none is above 0, else 1 + the label of the largest.

    Of labels above 0 within :data:`LOGIT_TOLERANCE` of the largest the first is taken.

    Args:
        logits: ``[L, ...]``.

    Returns:
        ``[...]`` integer in 0..L.
    """
    found = logits > 0
    first = first_maximum(logits.where(found, float("-inf")), dim=0, tolerance=LOGIT_TOLERANCE)
    return (first + 1).where(found.any(dim=0), 0)


def first_largest(values: Tensor, count: int, tolerance: float = TOLERANCE) -> Tensor:
    """Find the ``count`` largest values of each row.

    Values within ``tolerance`` of the last of them count as equal: those above are all taken, then these in reading
    order.

    Args:
        values: ``[m, n]``, without NaN.
        count: how many to find, at most n.
        tolerance: in the unit of the values.

    Returns:
        ``[m, count]`` indices, ascending.
    """
    last = values.topk(count, dim=1).values[:, -1:]
    taken = values >= last - tolerance
    crowded = taken.sum(dim=1) > count
    above = values[crowded] > last[crowded] + tolerance
    equal = taken[crowded] & ~above
    left = count - above.sum(dim=1, keepdim=True)
    taken[crowded] = above | (equal & (equal.cumsum(dim=1) <= left))
    return taken.nonzero()[:, 1].view(len(values), count)
