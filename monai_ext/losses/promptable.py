"""The loss of a promptable model: Dice, focal loss and the IoU head's error (Kirillov et al. 2023; P²SAM, Appendix A).

SAM mixes focal and Dice loss 20 : 1 and regresses each mask's IoU by mean squared error with weight 1.
"""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss


def mask_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of thresholded logits and boolean masks, [K, 1, H, W] each -> [K]; 1 if both empty."""
    predicted = logits > 0
    union = (predicted | truth).sum((1, 2, 3))
    intersection = (predicted & truth).sum((1, 2, 3))
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union, dtype=torch.float32))


class PromptableLoss(nn.Module):
    """``dice * Dice + focal * focal + iou * (predicted IoU - IoU)²``, a mean over the masks.

    Args:
        dice: weight of the Dice loss (MONAI's, on sigmoid probabilities).
        focal: weight of the focal loss (alpha 0.25, gamma 2, mean over pixels).
        iou: weight of the IoU head's squared error.

    Example:
        >>> loss = PromptableLoss()(logits, predicted_iou, masks, truth)
    """

    def __init__(self, dice: float = 1.0, focal: float = 20.0, iou: float = 1.0) -> None:
        super().__init__()
        self.weights = (dice, focal, iou)
        self.dice = DiceLoss(sigmoid=True)

    def forward(self, logits: Tensor, quality: Tensor, masks: Tensor, truth: Tensor | None = None) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: [K, 1, H, W].
            quality: [K, 1], the predicted IoU.
            masks: [K, 1, H, W], the covered share of each pixel.
            truth: [K, 1, H, W] bool, what the IoU is measured against; by default the pixels covered by more than
                half, of which a small structure may have none.
        """
        masks = masks.float()
        truth = masks > 0.5 if truth is None else truth
        parts = (
            self.dice(logits, masks),
            sigmoid_focal_loss(logits, masks, alpha=0.25, gamma=2.0, reduction="mean"),
            F.mse_loss(quality[:, 0], mask_iou(logits.detach(), truth)),
        )
        return sum(w * p for w, p in zip(self.weights, parts, strict=True))


class DenseClassLoss(nn.Module):
    """Cross-entropy of a 1 x 1 classifier on the embedding: an auxiliary loss that makes the features semantic.

    Not part of the paper. Trained from nothing on few images, the prompt decoder alone teaches the encoder what
    belongs together but not what it is. The target of a cell is the share of its pixels in each class, so thin
    structures are not lost. The classifier is used while training only.

    Args:
        channels: channels C of the embedding.
        classes: number of structures; class 0 is the background.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, classes + 1, 1)

    def forward(self, features: Tensor, labels: Tensor, known: Tensor, decided: Tensor | None = None) -> Tensor:
        """Return the mean loss over the cells of the images whose classes are known.

        Args:
            features: [B, C, g, g].
            labels: [B, S, S] integer, 0 for background, S a multiple of g.
            known: [B] bool: images whose labels are these classes. With none the loss is 0.
            decided: [B, S, S] bool: pixels whose class is known; the others have no share in a cell. None: all.
        """
        if not known.any():
            return features.new_zeros(())
        logits = self.classifier(features[known])
        shares = F.one_hot(labels[known].long(), logits.shape[1]).permute(0, 3, 1, 2).float()
        if decided is not None:
            shares = shares * decided[known, None]
        shares = F.adaptive_avg_pool2d(shares, logits.shape[-2:])
        return F.cross_entropy(logits, shares)
