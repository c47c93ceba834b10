"""Convolutional trunks that know natural images: image in, features at stride 8 out.

Few-shot methods compare support and query in the features of a trunk (APSCL §3.2 and ALPNet: ResNet-101 from COCO;
ProSAM and VRP-SAM: ResNet-50 from ImageNet). torchvision's ResNets are dilated to stride 8; of any other network, which
timm builds, the stages are resampled to stride 8 and joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.networks.backbone import Embeddings
from monai_ext.networks.square import from_square, to_square
from monai_ext.networks.trunk_stages import Stages, build_stages
from monai_ext.networks.trunk_weights import load_trunk_weights

STRIDE = 8
"""Pixels of a cell of the joined features, as in ALPNet: 32 x 32 cells of an image of 256 x 256."""


class Trunk(nn.Module):
    """Stages of a convolutional network, and their features joined at stride 8.

    An :class:`monai_ext.networks.backbone.Encoder`: :meth:`encode` takes images, all other methods take what
    :meth:`preprocess` makes of them.

    Args:
        stages: of the network, see :func:`monai_ext.networks.trunk_stages.build_stages`.
        image_size: side S of the padded square in pixels; a multiple of the largest stride.
        channels: of the features of :meth:`forward`, which a 1 x 1 convolution without bias reduces them to; None:
            they stay as they are joined.
        joined: which stages :meth:`forward` joins; None: see :attr:`Stages.joined`.
        frozen_statistics: batch normalisation keeps the statistics it was loaded with while the network trains;
            those of a batch of one or two images would be noise.

    Raises:
        UserError: the image size does not fit.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        stages: Stages,
        image_size: int = 256,
        channels: int | None = 256,
        joined: Sequence[int] | None = None,
        frozen_statistics: bool = True,
    ) -> None:
        super().__init__()
        step = max(*stages.strides, STRIDE)
        if image_size <= 0 or image_size % step:
            raise UserError(f"--image_size is {image_size}: give a multiple of {step}, which this trunk needs.")
        self.stages = nn.ModuleList(stages.modules)
        self.image_size, self.frozen_statistics = image_size, frozen_statistics
        self.stage_channels, self.stage_strides = tuple(stages.channels), tuple(stages.strides)
        self.joined = tuple(stages.joined if joined is None else joined)
        width = self.joined_channels(self.joined)
        self.reduce = nn.Identity() if channels is None else nn.Conv2d(width, channels, 1, bias=False)
        self.channels = width if channels is None else channels
        self.register_buffer("pixel_mean", torch.tensor(stages.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(stages.std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.pixel_mean.device

    @property
    def stride(self) -> int:
        """Input-frame pixels along one side of a cell."""
        return STRIDE

    @property
    def grid(self) -> int:
        """Number g of cells along one side of the square."""
        return self.image_size // STRIDE

    def joined_channels(self, chosen: Sequence[int]) -> int:
        """Return how many channels :meth:`join` gives for these stages."""
        return sum(self.stage_channels[k] for k in chosen)

    def train(self, mode: bool = True) -> Trunk:
        """Set training mode; with ``frozen_statistics`` batch normalisation stays in evaluation mode."""
        super().train(mode)
        if self.frozen_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise and pad: [B, 1 or 3, H, W] in [0, 255] -> [B, 3, S, S]; see :func:`to_square`."""
        return to_square(images.to(self.device), self.pixel_mean, self.pixel_std, self.image_size)

    def levels(self, pixels: Tensor) -> list[Tensor]:
        """Return the features of every stage: [B, 3, S, S] normalised -> [B, stage_channels[k], S / stage_strides[k]].

        Both sides of a map have the same length. A dilated stage has the stride of the one before it.
        """
        levels = []
        for stage in self.stages:
            pixels = stage(pixels)
            levels.append(pixels)
        return levels

    def join(self, levels: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
        """Resample chosen stages to stride 8 and put their channels behind one another.

        Coarser maps are interpolated (bilinear), finer ones averaged.

        Args:
            levels: of :meth:`levels`.
            chosen: indices of stages, in the order of the channels.

        Returns:
            [B, joined_channels(chosen), S / 8, S / 8].
        """
        return torch.cat([self.resample(levels[k]) for k in chosen], dim=1)

    def resample(self, features: Tensor) -> Tensor:
        """Resample a square map [B, C, h, h] to the grid: [B, C, S / 8, S / 8]."""
        if features.shape[-1] > self.grid:
            return F.adaptive_avg_pool2d(features, self.grid)
        if features.shape[-1] == self.grid:
            return features
        return F.interpolate(features, (self.grid, self.grid), mode="bilinear", align_corners=False)

    def last_stage(self, features: Tensor) -> Tensor:
        """Run the last stage alone, on features as the stage before it gives them, such as masked ones."""
        return self.stages[-1](features)

    def forward(self, pixels: Tensor) -> Tensor:
        """Make the features that methods compare: [B, 3, S, S] normalised -> [B, channels, S / 8, S / 8]."""
        return self.reduce(self.join(self.levels(pixels), self.joined))

    def encode(self, images: Tensor) -> Embeddings:
        """Encode images of the input frame, [B, 1 or 3, H, W] in [0, 255], on any device."""
        return Embeddings(self(self.preprocess(images)), (images.shape[-2], images.shape[-1]))

    def to_image(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Map maps [K, M, h, w] of the padded square back to the input frame: [K, M, H, W] (bilinear)."""
        return from_square(logits, self.image_size, size)

    def encoder_state(self) -> Mapping[str, Tensor]:
        """Return all tensors that make an embedding, by name: the weights and the normalisation."""
        return {**self.state_dict(), "mean": self.pixel_mean, "std": self.pixel_std}


def build_trunk(
    name: str,
    weights: str | None = "imagenet",
    image_size: int = 256,
    channels: int | None = 256,
    joined: Sequence[int] | None = None,
    frozen_statistics: bool = True,
) -> Trunk:
    """Build a trunk with its weights.

    Args:
        name: ``resnet50`` or ``resnet101`` of torchvision, dilated to stride 8; ``deeplabv3_resnet50`` or
            ``deeplabv3_resnet101``, which are the same networks, with other weights; or a convolutional network of
            timm, such as ``tf_efficientnet_lite0``.
        weights: ``imagenet`` or ``coco``: fetched once, or of an installed package; see
            :func:`monai_ext.networks.trunk_weights.load_trunk_weights`. A path: a file of torchvision or timm. None:
            random, for weights of a whole method that are loaded afterwards.
        image_size: see :class:`Trunk`.
        channels: see :class:`Trunk`. The reducing convolution is always random.
        joined: see :class:`Trunk`.
        frozen_statistics: see :class:`Trunk`.

    Raises:
        UserError: for an unknown network, or weights that are not there or of another network.

    Example:
        >>> trunk = build_trunk("tf_efficientnet_lite0", "imagenet")
        >>> features = trunk.encode(images).features  # [B, 1, 256, 256] in [0, 255] -> [B, 256, 32, 32]
    """
    stages = build_stages(name)
    if weights is not None:
        load_trunk_weights(stages.network, name, weights)
    trunk = Trunk(stages, image_size, channels, joined, frozen_statistics)
    return trunk.to(memory_format=torch.channels_last).eval()  # oneDNN's layout: no reordering between convolutions
