"""Changed copies of a slice whose masks can be brought back: test-time augmentation (Wang et al. 2019).

G. Wang et al.: Aleatoric uncertainty estimation with test-time augmentation for medical image segmentation with
convolutional neural networks. Neurocomputing 338, 34-45, 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_ANGLE = 10.0
"""Degrees to either side."""
LARGEST_SCALE = 1.1
"""Magnification and reduction at most."""
LARGEST_SHIFT = 0.05
"""Share of the longer side."""
LARGEST_GAMMA = 1.25
"""Exponent of the grey-value curve, or one over it."""


@dataclass(frozen=True)
class View:
    """One change of a slice.

    Args:
        angle: of rotation about the centre, in radians.
        scale: magnification.
        shift: (x, y), shares of the longer side.
        gamma: exponent of the grey-value curve.
    """

    angle: float
    scale: float
    shift: tuple[float, float]
    gamma: float

    def apply(self, image: Tensor) -> Tensor:
        """Change a slice [C, H, W] in [0, 255]; what comes from outside is black."""
        moved = _sample(image, self._matrix())
        return 255 * (moved / 255).clamp(0, 1) ** self.gamma

    def undo(self, logits: Tensor, outside: float) -> Tensor:
        """Bring logits [H, W] of the changed slice back; where it did not reach they are ``outside``."""
        back = torch.linalg.inv(self._matrix())
        return _sample((logits - outside)[None], back)[0] + outside

    def _matrix(self) -> Tensor:
        """Return where each pixel is taken from, [3, 3], in units of half the longer side about the centre."""
        cos, sin = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        x, y = self.shift
        return torch.tensor([[cos, -sin, 2 * x], [sin, cos, 2 * y], [0.0, 0.0, 1.0]])


def draw_views(count: int, rng: np.random.Generator) -> list[View]:
    """Draw changes within the bounds of this module."""
    return [_draw(rng) for _ in range(count)]


def _draw(rng: np.random.Generator) -> View:
    angle, scale, gamma, x, y = rng.uniform(-1, 1, 5).tolist()
    shift = (LARGEST_SHIFT * x, LARGEST_SHIFT * y)
    return View(math.radians(LARGEST_ANGLE) * angle, LARGEST_SCALE**scale, shift, LARGEST_GAMMA**gamma)


def _sample(image: Tensor, matrix: Tensor) -> Tensor:
    """Resample [C, H, W] (bilinear); ``matrix`` maps places of the result to places of the image."""
    height, width = image.shape[-2:]
    longer = max(height, width)
    units = torch.diag(torch.tensor([width / longer, height / longer, 1.0]))  # grid_sample's unit is half of each side
    theta = (torch.linalg.inv(units) @ matrix @ units)[:2].to(image)
    grid = F.affine_grid(theta[None], [1, image.shape[0], height, width], align_corners=False)
    return F.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]
