"""Label maps at feature resolution: which share of each cell a mask covers, and which cells it touches at all."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def covered_share(masks: Tensor, stride: int, grid: tuple[int, int]) -> Tensor:
    """Average masks over the cells of the feature grid; padding counts as not covered.

    Args:
        masks: ``[K, H, W]`` bool or floating, in the input frame, not larger than the grid covers.
        stride: side of a cell in pixels.
        grid: rows and columns of the feature grid.

    Returns:
        ``[K, g, g]`` float32 in [0, 1].

    Raises:
        ValueError: if the masks are larger than the grid.
    """
    height, width = masks.shape[-2:]
    rows, columns = grid
    if height > rows * stride or width > columns * stride:
        raise ValueError(f"{height} x {width} masks exceed {rows} x {columns} cells of {stride} pixels")
    padded = F.pad(masks.float(), (0, columns * stride - width, 0, rows * stride - height))
    return F.avg_pool2d(padded[None], stride)[0]


def touched_cells(masks: Tensor, stride: int, grid: tuple[int, int]) -> Tensor:
    """Cells of which a mask covers any pixel, as Matcher and GF-SAM take masks to the feature grid.

    A mask that is not empty always touches a cell, so nothing small is lost.

    Args:
        masks: as in :func:`covered_share`.
        stride: as in :func:`covered_share`.
        grid: as in :func:`covered_share`.

    Returns:
        ``[K, g, g]`` bool.
    """
    return covered_share(masks, stride, grid) > 0


def sampled_share(masks: Tensor, stride: int, grid: tuple[int, int]) -> Tensor:
    """Resize masks bilinearly to the feature grid, as ALPNet's released code does, which samples the cells' centres.

    A mask that none of the samples meets gets :func:`covered_share` instead, so that nothing small is lost.

    Args:
        masks: as in :func:`covered_share`.
        stride: as in :func:`covered_share`.
        grid: as in :func:`covered_share`.

    Returns:
        ``[K, g, g]`` float32 in [0, 1].
    """
    covered = covered_share(masks, stride, grid)
    height, width = masks.shape[-2:]
    padded = F.pad(masks.float(), (0, grid[1] * stride - width, 0, grid[0] * stride - height))
    sampled = F.interpolate(padded[None], grid, mode="bilinear", align_corners=False)[0]
    missed = sampled.sum(dim=(1, 2), keepdim=True) == 0
    return covered.where(missed, sampled)
