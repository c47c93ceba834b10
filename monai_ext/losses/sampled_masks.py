"""The loss of masks from sampled prompts: BCE and Dice, 1 : 1, of each mask, then the mean (ProSAM Eq. 4 and 10).

VRP-SAM's code sums ``1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)`` over the images and divides by their number. That
is MONAI's Dice loss with ``smooth_nr = smooth_dr = 1``.
"""

from __future__ import annotations

from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F


class SampledMaskLoss(nn.Module):
    """``mean over K of (BCE + Dice)``: the loss of each mask, not that of a mean mask.

    Args:
        bce: weight of the binary cross-entropy, a mean over pixels.
        dice: weight of the Dice loss.

    Example:
        >>> loss = SampledMaskLoss()(logits, masks)  # logits [K, B, H, W], masks [B, H, W]
    """

    def __init__(self, bce: float = 1.0, dice: float = 1.0) -> None:
        super().__init__()
        self.weights = (bce, dice)
        self.dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, logits: Tensor, masks: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: [K, B, H, W].
            masks: [B, H, W], bool or the covered share of each pixel.
            valid: [B, H, W] bool, pixels that count; None: all. VRP-SAM lets unlabelled pixels of Pascal count.
        """
        truth = masks.float().expand_as(logits).reshape(-1, 1, *masks.shape[1:])
        given = logits.reshape(truth.shape)
        if valid is None:
            return self.weights[0] * F.binary_cross_entropy_with_logits(given, truth) + self.weights[1] * self.dice(
                given, truth
            )
        kept = valid.float().expand_as(logits).reshape(truth.shape)
        bce = F.binary_cross_entropy_with_logits(given, truth, reduction="none")
        bce = ((bce * kept).sum((1, 2, 3)) / kept.sum((1, 2, 3)).clamp(min=1)).mean()
        outside = given.masked_fill(kept == 0, -1e4)  # a probability of 0
        return self.weights[0] * bce + self.weights[1] * self.dice(outside, truth * kept)
