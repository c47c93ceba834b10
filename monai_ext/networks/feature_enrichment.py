"""The feature enrichment module of APSCL (FEM, §3.2, Eq. 2): features scaled and shifted by the latent z."""

from __future__ import annotations

from torch import Tensor, nn

WIDTH = 256
"""Of the two MLPs' hidden layers; not stated in the paper."""


class FeatureEnrichment(nn.Module):
    """Two three-layer MLPs make a scale beta and a shift alpha of each channel from z, as FiLM does.

    Args:
        channels: of the features.
        latent: dimensions of z.
        form: ``residual``, f' = (1 + beta) f + alpha with both MLPs' last layers 0 at the start, so that the module
            starts as the identity; or ``printed``, Eq. 2 as it stands, f' = beta f + alpha, which starts with features
            of the trunk scaled to about 0. Both can express the same functions.
    """

    def __init__(self, channels: int = 256, latent: int = 32, form: str = "residual") -> None:
        super().__init__()
        self.form = form
        self.scale, self.shift = _mlp(latent, channels), _mlp(latent, channels)
        if form == "residual":
            for mlp in (self.scale, self.shift):
                nn.init.zeros_(mlp[-1].weight)  # type: ignore[arg-type]
                nn.init.zeros_(mlp[-1].bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, z: Tensor) -> Tensor:
        """Enrich features [B, C, g, g] by z [B, L]."""
        beta, alpha = self.scale(z)[:, :, None, None], self.shift(z)[:, :, None, None]
        return (1 + beta if self.form == "residual" else beta) * features + alpha


def _mlp(latent: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(latent, WIDTH),
        nn.ReLU(inplace=True),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(inplace=True),
        nn.Linear(WIDTH, channels),
    )
