"""Losses of partly labelled slices: cross-entropy on scribbles, Dice against pseudo-labels (DMPLS, Luo et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PartialCrossEntropy(nn.Module):
    """Mean cross-entropy over the labelled pixels (pCE); 0 where a batch has none, not NaN.

    Args:
        ignore: target value of pixels without a label.
    """

    def __init__(self, ignore: int = 255) -> None:
        super().__init__()
        self.ignore = ignore

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: [B, K + 1, H, W].
            target: [B, H, W] class indices, or ``ignore``.
        """
        total = F.cross_entropy(logits, target.long(), ignore_index=self.ignore, reduction="sum")
        return total / (target != self.ignore).sum().clamp(min=1)


class PseudoLabelDice(nn.Module):
    """Soft Dice loss against pseudo-labels (pDice), the mean over the classes, background included.

    ``1 - (2 sum p y + s) / (sum p² + sum y² + s)`` for each class, the sums over the known pixels of the whole batch. A
    class that is absent and not predicted costs nothing (s / s). The authors' ignore mask is [B, 1, H, W] against
    [B, H, W] and broadcasts over pairs of slices, which is right only for a mask of ones; here each pixel has its own.

    Args:
        ignore: target value of pixels that do not count.
        smooth: s.
    """

    def __init__(self, ignore: int = 255, smooth: float = 1e-5) -> None:
        super().__init__()
        self.ignore, self.smooth = ignore, smooth

    def forward(self, probabilities: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            probabilities: [B, K + 1, H, W], softmax over the classes.
            target: [B, H, W] class indices, or ``ignore``.
        """
        known = target != self.ignore
        truth = F.one_hot(target.long().where(known, 0), probabilities.shape[1]).movedim(-1, 1)
        mask = known[:, None].to(probabilities.dtype)
        p, y = probabilities * mask, truth * mask
        axes = (0, 2, 3)
        overlap = 2 * (p * y).sum(axes) + self.smooth
        return (1 - overlap / (p.square().sum(axes) + y.square().sum(axes) + self.smooth)).mean()


def mix_pseudo_labels(main: Tensor, aux: Tensor, beta: float) -> Tensor:
    """Return the hard labels of two branches mixed by chance, argmax(beta main + (1 - beta) aux) (DMPLS).

    Args:
        main: [B, K + 1, H, W] softmax probabilities.
        aux: the same of the other branch.
        beta: weight of ``main``.

    Returns:
        [B, H, W] class indices, without gradient.
    """
    return (beta * main.detach() + (1 - beta) * aux.detach()).argmax(dim=1)


class ScribbleMaskLoss(nn.Module):
    """The joint loss of SAM's fine-tuning: Dice + IoU against the segmentor's mask + cross-entropy on scribbles.

    For each prompted mask; the mean over the masks. The appendix says "joint loss" alone; the authors' code has IoU and
    Dice for single classes, or IoU, pDice and pCE on stacked maps. This is the single-class form with the scribbles,
    which are the only truth there is.

    Args:
        smooth: added above and below both fractions.
    """

    def __init__(self, smooth: float = 1e-5) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, target: Tensor, scribble: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: [N, H, W] of one mask each.
            target: [N, H, W] in [0, 1], the segmentor's mask of the class.
            scribble: [N, H, W], 1 on the class's scribble, 0 on any other, -1 where there is none.
        """
        p, axes = torch.sigmoid(logits), (1, 2)
        both, sizes = (p * target).sum(axes), p.sum(axes) + target.sum(axes)
        dice = (2 * both + self.smooth) / (sizes + self.smooth)
        iou = (both + self.smooth) / (sizes - both + self.smooth)
        known = (scribble >= 0).to(logits.dtype)
        entropy = F.binary_cross_entropy_with_logits(logits, scribble.clamp(min=0).to(logits.dtype), reduction="none")
        partial = (entropy * known).sum(axes) / known.sum(axes).clamp(min=1)
        return (1 - dice + 1 - iou + partial).mean()
