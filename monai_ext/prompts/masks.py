"""Masks at feature resolution: which cells of the encoder's grid are foreground, and which hold image.

The input frame is an ``[H, W]`` image that the encoder pads at the bottom and right to a square; each
cell of the feature grid covers ``stride x stride`` of its pixels. The paper (P²SAM, Eq. 1) leaves open how
M_R reaches feature resolution: :func:`paper_tokens` is our reading, in which the covered share of a cell
decides, :func:`official_tokens` what the authors' code does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def paper_tokens(mask: Tensor, stride: int, grid: tuple[int, int]) -> tuple[Tensor, bool]:
    """Foreground cells by area: at least half of the cell is covered.

    A mask too small to cover half of any cell is recovered instead of lost: the cells with at least half of
    the largest coverage are taken (one or more), and the second return value says so.

    Args:
        mask: ``[H, W]`` bool in the input frame, not larger than the grid covers.
        stride: side of a cell in pixels.
        grid: rows and columns of the feature grid.

    Returns:
        Foreground ``[g, g]`` bool, and whether it had to be recovered.

    Raises:
        ValueError: if the mask is empty or larger than the grid.
    """
    covered = _covered_pixels(mask, stride, grid)
    foreground = 2 * covered >= stride * stride
    if bool(foreground.any()):
        return foreground, False
    return _recover(covered), True


def valid_cells(size: tuple[int, int], stride: int, grid: tuple[int, int]) -> Tensor:
    """Cells that hold image rather than padding: those whose centre lies in the image.

    The first row and column always count, so that an image thinner than half a cell still has some.

    Args:
        size: height and width of the image in the input frame, in pixels.
        stride: side of a cell in pixels.
        grid: rows and columns of the feature grid.

    Returns:
        ``[g, g]`` bool, on the CPU.
    """
    rows, columns = (_valid_along(extent, stride, cells) for extent, cells in zip(size, grid, strict=True))
    return rows[:, None] & columns[None, :]


def background_cells(foreground: Tensor, valid: Tensor) -> Tensor:
    """Background of Eq. 1 with M_R = 0: every cell that holds image and is not foreground.

    Cells on the border of the structure, covered by less than half, are background, as M_R is binary at
    feature resolution. Padding is left out (a deviation: the authors' code keeps it, and may spend a negative
    point on it).

    Args:
        foreground: ``[g, g]`` bool.
        valid: ``[g, g]`` bool of :func:`valid_cells`.

    Returns:
        ``[g, g]`` bool; all False where the structure fills the image.
    """
    return valid.to(foreground.device) & ~foreground


def official_tokens(mask: Tensor, image_size: int, grid: tuple[int, int]) -> tuple[Tensor, bool]:
    """Foreground cells as in the authors' code; background there is all the rest, padding included.

    The mask, resized like an image and so grey at its edges, is padded to the square, lowered by its
    mid-level ``(max + min) / 2`` and sampled bilinearly without antialiasing: each cell is judged by the four
    pixels at its centre. Where nothing is left the authors' code dies; here the mask is recovered by area as
    in :func:`paper_tokens`. A mask that fills the whole square is all foreground, as there.

    Args:
        mask: ``[H, W]`` bool, or floating with any positive maximum, in the input frame.
        image_size: side of the padded square in pixels, a multiple of the grid.
        grid: rows and columns of the feature grid.

    Returns:
        Foreground ``[g, g]`` bool, and whether it had to be recovered.

    Raises:
        ValueError: if the mask is empty or larger than the square.
    """
    height, width = mask.shape
    if max(height, width) > image_size:
        raise ValueError(f"a {height} x {width} mask does not fit into {image_size} x {image_size}")
    padded = F.pad(mask.float(), (0, image_size - width, 0, image_size - height))
    lowest, highest = padded.min(), padded.max()
    level = (highest + lowest) / 2 if lowest < highest else highest / 2
    foreground = _positive_on_grid((padded - level)[None], grid)[0]
    if bool(foreground.any()):
        return foreground, False
    return _recover(_covered_pixels(mask > level, image_size // grid[0], grid)), True


def official_candidate_tokens(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Foreground cells of decoded candidates as in the authors' code: bilinear, no antialias, above 0.

    Args:
        logits: ``[K, 4g, 4g]``, the decoder's low-resolution logits over the padded square.
        grid: rows and columns of the feature grid.

    Returns:
        ``[K, g, g]`` bool; a candidate may be empty, and padding is not left out.
    """
    return _positive_on_grid(logits.float(), grid)


def persam_tokens(mask: Tensor, image_size: int, grid: tuple[int, int]) -> tuple[Tensor, bool]:
    """Foreground cells of PerSAM: its code normalises the mask like an image before it is sampled on the grid.

    PerSeg's masks are 128 in the red channel, whose mean is 123.675: the four pixels at a cell's centre must all be
    inside. P²SAM's rules ask for half. Where nothing is left the mask is recovered by area as in
    :func:`paper_tokens`; PerSAM's mean feature is then not a number.

    Args:
        mask: ``[H, W]`` bool in the input frame.
        image_size: side of the padded square in pixels, a multiple of the grid.
        grid: rows and columns of the feature grid.

    Returns:
        Foreground ``[g, g]`` bool, and whether it had to be recovered.

    Raises:
        ValueError: if the mask is empty or larger than the square.
    """
    covered = _covered_pixels(mask, image_size // grid[0], grid)
    padding = (0, image_size - mask.shape[1], 0, image_size - mask.shape[0])
    foreground = _positive_on_grid(F.pad(128.0 * mask.float() - 123.675, padding)[None], grid)[0]
    if bool(foreground.any()):
        return foreground, False
    return _recover(covered), True


def _positive_on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size=grid, mode="bilinear", align_corners=False)[:, 0] > 0


def _covered_pixels(mask: Tensor, stride: int, grid: tuple[int, int]) -> Tensor:
    # counted in integers: "half of a cell" must not depend on rounding
    height, width = mask.shape
    rows, columns = grid
    if height > rows * stride or width > columns * stride:
        raise ValueError(f"a {height} x {width} mask exceeds {rows} x {columns} cells of {stride} pixels")
    padded = F.pad(mask.bool(), (0, columns * stride - width, 0, rows * stride - height))
    return padded.reshape(rows, stride, columns, stride).sum(dim=(1, 3))


def _recover(covered: Tensor) -> Tensor:
    largest = covered.max()
    if int(largest) == 0:
        raise ValueError("an empty mask has no foreground")
    return 2 * covered >= largest


def _valid_along(extent: int, stride: int, cells: int) -> Tensor:
    start = torch.arange(cells) * stride
    return (2 * start + stride < 2 * extent) | (start == 0)
