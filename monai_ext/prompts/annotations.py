"""Annotations of a reference: a mask, a box, a scribble or points, given or derived from a mask, as a map of the image.

A visual reference is an image and a map of where the object was annotated (VRP-SAM; ProSAM §3.2). A box is filled; a
scribble and points are their pixels. Whatever the kind, the map reaches the feature grid by :func:`downsample`. A map
that is empty, or has become empty there, holds nothing of the object: it is refused and never passed on. (Resampled to
the nearest pixel, as in VRP-SAM's code, 20 points are lost between the cells in about three of four draws.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.prompts.boxes import tight_box

Mask = NDArray[np.bool_]

MOST_STROKES = 20
"""Strokes of a scribble and points of a point annotation that are drawn at most (VRP-SAM)."""


def annotate(mask: Mask, kind: str, rng: np.random.Generator, count: int = MOST_STROKES) -> Mask:
    """Derive an annotation from a mask.

    ``mask`` is the mask itself, ``box`` its filled tight box, ``scribble`` random strokes through the object and
    ``points`` random pixels of it.

    Args:
        mask: [H, W], the object.
        kind: one of :data:`KINDS`.
        rng: source of randomness.
        count: most strokes or points; a smaller object has fewer points.

    Returns:
        [H, W]; box alone reaches outside the object.

    Raises:
        UserError: for an unknown kind, an empty mask, or a count below 1.

    Example:
        >>> annotate(mask, "box", np.random.default_rng(0))  # mask: [256, 256] bool
    """
    check_kind(kind)
    if count < 1:
        raise UserError(f"the number of points or strokes is {count}: give 1 or more.")
    if not mask.any():
        raise UserError("the annotation of a reference is empty: annotate the object, or choose another reference.")
    return KINDS[kind](mask.astype(bool), rng, count)


def check_kind(kind: str) -> None:
    """Refuse a kind that is none of :data:`KINDS`.

    Raises:
        UserError: names those there are.
    """
    if kind not in KINDS:
        raise UserError(f"annotation {kind!r} is unknown: choose one of {', '.join(KINDS)}.")


def from_points(points: Sequence[Sequence[float]], size: tuple[int, int]) -> Mask:
    """Return the pixels of points.

    Args:
        points: (x, y) in pixels, centres at integers.
        size: (H, W) of the image that they lie on.

    Raises:
        UserError: there is no point, or one lies outside the image.
    """
    if not len(points):
        raise UserError("the annotation of a reference has no point: give one or more.")
    mask = np.zeros(size, dtype=bool)
    for x, y in points:
        column, row = round(x), round(y)
        if not (0 <= row < size[0] and 0 <= column < size[1]):
            raise UserError(f"point ({x:g}, {y:g}) lies outside its image of {size[1]} x {size[0]} pixels.")
        mask[row, column] = True
    return mask


def from_box(box: Sequence[float], size: tuple[int, int]) -> Mask:
    """Return a filled box.

    Args:
        box: (x0, y0, x1, y1) in pixels, corners included.
        size: (H, W) of the image that it lies on.

    Raises:
        UserError: it has no area in the image.
    """
    x0, y0, x1, y1 = (round(side) for side in box)
    mask = np.zeros(size, dtype=bool)
    mask[max(y0, 0) : max(y1 + 1, 0), max(x0, 0) : max(x1 + 1, 0)] = True
    if not mask.any():
        raise UserError(f"box {tuple(box)} does not touch its image of {size[1]} x {size[0]} pixels.")
    return mask


def downsample(annotation: Tensor, side: int, grid: int, rule: str = "max") -> Tensor:
    """Bring annotations to the cells of a padded square.

    ``max``: a cell that holds an annotated pixel is 1. ``area``: the annotated share of the cell. ``nearest``: the
    pixel at the cell's corner, as in VRP-SAM's code, by which small objects and points are lost.

    Args:
        annotation: [B, H, W] bool or floating, in the input frame, H and W at most ``side``.
        side: pixels of the square; padding is not annotated.
        grid: cells along one side; ``side`` is a multiple of it.
        rule: one of :data:`DOWNSAMPLINGS`.

    Returns:
        [B, grid, grid] float32 in [0, 1].

    Raises:
        UserError: for an unknown rule, or an annotation of which nothing is left.
    """
    check_downsampling(rule)
    height, width = annotation.shape[-2:]
    padded = F.pad(annotation.float(), (0, side - width, 0, side - height))
    cells = DOWNSAMPLINGS[rule](padded[:, None], grid)[:, 0]
    lost = ~(cells > 0).flatten(1).any(dim=1)
    if bool(lost.any()):
        if not bool(annotation[lost].any()):
            raise UserError("the annotation of a reference is empty: annotate the object, or choose another reference.")
        raise UserError(
            f"nothing of a reference's annotation is left on {grid} x {grid} cells: set --mask_downsample max."
        )
    return cells


def check_downsampling(rule: str) -> None:
    """Refuse a rule that is none of :data:`DOWNSAMPLINGS`.

    Raises:
        UserError: names those there are.
    """
    if rule not in DOWNSAMPLINGS:
        raise UserError(f"mask_downsample {rule!r} is unknown: choose one of {', '.join(DOWNSAMPLINGS)}.")


DOWNSAMPLINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "max": F.adaptive_max_pool2d,
    "area": F.adaptive_avg_pool2d,
    "nearest": lambda maps, grid: F.interpolate(maps, (grid, grid), mode="nearest"),
}
"""Rules by name: maps [B, 1, S, S] to [B, 1, grid, grid]."""


def _box(mask: Mask, rng: np.random.Generator, count: int) -> Mask:
    box = tight_box(torch.from_numpy(mask))
    if box is None:
        return np.zeros_like(mask)
    return from_box([int(side) for side in box.tolist()], (mask.shape[0], mask.shape[1]))


def _points(mask: Mask, rng: np.random.Generator, count: int) -> Mask:
    inside = np.flatnonzero(mask)
    drawn = np.zeros(mask.size, dtype=bool)
    drawn[rng.choice(inside, min(count, len(inside)), replace=False)] = True
    return drawn.reshape(mask.shape)


def _scribble(mask: Mask, rng: np.random.Generator, count: int) -> Mask:
    """Draw arcs between random pixels of the object and keep what lies inside it; the first pixel is always kept."""
    inside = np.argwhere(mask)
    drawn = np.zeros_like(mask)
    for _ in range(int(rng.integers(1, count + 1))):
        start, end = inside[rng.integers(len(inside), size=2)]
        drawn |= _arc(start, end, float(rng.uniform(-0.5, 0.5)), mask.shape)
        drawn[tuple(start)] = True
    width = max(1, round(0.05 * float(np.sqrt(mask.sum()))))
    return ndimage.binary_dilation(drawn, np.ones((width, width), dtype=bool)) & mask


def _arc(start: NDArray[Any], end: NDArray[Any], bend: float, size: tuple[int, ...]) -> Mask:
    """Return the pixels of a parabola whose middle lies ``bend`` times the chord's length beside the chord."""
    t = np.linspace(0, 1, 2 * int(np.abs(end - start).sum()) + 2)[:, None]
    across = np.array([start[1] - end[1], end[0] - start[0]])
    places = np.rint(start + t * (end - start) + 4 * bend * t * (1 - t) * across).astype(int)
    places = places[((places >= 0) & (places < size)).all(axis=1)]
    drawn = np.zeros(size, dtype=bool)
    drawn[tuple(places.T)] = True
    return drawn


KINDS: dict[str, Callable[[Mask, np.random.Generator, int], Mask]] = {
    "mask": lambda mask, rng, count: mask,
    "box": _box,
    "scribble": _scribble,
    "points": _points,
}
"""Kinds by name."""
