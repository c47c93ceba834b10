"""A small convolutional image encoder for SAM's prompt encoder and mask decoder.

A residual network with group normalisation down to stride 16 and a feature pyramid back up to the embedding's
stride. It stands where SAM has a ViT: image in, one embedding map out. Convolutions need far fewer images than a
ViT to learn from nothing, and the pyramid keeps the embedding cells small.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut: [B, in, H, W] -> [B, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = _norm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class PyramidEncoder(nn.Module):
    """A trunk down to stride 16 and a feature pyramid back up: image [B, 3, S, S] -> [B, C, S / stride, S / stride].

    A subclass builds its trunk, calls :meth:`add_pyramid` and implements :meth:`trunk_maps`.

    Under autocast the pyramid stays in float32: embeddings are compared by distance, and it is its last layers whose
    rounding would be seen there.

    Args:
        image_size: side S of the padded input in pixels; a multiple of 16.
        stride: pixels of one embedding cell: 4, 8 or 16.
    """

    def __init__(self, image_size: int, stride: int) -> None:
        super().__init__()
        if image_size % 16 or stride not in (4, 8, 16):
            raise ValueError("image_size must be a multiple of 16 and stride 4, 8 or 16")
        self.img_size = image_size  # segment_anything's name: Sam.image_encoder.img_size
        self.stride = stride

    def add_pyramid(self, channels: Sequence[int], out_channels: int) -> None:
        """Add what stands on the trunk.

        Args:
            channels: of the trunk's maps at strides 4, 8 and 16; the last a multiple of 4.
            out_channels: channels of the embedding (the decoder's ``transformer_dim``).
        """
        top = channels[-1]
        self.context = nn.ModuleList(nn.Conv2d(top, top // 4, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.pool = nn.Conv2d(top, top // 4, 1)
        kept = [c for c, s in zip(channels, (4, 8, 16), strict=True) if s >= self.stride]
        self.lateral = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in kept)
        self.smooth = ResidualBlock(out_channels, out_channels)
        self.neck = nn.Sequential(nn.Conv2d(out_channels, out_channels, 1, bias=False), _norm(out_channels))

    def trunk_maps(self, x: Tensor) -> list[Tensor]:
        """Return the trunk's maps at strides 4, 8 and 16."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        maps = self.trunk_maps(x)
        x = maps[-1]
        pooled = self.pool(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        x = F.relu(x + torch.cat([c(x) for c in self.context] + [pooled], dim=1), inplace=True)
        maps[-1] = x
        with torch.autocast(x.device.type, enabled=False):
            maps = [m.to(self.pool.weight.dtype) for m in maps[-len(self.lateral) :]]
            top = self.lateral[-1](maps[-1])
            for lateral, skip in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
                top = F.interpolate(top, scale_factor=2.0, mode="nearest") + lateral(skip)
            return self.neck(self.smooth(top))


class CompactImageEncoder(PyramidEncoder):
    """Image [B, 3, S, S] -> embedding [B, out_channels, S / stride, S / stride], to be trained from nothing.

    Args:
        image_size: side S of the padded input in pixels; a multiple of 16.
        stride: pixels of one embedding cell: 4, 8 or 16.
        channels: channels at strides 2, 4, 8 and 16.
        blocks: residual blocks at strides 4, 8 and 16.
        out_channels: channels of the embedding (the decoder's ``transformer_dim``).
    """

    def __init__(
        self,
        image_size: int = 256,
        stride: int = 8,
        channels: Sequence[int] = (32, 64, 128, 256),
        blocks: Sequence[int] = (2, 2, 2),
        out_channels: int = 128,
    ) -> None:
        super().__init__(image_size, stride)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 5, stride=2, padding=2, bias=False), _norm(channels[0]), nn.ReLU(inplace=True)
        )
        stages = []
        for before, after, depth in zip(channels[:-1], channels[1:], blocks, strict=True):
            layers = [ResidualBlock(before, after, stride=2)]
            layers += [ResidualBlock(after, after) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.add_pyramid(channels[1:], out_channels)

    def trunk_maps(self, x: Tensor) -> list[Tensor]:
        """Return the residual stages' maps at strides 4, 8 and 16."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
