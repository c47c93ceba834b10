"""APSCL's consistency of two distributions (§3.2, Eq. 1): z of an image and z of its mask."""

from __future__ import annotations

import logging
from collections import deque

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

ACTIVE = 0.01
"""Variance of a dimension's mean above which it carries information (Burda et al. 2016, §5.1: active units)."""


class PriorConsistencyLoss(nn.Module):
    """KL divergence of diagonal Gaussians, summed over their dimensions and averaged over the batch.

    Neither reduction is stated. As printed it goes from the image's distribution to that of the mask,
    KL(P(z_x) || P(z_y)); the probabilistic U-Net has it the other way.

    Nothing but this loss reaches the mask's side, and it is 0 for two constant distributions: see
    :class:`CollapseMonitor`.

    Args:
        direction: ``printed`` or ``reverse``.
    """

    def __init__(self, direction: str = "printed") -> None:
        super().__init__()
        if direction not in ("printed", "reverse"):
            raise ValueError(f"direction must be printed or reverse, not {direction!r}")
        self.direction = direction

    def forward(self, image: tuple[Tensor, Tensor], mask: tuple[Tensor, Tensor]) -> Tensor:
        """Return the divergence.

        Args:
            image: mean and log-variance of z_x, each [B, L].
            mask: of z_y, likewise.
        """
        (mean, log_variance), (other_mean, other_log_variance) = (
            (image, mask) if self.direction == "printed" else (mask, image)
        )
        ratio = (log_variance - other_log_variance).exp()
        distance = (mean - other_mean).square() * (-other_log_variance).exp()
        return (0.5 * (ratio + distance - 1 - (log_variance - other_log_variance))).sum(dim=1).mean()


class CollapseMonitor:
    """Watches whether the mask's distribution still depends on the mask: the variance of mu_y over a window of masks.

    Warns once when no dimension is active any more.

    Args:
        window: number of masks.
    """

    def __init__(self, window: int = 200) -> None:
        self.means: deque[Tensor] = deque(maxlen=window)
        self.warned = False

    def update(self, means: Tensor) -> tuple[float, int]:
        """Take further means [B, L] of z_y.

        Returns:
            The mean variance of the dimensions over the window, and how many are active; 0 of a single mask.
        """
        self.means.extend(means.detach().float().cpu())
        if len(self.means) < 2:
            return 0.0, 0
        variance = torch.stack(list(self.means)).var(dim=0)
        active = int((variance > ACTIVE).sum())
        if not active and not self.warned and len(self.means) == self.means.maxlen:
            self.warned = True
            logger.warning(
                "the distribution of z_y is the same for all of the last %d masks (variance of its mean %.2g): the "
                "prior has collapsed and carries no anatomy; see fem_source: posterior, or a smaller lambda_kl",
                len(self.means),
                float(variance.mean()),
            )
        return float(variance.mean()), active

    def state_dict(self) -> dict[str, Tensor | bool]:
        """Return the window, for a training that goes on later."""
        return {"means": torch.stack(list(self.means)) if self.means else torch.empty(0), "warned": self.warned}

    def load_state_dict(self, state: dict[str, Tensor | bool]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.means.clear()
        self.means.extend(torch.as_tensor(state["means"]))
        self.warned = bool(state["warned"])
