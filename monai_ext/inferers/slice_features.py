"""Features of masks for the review score, computed without any label of the target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_ext.inferers.reference import Reference


def mask_features(
    logits: Tensor, value: int, k: int, references: Sequence[Reference], matches: Sequence[Sequence[int | None]]
) -> dict[str, float | None]:
    """Describe one structure on one slice.

    ``certainty``: mean of |2 p - 1| over the pixels of the mask and those whose p is above 0.1. ``area_change``:
    absolute logarithm of the mask's area over that of the matched reference slice, each plus one pixel.
    ``shift``: 1 - Dice of the mask and the reference's mask at the same place. ``jump``: 1 - Dice of the mask and that
    of the neighbouring slice which it resembles most.

    Args:
        logits: ``[H, W, D]`` of the structure in the input frame.
        value: of the structure in the references' labels.
        k: the slice.
        references: of the case; the last one with a matched slice is compared with.
        matches: of each reference, for each slice of the target its slice or None.

    Returns:
        Feature -> value; None where it is not defined (no neighbour, no reference slice, frames of other sizes).
    """
    mask, depth = logits[..., k] > 0, logits.shape[-1]
    chance = torch.sigmoid(logits[..., k])
    asked = chance > 0.1
    neighbours = [logits[..., n] > 0 for n in (k - 1, k + 1) if 0 <= n < depth]
    known = _matched(value, k, references, matches)
    before = known[-1] if known else None
    area = int(mask.sum())
    return {
        "certainty": float((2 * chance[asked] - 1).abs().mean()) if bool(asked.any()) else 0.0,
        "area_change": None if before is None else abs(math.log((area + 1) / (int(before.sum()) + 1))),
        "shift": None if before is None or before.shape != mask.shape else 1 - dice(mask, before),
        "jump": min((1 - dice(mask, other) for other in neighbours if bool(other.any())), default=None),
    }


def dice(a: Tensor, b: Tensor) -> float:
    """Dice of two masks of one shape; 1 where both are empty."""
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else 1.0


def spread(masks: Tensor, chosen: int) -> float | None:
    """Mean of 1 - Dice between the chosen candidate and the others; None where there is no other.

    Args:
        masks: ``[K, H, W]`` bool.
        chosen: number of the chosen one.
    """
    others = [1 - dice(masks[chosen], mask) for number, mask in enumerate(masks) if number != chosen]
    return sum(others) / len(others) if others else None


def _matched(
    value: int, k: int, references: Sequence[Reference], matches: Sequence[Sequence[int | None]]
) -> list[Tensor]:
    return [
        reference.label[0, :, :, index] == value
        for reference, match in zip(references, matches, strict=True)
        if (index := match[k]) is not None
    ]
