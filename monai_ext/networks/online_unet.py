"""The small network that learns beside SAM (AuxOL, Huang et al. 2024, §3.2): a U-Net on a crop, one logit a pixel.

The paper says "a classic U-Net (17.3 M)". The authors' code has the bilinear U-Net of four levels with two convolutions
each, InstanceNorm without parameters in place of BatchNorm and convolutions without bias: 17,254,145 parameters with
three input channels, 17,254,721 with four. Only so does a network learn from a batch of one, and gives the same answer
in training and in use. :class:`OnlineUNet` has that topology at any width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.networks.pretrained_encoder import CHANNELS, PretrainedImageEncoder

FULL_WIDTH = 64
"""Channels of the first level in the paper."""

ENCODERS = ("unet", "imagenet")


class InstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and variance 1, without parameters: [N, C, H, W] -> [N, C, H, W].

    ``nn.InstanceNorm2d`` as a group norm of one channel a group, whose CPU kernels take a quarter less time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.group_norm(x, x.shape[1])


class DoubleConv(nn.Sequential):
    """[N, in, H, W] -> [N, out, H, W]: twice a 3 x 3 convolution without bias, InstanceNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, middle: int | None = None) -> None:
        middle = out_channels if middle is None else middle
        super().__init__(
            nn.Conv2d(in_channels, middle, 3, padding=1, bias=False),
            InstanceNorm(),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, out_channels, 3, padding=1, bias=False),
            InstanceNorm(),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Double the rows and columns (bilinear), join the skip connection, convolve twice."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolutions = DoubleConv(in_channels, out_channels, in_channels // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[N, a, H/2, W/2] and [N, b, H, W] with a + b = in -> [N, out, H, W]."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.convolutions(torch.cat([skip, x], dim=1))


class OnlineUNet(nn.Module):
    """U-Net of four levels: crops [N, in_channels, S, S] in [0, 1] -> logits [N, 1, S, S], S a multiple of 16.

    Args:
        in_channels: 3 (the image) or 4 (the image and SAM's mask).
        base: channels of the first level; 64 in the paper.

    Example:
        >>> network = OnlineUNet(in_channels=4, base=8)
        >>> network(torch.rand(2, 4, 64, 64)).shape  # torch.Size([2, 1, 64, 64])
    """

    def __init__(self, in_channels: int = 3, base: int = FULL_WIDTH) -> None:
        super().__init__()
        widths = [base, 2 * base, 4 * base, 8 * base, 8 * base]
        self.first = DoubleConv(in_channels, base)
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Up(n * base, m * base) for n, m in ((16, 4), (8, 2), (4, 1), (2, 1)))
        self.last = nn.Conv2d(base, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        skips = [self.first(x)]
        for convolutions in self.down:
            skips.append(convolutions(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        return self.last(x)


class PretrainedUNet(nn.Module):
    """The same with an encoder that knows natural images (paper §3.2): EfficientNet-Lite0 to stride 16, from ImageNet.

    SAM's mask, where it is a fourth channel, and the image at full size join by the last skip connection, since the
    encoder takes three channels.

    Args:
        in_channels: 3 or 4.
        base: channels at full size.
        imagenet: start from ImageNet's weights (the extra ``pretrained``); False: random ones, to load a state dict.

    Raises:
        UserError: the weights are not installed.
    """

    def __init__(self, in_channels: int = 3, base: int = 8, imagenet: bool = True) -> None:
        super().__init__()
        encoder = PretrainedImageEncoder()
        if imagenet:
            encoder.load_imagenet()
        self.stem, self.stages = encoder.stem, encoder.stages
        self.first = DoubleConv(in_channels, base)
        widths = [*reversed(CHANNELS)]
        self.up = nn.ModuleList([Up(widths[0] + widths[1], 8 * base), Up(8 * base + widths[2], 4 * base)])
        self.last_up = DoubleConv(5 * base, base)
        self.last = nn.Conv2d(base, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, S, S] in [0, 1] -> [N, 1, S, S]."""
        full = self.first(x)
        deep = self.stem((255 * x[:, :3] - 127) / 128)
        maps = []
        for stage in self.stages:
            deep = stage(deep)
            maps.append(deep)
        deep = self.up[1](self.up[0](maps[2], maps[1]), maps[0])
        deep = F.interpolate(deep, scale_factor=4, mode="bilinear", align_corners=True)
        return self.last(self.last_up(torch.cat([full, deep], dim=1)))


def build_online_unet(
    in_channels: int = 3, base: int = FULL_WIDTH, encoder: str = "unet", seed: int = 0, imagenet: bool = True
) -> nn.Module:
    """Build the network with weights that depend on ``seed`` alone, ready to be trained.

    Args:
        in_channels: 3, or 4 with SAM's mask.
        base: channels of the first level.
        encoder: ``unet``, all random, or ``imagenet``.
        seed: of the random weights; torch's own generator is left as it was.
        imagenet: see :class:`PretrainedUNet`.

    Raises:
        UserError: for an unknown encoder, or an impossible width.
    """
    if encoder not in ENCODERS:
        raise UserError(f"encoder {encoder!r} is unknown: choose one of {', '.join(ENCODERS)}.")
    if not isinstance(base, int) or base < 1:
        raise UserError(f"base is {base}: give the channels of the first level, a whole number from 1.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = OnlineUNet(in_channels, base) if encoder == "unet" else PretrainedUNet(in_channels, base, imagenet)
    return network.train()
