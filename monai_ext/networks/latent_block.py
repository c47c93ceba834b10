"""The prior and posterior blocks of APSCL (§3.2): features of an image or of a mask -> a Gaussian of the latent z."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

LOG_VARIANCE_LIMIT = 10.0
"""Log-variances stay within +- this: exp of more would overflow the KL divergence early in a training."""


class Gaussian(NamedTuple):
    """A diagonal Gaussian for each image of a batch: mean and log-variance, both [B, L]."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw z = mean + sigma * noise, [B, L], differentiable (the noise is drawn on the CPU)."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + (self.log_variance / 2).exp() * noise


class LatentBlock(nn.Module):
    """One flattening layer and three linear layers: [B, C, g, g] -> a Gaussian of L dimensions.

    Two things are not stated in the paper. Its widths: 512 and 256. Activations between the linear layers: ReLU,
    without which they were one. Flattening 256 x 32 x 32 features makes a block of 134 M parameters, three times the
    trunk; the features are averaged to 8 x 8 before, which leaves 8.5 M (``pool: null`` flattens as printed).

    Args:
        channels: C.
        grid: g.
        latent: L (paper: 32, Table 4).
        hidden: widths between the linear layers.
        pool: cells along one side after averaging; None: all g.
    """

    def __init__(
        self, channels: int, grid: int, latent: int = 32, hidden: Sequence[int] = (512, 256), pool: int | None = 8
    ) -> None:
        super().__init__()
        self.pool = nn.Identity() if pool is None else nn.AdaptiveAvgPool2d(pool)
        first, second = hidden
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * (pool or grid) ** 2, first),
            nn.ReLU(inplace=True),
            nn.Linear(first, second),
            nn.ReLU(inplace=True),
            nn.Linear(second, 2 * latent),
        )

    def forward(self, features: Tensor) -> Gaussian:
        """Return the distribution of each image's z."""
        mean, log_variance = self.layers(self.pool(features)).chunk(2, dim=1)
        return Gaussian(mean, log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT))
