"""The part of an image that the auxiliary network looks at, and the way there and back (AuxOL §3.2).

All boxes are in input-frame pixels. A crop holds whole pixels: columns x0 to x1 - 1, rows y0 to y1 - 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ext.prompts.boxes import tight_box

MARGIN = 0.1
"""Share of its extent by which the box of SAM's mask is grown on each side (authors' code); a user's box is not."""

LEAST = 1 / 32
"""Share of the image's longer side below which an object is too small: the authors' 16 pixels of about 500."""


class Crop(NamedTuple):
    """Whole pixels of an image, the ends exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    def of(self, image: Tensor) -> Tensor:
        """Cut [..., H, W] to [..., h, w]."""
        return image[..., self.y0 : self.y1, self.x0 : self.x1]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0


def box_crop(box: Tensor, size: tuple[int, int], margin: float = 0.0) -> Crop:
    """Return the pixels of a box, at least one row and column of them within the image.

    Args:
        box: [4] (x0, y0, x1, y1), both corners centres of pixels inside, as :class:`monai_ext.prompts.prompt.Prompt`.
        size: (H, W) of the image.
        margin: share of its extent by which each side is grown.
    """
    height, width = size
    x0, y0, x1, y1 = (float(value) for value in box)
    left, right = _along(x0, x1, margin, width)
    top, bottom = _along(y0, y1, margin, height)
    return Crop(left, top, right, bottom)


def _along(low: float, high: float, margin: float, size: int) -> tuple[int, int]:
    room = margin * (high - low + 1)
    first = min(max(math.floor(low - room + 0.5), 0), size - 1)
    last = min(max(math.floor(high + room + 0.5), first), size - 1)
    return first, last + 1


def mask_crop(mask: Tensor, margin: float = MARGIN, least: float = LEAST) -> Crop:
    """Return the box of the convex hull of a mask [H, W] bool, which is that of the mask itself, grown by ``margin``.

    A mask that is empty, or narrower or lower than ``least`` of the longer side, says nothing: the crop is the image.
    """
    height, width = mask.shape
    box = tight_box(mask)
    if box is None or is_small(box, (height, width), least):
        return Crop(0, 0, width, height)
    return box_crop(box, (height, width), margin)


def widen(crop: Crop, centre: tuple[float, float], least: float, size: tuple[int, int]) -> Crop:
    """Return the smallest crop that holds ``crop`` and a window round a point.

    Args:
        crop: stays within the result.
        centre: (x, y) of the point in pixels.
        least: rows and columns of the window; it is cut off at the image's border.
        size: (H, W) of the image.
    """
    x, y = centre
    half = (least - 1) / 2
    window = box_crop(torch.tensor([x - half, y - half, x + half, y + half]), size)
    return Crop(min(crop.x0, window.x0), min(crop.y0, window.y0), max(crop.x1, window.x1), max(crop.y1, window.y1))


def is_small(box: Tensor, size: tuple[int, int], least: float = LEAST) -> bool:
    """Whether a box has less than ``least`` of the image's longer side in one direction."""
    x0, y0, x1, y1 = box.tolist()
    return min(x1 - x0 + 1, y1 - y0 + 1) < least * max(size)


def shrink(image: Tensor, side: int) -> Tensor:
    """Resample a cut image [C, h, w] to [C, side, side] (bilinear, the crop's two sides alike)."""
    return F.interpolate(image[None].float(), (side, side), mode="bilinear", align_corners=False)[0]


def shrink_mask(mask: Tensor, side: int) -> Tensor:
    """Resample a cut mask [h, w] to [side, side] floating 0 and 1 (nearest)."""
    return F.interpolate(mask[None, None].float(), (side, side), mode="nearest-exact")[0, 0]


def grow(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring logits [side, side] back to the crop, [h, w] (bilinear)."""
    return F.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def paste(canvas: Tensor, logits: Tensor, crop: Crop) -> None:
    """Unite a crop's logits [h, w] with those on a canvas [H, W], in place: the larger counts."""
    part = crop.of(canvas)
    part.copy_(torch.maximum(part, logits))
