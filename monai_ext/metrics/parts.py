"""Connected parts of a structure at two times: which stayed, came, went, split or merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

KINDS = {(0, 1): "new", (1, 0): "gone", (1, 1): "kept", (1, 2): "split", (2, 1): "merged", (2, 2): "regrouped"}
"""What it is called when so many parts, two for any more, became so many."""


@dataclass(frozen=True)
class PartChange:
    """Parts that belong together.

    Attributes:
        kind: ``kept``, ``new``, ``gone``, ``split`` (one became several), ``merged`` (several became one) or
            ``regrouped`` (several became several).
        before: their numbers in the earlier mask.
        after: their numbers in the later mask.
    """

    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...]


def number_parts(mask: np.ndarray, least: int = 1) -> tuple[np.ndarray, list[int]]:
    """Number the connected parts of a mask, over sides, edges and corners, the largest first.

    Args:
        mask: bool, of any number of axes.
        least: parts with fewer voxels are left out.

    Returns:
        The numbers, 0 where there is no part, and the voxels of each part.
    """
    found, count = ndimage.label(mask, np.ones((3,) * mask.ndim, dtype=int))
    sizes = np.bincount(found.ravel(), minlength=count + 1)[1:]
    order = [number for number in np.argsort(-sizes, kind="stable") if sizes[number] >= least]
    renumber = np.zeros(count + 1, dtype=np.int32)
    for place, number in enumerate(order, start=1):
        renumber[number + 1] = place
    return renumber[found], [int(sizes[number]) for number in order]


def match_parts(
    before: np.ndarray, after: np.ndarray, spacing: Sequence[float], reach: float = 0.0
) -> list[PartChange]:
    """Match the parts of two masks on one grid by their overlap.

    Args:
        before: numbers of the earlier parts, as :func:`number_parts` gives them.
        after: of the later ones, of the same shape.
        spacing: of a voxel along each axis.
        reach: how far, in the unit of the spacing, an earlier part may lie off a later one and still belong to it:
            images are not registered.

    Returns:
        Groups of parts that overlap, directly or through others: by their earlier parts, then the new ones.
    """
    numbers_before, numbers_after = _numbers(before), _numbers(after)
    grown = _grown(before, spacing, reach) if reach > 0 and numbers_before else before
    both = (grown > 0) & (after > 0)
    links = {(int(one), int(other)) for one, other in np.unique(np.stack([grown[both], after[both]], axis=1), axis=0)}
    changes, left = [], set(numbers_after)
    waiting = list(numbers_before)
    while waiting:
        group, later = {waiting.pop(0)}, set[int]()
        grew = True
        while grew:
            later |= {other for one, other in links if one in group}
            joined = {one for one, other in links if other in later} - group
            group, grew = group | joined, bool(joined)
        waiting = [number for number in waiting if number not in group]
        left -= later
        changes.append(_change(group, later))
    return changes + [_change(set(), {number}) for number in sorted(left)]


def _numbers(parts: np.ndarray) -> list[int]:
    return [int(number) for number in np.unique(parts) if number]


def _grown(parts: np.ndarray, spacing: Sequence[float], reach: float) -> np.ndarray:
    """Give voxels within reach the number of the nearest part."""
    distance, nearest = ndimage.distance_transform_edt(parts == 0, sampling=spacing, return_indices=True)
    return np.where(distance <= reach, parts[tuple(nearest)], 0)


def _change(before: set[int], after: set[int]) -> PartChange:
    kind = KINDS[min(len(before), 2), min(len(after), 2)]
    return PartChange(kind, tuple(sorted(before)), tuple(sorted(after)))
