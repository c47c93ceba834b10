"""One mask from K masks of sampled prompts, and how far they agree (ProSAM §5.4, Table 7).

Logits above 0 are the structure, as everywhere; where K masks are merged by votes, the result is about +1 or -1, and a
little larger the more masks hold a pixel, so that of two structures the one with more votes gets it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_ext.errors import UserError

MEAN_PROMPT = "mean_prompt"
"""Decode the mean of the distribution and draw nothing (the paper's choice)."""


def merge_logits(logits: Tensor, strategy: str) -> Tensor:
    """Merge K masks into one.

    ``max_logits`` and ``mean_logits`` merge logits. ``mean_binary`` takes pixels that at least half of the masks hold,
    ``majority`` those that more than half hold; the two differ in ties alone. ``max_binary`` takes what any holds.

    Args:
        logits: [K, ...].
        strategy: one of :data:`MERGES`.

    Returns:
        [...], above 0 where the structure is.

    Raises:
        UserError: for an unknown strategy.
    """
    check_strategy(strategy, drawn_only=True)
    return MERGES[strategy](logits)


def check_strategy(strategy: str, drawn_only: bool = False) -> None:
    """Refuse a strategy that is none of :data:`STRATEGIES`, or of those that draw.

    Raises:
        UserError: names those there are.
    """
    known = tuple(MERGES) if drawn_only else STRATEGIES
    if strategy not in known:
        raise UserError(f"strategy {strategy!r} is unknown: choose one of {', '.join(known)}.")


PER_VOTE = 1e-2
"""What the share of the votes adds to a sign: too little to move a border where masks are resampled."""


def _by_votes(logits: Tensor, is_inside: Callable[[Tensor, int], Tensor]) -> Tensor:
    votes = (logits > 0).sum(dim=0)
    return is_inside(votes, len(logits)).float() * 2 - 1 + PER_VOTE * votes / len(logits)


MERGES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_logits": lambda logits: logits.amax(dim=0),
    "mean_logits": lambda logits: logits.mean(dim=0),
    "max_binary": lambda logits: _by_votes(logits, lambda votes, count: votes > 0),
    "mean_binary": lambda logits: _by_votes(logits, lambda votes, count: 2 * votes >= count),
    "majority": lambda logits: _by_votes(logits, lambda votes, count: 2 * votes > count),
}
"""Strategies that merge K masks, by name."""

STRATEGIES = (MEAN_PROMPT, *MERGES)
"""All strategies of Table 7."""


@dataclass(frozen=True)
class MaskUncertainty:
    """How far the masks of K sampled prompts agree on one structure of one slice.

    Attributes:
        variance: [H, W], of the K probabilities of each pixel, divided by K.
        entropy: mean over the pixels that any mask holds of the binary entropy of the mean probability, in nats; 0
            where none holds any.
        agreement: expected Dice of two of the masks, the mean over all pairs; two empty masks agree (1).
        variance_ratio: the summed variance by the summed mean probability, so that a large structure is not less sure
            than a small one; 0 where there is none.
        found: whether any of the masks holds a pixel. Where none does, the three numbers say nothing of how sure that
            is: a structure that was missed by all looks like one that is not there.
    """

    variance: Tensor
    entropy: float
    agreement: float
    variance_ratio: float
    found: bool


def mask_uncertainty(logits: Tensor) -> MaskUncertainty:
    """Compare the masks of K sampled prompts.

    Args:
        logits: [K, H, W], K at least 2.

    Raises:
        ValueError: for fewer masks.
    """
    if len(logits) < 2:
        raise ValueError("one mask agrees with itself: draw two or more")
    probability = logits.sigmoid()
    mean, variance = probability.mean(dim=0), probability.var(dim=0, unbiased=False)
    held = (logits > 0).any(dim=0)
    entropy = float(_binary_entropy(mean)[held].mean()) if bool(held.any()) else 0.0
    ratio = float(variance.sum() / mean.sum().clamp(min=1e-6)) if bool(held.any()) else 0.0
    return MaskUncertainty(variance, entropy, _mean_pair_dice(logits > 0), ratio, bool(held.any()))


def _binary_entropy(probability: Tensor) -> Tensor:
    return torch.special.entr(probability) + torch.special.entr(1 - probability)


def _mean_pair_dice(masks: Tensor) -> float:
    flat = masks.flatten(1).float()
    shared, areas = flat @ flat.T, flat.sum(dim=1)
    total = areas[:, None] + areas[None]
    dice = torch.where(total > 0, 2 * shared / total.clamp(min=1), torch.ones_like(total))
    pairs = torch.triu_indices(len(masks), len(masks), offset=1)
    return float(dice[pairs[0], pairs[1]].mean())
