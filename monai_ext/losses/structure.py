"""The loss of AuxOL's auxiliary network: edge-weighted cross-entropy plus edge-weighted IoU (PraNet, Fan et al. 2020).

With p the probability, y the mask and w = 1 + 5 |mean of y over 31 x 31 pixels - y|, large near the outline,

    L = sum(w BCE(p, y)) / sum(w)  +  1 - (sum(w p y) + 1) / (sum(w (p + y)) - sum(w p y) + 1)

over the pixels of one sample. The paper asks for "e.g. Dice"; this is what its code has.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

WINDOW = 31


class StructureLoss(nn.Module):
    """Logits [N, 1, H, W] and masks [N, 1, H, W] in [0, 1] -> one loss a sample, [N].

    Args:
        official: what the authors' code computes: an argument meant to keep the cross-entropy apart for each pixel does
            the opposite there, so its weights cancel and every sample gets the plain mean over the whole batch. Then
            the losses of two samples differ by their IoU alone.
        window: side of the square mean, in pixels of the crop; odd.

    Example:
        >>> StructureLoss()(torch.zeros(2, 1, 64, 64), torch.ones(2, 1, 64, 64)).shape  # torch.Size([2])
    """

    def __init__(self, official: bool = False, window: int = WINDOW) -> None:
        super().__init__()
        self.official, self.window = official, window

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """See the class."""
        over = (1, 2, 3)
        near = _mean_along(_mean_along(masks, self.window, 2), self.window, 3)
        weights = 1 + 5 * (near - masks).abs()
        pixels = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        if self.official:
            entropy = pixels.mean().expand(len(logits))
        else:
            entropy = (weights * pixels).sum(over) / weights.sum(over)
        shares = logits.sigmoid()
        common = (weights * shares * masks).sum(over)
        both = (weights * (shares + masks)).sum(over)
        return entropy + 1 - (common + 1) / (both - common + 1)


def _mean_along(masks: Tensor, window: int, dim: int) -> Tensor:
    """Mean of ``window`` pixels along one direction; a square mean is one along each, in fewer additions."""
    size = [1, 1]
    size[dim - 2] = window
    return F.avg_pool2d(masks, size, stride=1, padding=[side // 2 for side in size])
