"""Class prototypes by masked average pooling, and non-parametric scores of cells (PANet, Wang et al. 2019, §3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ext.prompts.ties import TOLERANCE, first_maximum

SCALE = 20.0
"""The factor alpha of PANet's softmax over cosine similarities (Eq. 3), fixed there to 20."""


def prototype(features: Tensor, weights: Tensor) -> Tensor | None:
    """Average features below a mask (Eqs. 1 and 2).

    PANet upsamples the features to the mask; here the mask is averaged down to the cells, which is the same mean for
    features that are constant within a cell.

    Args:
        features: ``[C, g, g]``.
        weights: ``[g, g]`` not negative: the share of each cell that the class covers.

    Returns:
        ``[C]``, or None where the class covers nothing.
    """
    total = weights.sum()
    if not bool(total > 0):
        return None
    return (features.float() * weights).sum(dim=(1, 2)) / total


def prototype_scores(prototypes: Tensor, features: Tensor, scale: float = SCALE) -> Tensor:
    """Score cells by ``scale * cos`` to each prototype: the arguments of the softmax of Eq. 3.

    Args:
        prototypes: ``[N, C]``, one a class.
        features: ``[C, g, g]`` of the target.
        scale: alpha.

    Returns:
        ``[N, g, g]`` float32.
    """
    cells = F.normalize(features.float().flatten(1), dim=0)
    return scale * (F.normalize(prototypes.float(), dim=1) @ cells).unflatten(1, features.shape[1:])


def lead(scores: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """How far each class is ahead of the best other one: above 0 exactly where it has the largest score.

    Of classes within ``tolerance`` of the largest the first is ahead, by no less than that, and the others are behind.

    Args:
        scores: ``[N, H, W]``, N at least 2.
        tolerance: in the unit of the scores; see :mod:`monai_ext.prompts.ties`.

    Returns:
        ``[N, H, W]``.

    Raises:
        ValueError: for fewer than two classes.
    """
    if len(scores) < 2:
        raise ValueError("one class alone has nothing to be ahead of")
    first, second = scores.topk(2, dim=0).values
    ahead = torch.where(scores == first, first - second, scores - first)
    classes = torch.arange(len(scores), device=scores.device).view(-1, *[1] * (scores.ndim - 1))
    winner = classes == first_maximum(scores, dim=0, tolerance=tolerance)
    return torch.where(winner, ahead.clamp(min=tolerance), ahead.clamp(max=-tolerance))
