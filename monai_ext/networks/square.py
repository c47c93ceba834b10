"""The padded square that an encoder takes: from images of the input frame to it, and from its maps back."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def to_square(images: Tensor, mean: Tensor, std: Tensor, side: int) -> Tensor:
    """Normalise and pad: [B, 1 or 3, H, W] in [0, 255] -> [B, 3, S, S], zero-padded at the bottom and right.

    Args:
        images: of the input frame; one channel is repeated.
        mean: [3, 1, 1] of the channels.
        std: likewise.
        side: S, in pixels.

    Raises:
        ValueError: the images do not fit into the square.
    """
    height, width = images.shape[-2:]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or max(height, width) > side:
        raise ValueError(f"images must be [B, 1 or 3, H, W] with H and W at most {side}, not {tuple(images.shape)}")
    images = (images.expand(-1, 3, -1, -1) - mean) / std
    return F.pad(images, (0, side - width, 0, side - height))


def from_square(maps: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Map maps [K, M, h, w] of the padded square back to the input frame: [K, M, H, W] for size (H, W) (bilinear)."""
    full = F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
    return full[..., : size[0], : size[1]]
