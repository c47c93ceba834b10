"""Box prompts from masks."""

from __future__ import annotations

import torch
from torch import Tensor

ON_THE_EDGE = 1e-3
"""Pixels by which a centre may lie beyond the edge of a box and is still on it: a box of another image is rounded."""


def tight_box(mask: Tensor) -> Tensor | None:
    """Bound a mask by the centres of its outermost pixels, as the authors' last decoder pass does.

    Args:
        mask: ``[H, W]`` bool.

    Returns:
        ``[4]`` float32 ``(x0, y0, x1, y1)`` in the mask's own pixels, both corners inclusive (one pixel gives
        a box without extent), or None where the mask is empty.
    """
    columns = mask.any(dim=0).nonzero()
    rows = mask.any(dim=1).nonzero()
    if len(columns) == 0:
        return None
    return torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0], rows[-1, 0]]).float()


def cells_in_box(box: Tensor, stride: int, grid: tuple[int, int], margin: float = 0.0) -> Tensor:
    """Cells whose centre lies in a box, grown on each side by ``margin`` of its extent but by a cell at least.

    So there is always one, for a box that lies on the grid.

    Args:
        box: ``[4]`` ``(x0, y0, x1, y1)`` in pixels, pixel centres at integers.
        stride: side of a cell in pixels.
        grid: rows and columns of the feature grid.
        margin: share of the box's width and height.

    Returns:
        ``[g, g]`` bool, on the CPU.
    """
    rows, columns = (torch.arange(cells) * stride + (stride - 1) / 2 for cells in grid)
    return _inside(box, rows, columns, stride, margin)


def pixels_in_box(box: Tensor, stride: int, size: tuple[int, int], margin: float = 0.0) -> Tensor:
    """Pixels that lie in a box grown as for :func:`cells_in_box`, ``[H, W]`` bool for ``size`` (H, W), on the CPU."""
    return _inside(box, torch.arange(size[0]), torch.arange(size[1]), stride, margin)


def _inside(box: Tensor, rows: Tensor, columns: Tensor, least: float, margin: float) -> Tensor:
    x0, y0, x1, y1 = box.tolist()
    inside = []
    for low, high, centres in ((y0, y1, rows), (x0, x1, columns)):
        room = max(margin * (high - low), least) + ON_THE_EDGE
        inside.append((centres >= low - room) & (centres <= high + room))
    return inside[0][:, None] & inside[1][None, :]
