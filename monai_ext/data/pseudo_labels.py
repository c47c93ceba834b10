"""What a case gets in place of a dense label: pseudo-labels, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PseudoLabels:
    """What one case got.

    Attributes:
        labels: [n, H, W] uint8 class indices, 0 background.
        agreed: scribbled pixels that the masks alone classify as the scribble does.
        scribbled: scribbled pixels of slices with a scribbled structure.
        points: one dictionary for each class and slice with ``label``, its name, ``slice`` and ``points``, [x, y, is
            positive] each.
    """

    labels: np.ndarray
    agreed: int
    scribbled: int
    points: list[dict[str, Any]]
