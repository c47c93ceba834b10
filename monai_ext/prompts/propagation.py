"""Label propagation (Jabri et al. 2020): labels go from annotated cells to a target's cells by feature affinity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ext.prompts.ties import first_largest


def cell_positions(size: tuple[int, int], stride: int, grid: tuple[int, int]) -> Tensor:
    """Centres of the cells as shares of the image, so that images of different shape lie over each other.

    Args:
        size: height and width of the image in the input frame, in pixels.
        stride: side of a cell in pixels.
        grid: rows and columns of the feature grid.

    Returns:
        ``[g * g, 2]`` (y, x) float32, row by row; above 1 on padding.
    """
    y, x = ((torch.arange(n) + 0.5) * stride / extent for n, extent in zip(grid, size, strict=True))
    return torch.cartesian_prod(y, x)


def propagate_labels(
    source: Tensor,
    labels: Tensor,
    target: Tensor,
    near: Tensor,
    top_k: int = 10,
    temperature: float = 0.07,
) -> Tensor:
    r"""Carry soft labels from source cells to target cells.

    .. math:: L_T(j) = \sum_{i \in N_k(j)}
        \frac{e^{\cos(s_i, t_j) / \tau}}{\sum_{l \in N_k(j)} e^{\cos(s_l, t_j) / \tau}} \, L_S(i)

    with the ``top_k`` most similar sources N_k(j) among those that are near; of equally similar ones
    (:mod:`monai_ext.prompts.ties`) the first.

    Args:
        source: ``[n, C]`` features of annotated cells.
        labels: ``[n, N]`` their labels, soft or one-hot.
        target: ``[m, C]`` features.
        near: ``[n, m]`` bool: which sources each target may take from.
        top_k: number of sources of a target.
        temperature: tau.

    Returns:
        ``[m, N]`` float32; all 0 for a target without a source nearby.
    """
    similarity = F.normalize(target.float(), dim=1) @ F.normalize(source.float(), dim=1).T
    similarity = similarity.masked_fill(~near.T, float("-inf"))
    chosen = first_largest(similarity, min(top_k, len(source)))
    logits = similarity.gather(1, chosen) / temperature
    weights = torch.nan_to_num(logits.softmax(dim=1))  # no source at all: all are -inf
    return torch.einsum("mk,mkn->mn", weights, labels.float()[chosen])
