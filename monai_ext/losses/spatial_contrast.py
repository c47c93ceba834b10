"""APSCL's spatial contrastive loss (§3.2, Eqs. 7 and 8): images of one class are relevant to each other.

The relevance r of images is :class:`monai_ext.networks.spatial_interaction.SpatialInteraction`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_ext.errors import UserError

POOLS = ("two_class", "queue", "literal")


class SpatialContrastLoss(nn.Module):
    """Contrast the relevance of images of one class with that of all others.

    As printed, with one class and one pair a step, the loss pushes the pair apart: the sum over j keeps j = i, and the
    denominator leaves k = i out, so that it is sum_i (r_ij - r_ii) / tau. It goes back to Ouali et al. (2021), whose
    anchor i has positives j != i and is normalised by their number; that is computed here:

        L = sum_i 1 / |P(i)| sum_{j in P(i)} -log( exp(r_ij / tau) / sum_{k != i} exp(r_ik / tau) )

    Args:
        pool: where the images come from. ``two_class``: support and query of two base classes a step. ``queue``: those
            of one class a step and images of earlier steps (:class:`ContrastQueue`). ``literal``: Eqs. 7 and 8 as
            printed, to see what they do.
        temperature: tau, not stated; 0.1 as Ouali et al.

    Raises:
        UserError: for an unknown pool.
    """

    def __init__(self, pool: str = "two_class", temperature: float = 0.1) -> None:
        super().__init__()
        if pool not in POOLS:
            raise UserError(f"--scl_pool {pool!r} is unknown: choose one of {', '.join(POOLS)}.")
        self.pool, self.temperature = pool, temperature

    def forward(self, relevance: Tensor, classes: Sequence[int]) -> Tensor:
        """Return the sum over anchors.

        Args:
            relevance: [a, n] of the first a images, the anchors, to all n; a = n for ``literal``.
            classes: of the n images.

        Raises:
            ValueError: ``two_class`` was given one class.
        """
        labels = torch.as_tensor(classes, device=relevance.device)
        if self.pool == "two_class" and len(labels.unique()) < 2:
            raise ValueError("the contrast of two classes needs images of two")
        anchors, count = relevance.shape
        itself = torch.eye(anchors, count, dtype=torch.bool, device=relevance.device)
        same = labels[:anchors, None] == labels[None]
        logits = relevance / self.temperature
        others = logits.masked_fill(itself, float("-inf")).logsumexp(dim=1, keepdim=True)
        losses = others - logits  # L_ij of Eq. 7
        if self.pool == "literal":
            return (losses * same).sum() / (count - 1)
        positive = same & ~itself
        return ((losses * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)).sum()


class ContrastQueue:
    """Images of earlier steps, first in, first out: whatever is needed to compare with them, without gradients.

    Args:
        size: number of images.
    """

    def __init__(self, size: int = 32) -> None:
        self.size = size
        self.held: tuple[Tensor, ...] = ()
        self.classes: list[int] = []

    def join(self, parts: Sequence[Tensor], classes: Sequence[int]) -> tuple[tuple[Tensor, ...], list[int]]:
        """Put the images of a step before those held.

        Args:
            parts: tensors with the images along the first axis.
            classes: of the images.
        """
        held = self.held or tuple(part[:0] for part in parts)
        together = tuple(torch.cat([new, old.to(new)]) for new, old in zip(parts, held, strict=True))
        return together, [*classes, *self.classes]

    def push(self, parts: Sequence[Tensor], classes: Sequence[int]) -> None:
        """Take the images of a step in; the oldest beyond ``size`` leave."""
        together, classes = self.join([part.detach() for part in parts], classes)
        self.held = tuple(part[: self.size].clone() for part in together)
        self.classes = list(classes[: self.size])

    def state_dict(self) -> dict[str, Any]:
        """Return what is held, for a training that goes on later."""
        return {"held": list(self.held), "classes": self.classes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.held, self.classes = tuple(state["held"]), [int(c) for c in state["classes"]]
