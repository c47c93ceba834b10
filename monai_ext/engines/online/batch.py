"""The online batch: which corrected samples are trained on at every step (AuxOL §3.2, Listing 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monai_ext.errors import UserError

POLICIES = ("smallest_loss", "fifo")


@dataclass(frozen=True)
class Sample:
    """One corrected crop.

    Attributes:
        key: of the correction; a later one with the same key replaces it.
        image: [C, S, S] input of the network.
        truth: [1, S, S] floating 0 and 1.
        loss: when it was last looked at.
        born: number of the correction that brought it.
    """

    key: str
    image: Tensor
    truth: Tensor
    loss: float
    born: int


@dataclass(frozen=True)
class OnlineBatch:
    """At most ``size`` samples; every change returns another batch, so that a step that fails changes nothing.

    Args:
        size: k; 1 is the paper's single-sample variant.
        policy: ``smallest_loss``, the paper's: the new sample takes the place of the one with the smallest loss if that
            is not larger than its own, else it is left out. ``fifo``, the authors' code: of the oldest, always. Under
            ``smallest_loss`` a wrong correction, whose loss stays large, stays for ever, unless ``max_age`` ends it.
        max_age: corrections after which a sample leaves the batch; None: never.
        samples: the oldest first.

    Raises:
        UserError: for an unknown policy, or an impossible number.
    """

    size: int = 32
    policy: str = "smallest_loss"
    max_age: int | None = None
    samples: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UserError(f"policy {self.policy!r} is unknown: choose one of {', '.join(POLICIES)}.")
        for name, number in (("batch", self.size), ("max_age", self.max_age)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise UserError(f"{name} is {number}: give a whole number from 1.")

    def insert(self, new: Sample) -> OnlineBatch:
        """Return the batch after a correction; ``new`` may not be in it."""
        kept = [sample for sample in self.samples if sample.key != new.key]
        if self.max_age is not None:
            kept = [sample for sample in kept if new.born - sample.born < self.max_age]
        if len(kept) < self.size:
            return replace(self, samples=(*kept, new))
        if self.policy == "fifo":
            return replace(self, samples=(*kept[1:], new))
        easiest = min(range(len(kept)), key=lambda number: kept[number].loss)  # of equal ones the oldest
        if kept[easiest].loss > new.loss:
            return replace(self, samples=tuple(kept))
        del kept[easiest]
        return replace(self, samples=(*kept, new))

    def with_losses(self, losses: list[float]) -> OnlineBatch:
        """Return the batch with the losses of the last pass, in the order of the samples."""
        updated = (replace(sample, loss=loss) for sample, loss in zip(self.samples, losses, strict=True))
        return replace(self, samples=tuple(updated))

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return images [k, C, S, S] and truths [k, 1, S, S]."""
        return torch.stack([s.image for s in self.samples]), torch.stack([s.truth for s in self.samples])
