"""Scribbles on another pixel grid: the one rule by which all steps make them smaller or larger."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_scribble(scribble: Tensor, size: tuple[int, int], unlabelled: int) -> Tensor:
    """Bring scribbles to another size without breaking a line.

    A new pixel that covers several old ones takes the largest value drawn in any of them: nearest neighbours would skip
    pixels of a line that is one pixel wide. Pixels that touch still touch afterwards, so the rule may be applied again.
    Along an axis that gets longer, a new pixel takes the old one that holds its centre.

    Args:
        scribble: [..., H, W] values, ``unlabelled`` where nothing is drawn.
        size: (H, W) of the result.
        unlabelled: any value; it never wins over a drawn one.

    Returns:
        [..., *size] of the scribble's type.
    """
    if tuple(scribble.shape[-2:]) == tuple(size):
        return scribble
    for axis, new in ((-2, size[0]), (-1, size[1])):
        old = scribble.shape[axis]
        if new > old:
            nearest = (2 * torch.arange(new, device=scribble.device) + 1) * old // (2 * new)
            scribble = scribble.index_select(axis, nearest)
    lowest = torch.iinfo(torch.int32).min
    order = scribble.double().where(scribble != unlabelled, lowest)
    largest = F.adaptive_max_pool2d(order.reshape(1, -1, *order.shape[-2:]), size)
    largest = largest.reshape(*scribble.shape[:-2], *size)
    return largest.where(largest > lowest, unlabelled).to(scribble.dtype)
