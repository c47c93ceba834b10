"""How SAM and the auxiliary network are weighed against each other (AuxOL, Eq. 1 and 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.prompts.ties import first_maximum

WINDOW = 5
"""K: so many of the last optimal alphas are averaged."""

GRID = 20
"""Steps from 0 to 1 in which alpha is sought."""


def fuse(sam: Tensor, own: Tensor, alpha: float) -> Tensor:
    """Return alpha s + (1 - alpha) u: Eq. 1 before its activation, so a mask is where it is above 0.

    Args:
        sam: logits of SAM, s.
        own: logits of the auxiliary network, u, of the same shape.
        alpha: 1 is SAM alone, 0 the auxiliary network alone.
    """
    return alpha * sam + (1 - alpha) * own


def soft_dice(shares: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice of probabilities [..., H, W] and a mask [H, W], without a threshold: [...]."""
    truth = truth.to(shares.dtype)
    common = (shares * truth).sum((-2, -1))
    return (2 * common + smooth) / (shares.sum((-2, -1)) + truth.sum() + smooth)


def best_alpha(sam: Tensor, own: Tensor, truth: Tensor, steps: int = GRID) -> float:
    """Solve Eq. 3 on a grid: the alpha of highest soft Dice, of equal ones the smallest.

    Args:
        sam: [h, w] logits of SAM in the crop.
        own: [h, w] logits of the auxiliary network from before it learns of this sample.
        truth: [h, w] the corrected mask.
        steps: of the grid 0, 1 / steps, ..., 1.
    """
    values = [fuse(sam, own, number / steps) for number in range(steps + 1)]
    scores = torch.stack([soft_dice(logits.sigmoid(), truth) for logits in values])
    return int(first_maximum(scores, dim=0)) / steps


def current_alpha(found: list[float], fixed: float | None = None, window: int = WINDOW) -> float:
    """Return the mean of the last ``window`` optimal alphas; 1, SAM alone, before there are so many.

    The paper names 0.5 as the default of fixed fusion; Fig. 6 begins near 1, and so does the authors' code.

    Args:
        found: optimal alphas of earlier samples, the oldest first.
        fixed: use this one always (the paper's fixed fusion).
        window: K.
    """
    if fixed is not None:
        return fixed
    return sum(found[-window:]) / window if len(found) >= window else 1.0


def check_alpha(fixed: float | None) -> None:
    """Refuse a fixed alpha outside of 0 to 1.

    Raises:
        UserError: says what is expected.
    """
    number = isinstance(fixed, (int, float)) and not isinstance(fixed, bool)
    if fixed is not None and not (number and 0 <= fixed <= 1):
        raise UserError(f"alpha is {fixed}: give a number from 0 (auxiliary network) to 1 (SAM), or null to learn it.")
