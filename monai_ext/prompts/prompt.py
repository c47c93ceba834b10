"""What a promptable model is asked: points and a box in the input frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

POSITIVE = 1
NEGATIVE = 0


@dataclass(frozen=True, eq=False)
class Prompt:
    """One question to the mask decoder, in input-frame pixels.

    Pixel centres lie at integers, x runs along W, y along H. No points and no box is a valid prompt: the
    decoder then has to find the structure alone.

    Args:
        points: ``[N, 2]`` floating, ``(x, y)`` each; N may be 0.
        labels: ``[N]``, 1 for a point in the structure, 0 for one outside. Padding (SAM's -1) is refused: it
            changes the mask, so lengths are evened out behind a key mask in the decoder.
        box: ``[4]`` as ``(x0, y0, x1, y1)`` with both corners inside the structure's extent, or None.

    Raises:
        ValueError: for another shape, another label or swapped corners.
    """

    points: Tensor
    labels: Tensor
    box: Tensor | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 2 or not self.points.is_floating_point():
            raise ValueError(f"points must be floating [N, 2], got {self.points.dtype} {list(self.points.shape)}")
        if self.labels.shape != self.points.shape[:1]:
            raise ValueError(f"labels must be [{len(self.points)}], one a point, got {list(self.labels.shape)}")
        if not bool(((self.labels == POSITIVE) | (self.labels == NEGATIVE)).all()):
            raise ValueError(f"labels must be 1 or 0, got {self.labels.tolist()}")
        if self.box is not None:
            if self.box.shape != (4,):
                raise ValueError(f"box must be [4] as x0, y0, x1, y1, got {list(self.box.shape)}")
            if bool((self.box[:2] > self.box[2:]).any()):
                raise ValueError(f"box must be x0 <= x1 and y0 <= y1, got {self.box.tolist()}")

    @classmethod
    def from_points(cls, positive: Tensor, negative: Tensor | None = None, box: Tensor | None = None) -> Prompt:
        """Join points in the authors' order, positives first.

        Args:
            positive: ``[P, 2]`` input-frame ``(x, y)``.
            negative: ``[Q, 2]`` or None.
            box: as in :class:`Prompt`.
        """
        if negative is None:
            negative = positive.new_empty((0, 2))
        labels = [POSITIVE] * len(positive) + [NEGATIVE] * len(negative)
        return cls(
            points=torch.cat([positive, negative]),
            labels=torch.tensor(labels, dtype=torch.long, device=positive.device),
            box=box,
        )
