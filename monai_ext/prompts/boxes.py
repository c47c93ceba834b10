"""Box prompts from masks."""

from __future__ import annotations

import torch
from torch import Tensor


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
