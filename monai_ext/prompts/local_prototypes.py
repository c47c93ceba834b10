"""Local prototypes: one for each window of the support that lies in a class (ALPNet, Ouyang et al. 2020, §3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ext.prompts.prototypes import SCALE, prototype_scores

WINDOW = 4
"""Cells along one side of a window of the support, as in ALPNet's released code."""
LEAST_SHARE = 0.95
"""Share of a window that a class must cover (the threshold T, Eq. 2)."""


def local_prototypes(features: Tensor, weights: Tensor, window: int = WINDOW, least: float = LEAST_SHARE) -> Tensor:
    """Average features in windows side by side and keep those that lie in the class (Eqs. 1 and 2).

    Args:
        features: ``[C, g, g]`` of the support.
        weights: ``[g, g]`` in [0, 1]: the share of each cell that the class covers.
        window: cells along one side; cells beyond the last whole window belong to none.
        least: share of a window that the class must cover.

    Returns:
        ``[n, C]``, n = 0 where the class covers no window.
    """
    means = F.avg_pool2d(features.float()[None], window)[0].flatten(1)
    shares = F.avg_pool2d(weights.float()[None, None], window).flatten()
    return means[:, shares > least].T


def class_score(prototypes: Tensor, features: Tensor, scale: float = SCALE) -> Tensor:
    """Score cells by all prototypes of one class: their scores, weighted by a softmax over them (Eqs. 4 and 5).

    With one prototype this is :func:`monai_ext.prompts.prototypes.prototype_scores`.

    Args:
        prototypes: ``[n, C]``, at least one.
        features: ``[C, g, g]`` of the query.
        scale: factor of the cosine.

    Returns:
        ``[g, g]``.
    """
    scores = prototype_scores(prototypes, features, scale)
    return (torch.softmax(scores, dim=0) * scores).sum(dim=0)
