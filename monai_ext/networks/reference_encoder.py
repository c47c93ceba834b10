"""The frozen network in whose features a reference and a target are compared (ProSAM §8.1).

VRP-SAM takes a ResNet-50 with a deep stem, dilated to stride 8, from ImageNet. Any trunk serves, and SAM's own image
encoder. Three things are asked of it: features of the middle, from which prompts are learned; features before its last
stage; and the last stage by itself, since it is run on features of the reference whose background was set to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.networks.backbone import Encoder
from monai_ext.networks.trunk import Trunk, build_trunk
from monai_ext.networks.trunk_stages import RESNETS


@dataclass(frozen=True)
class ReferenceFeatures:
    """What a reference encoder makes of images.

    Attributes:
        middle: [B, M, g, g].
        deep: [B, D, h, h], the input of the last stage, on the stage's own grid.
    """

    middle: Tensor
    deep: Tensor

    def __getitem__(self, chosen: slice | list[int] | Tensor) -> ReferenceFeatures:
        """Return the features of some of the images."""
        return ReferenceFeatures(self.middle[chosen], self.deep[chosen])


@runtime_checkable
class ReferenceEncoder(Protocol):
    """Makes features of references and targets; it does not learn.

    Attributes:
        image_size: side S of the padded square that it takes, in pixels.
        grid: cells g along one side of its features.
        deep_grid: cells h along one side of what the last stage takes.
        middle_channels: M.
    """

    image_size: int
    grid: int
    deep_grid: int
    middle_channels: int

    def features(self, images: Tensor, side: int) -> ReferenceFeatures:
        """Make features of images [B, 1 or 3, H, W] in [0, 255] that lie in a square of ``side`` pixels."""
        ...

    def last_stage(self, deep: Tensor) -> Tensor:
        """Run the last stage: [B, D, h, h] -> [B, E, g, g]."""
        ...


class TrunkReference(nn.Module):
    """A convolutional trunk as reference encoder: the two stages before the last are joined, and the last by itself.

    Of torchvision's ResNet-50 these are ``layer2`` and ``layer3`` (1536 channels) and ``layer4``, as in VRP-SAM, whose
    deep stem torchvision's network does not have. The stages of timm's networks are resampled to stride 8.

    Args:
        trunk: its weights stay as they are.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        last = len(trunk.stages) - 1
        self.trunk = trunk.eval().requires_grad_(False)
        self.joined = (last - 2, last - 1)
        self.image_size, self.grid = trunk.image_size, trunk.grid
        self.deep_grid = trunk.image_size // trunk.stage_strides[last - 1]
        self.middle_channels = trunk.joined_channels(self.joined)

    def train(self, mode: bool = True) -> TrunkReference:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Tensor, side: int) -> ReferenceFeatures:
        """Make features; see :class:`ReferenceEncoder`."""
        pixels = self.trunk.preprocess(to_side(images.to(self.trunk.device), side, self.image_size))
        levels = []
        for stage in self.trunk.stages[:-1]:
            pixels = stage(pixels)
            levels.append(pixels)
        return ReferenceFeatures(self.trunk.join(levels, self.joined), levels[-1])

    @torch.no_grad()
    def last_stage(self, deep: Tensor) -> Tensor:
        """Run the last stage; see :class:`ReferenceEncoder`."""
        return self.trunk.resample(self.trunk.last_stage(deep))


class EncoderReference:
    """A promptable network's own image encoder as reference encoder: one map of features is everything.

    It is no module: the promptable network has its weights.

    Args:
        encoder: such as SAM.
        channels: of its embeddings.
    """

    def __init__(self, encoder: Encoder, channels: int) -> None:
        self.encoder = encoder
        self.image_size, self.grid, self.deep_grid = encoder.image_size, encoder.grid, encoder.grid
        self.middle_channels = channels

    @torch.no_grad()
    def features(self, images: Tensor, side: int) -> ReferenceFeatures:
        """Make features; see :class:`ReferenceEncoder`."""
        embedding = self.encoder.encode(to_side(images, side, self.image_size)).features
        return ReferenceFeatures(embedding, embedding)

    def last_stage(self, deep: Tensor) -> Tensor:
        """Return the features as they are: there is no stage behind them."""
        return deep


def to_side(images: Tensor, side: int, image_size: int) -> Tensor:
    """Resample images [B, C, H, W] of a square of ``side`` pixels to one of ``image_size`` (bilinear, antialiased)."""
    if side == image_size:
        return images
    size = [min(image_size, max(1, round(extent * image_size / side))) for extent in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def build_reference(
    name: str, network: Encoder, channels: int, weights: str | None = "imagenet", image_size: int | None = None
) -> TrunkReference | EncoderReference:
    """Build a reference encoder.

    Args:
        name: ``sam``, the promptable network's own encoder; or of a trunk, see
            :func:`monai_ext.networks.trunk.build_trunk`.
        network: the promptable network.
        channels: of its embeddings.
        weights: of a trunk; None: random, for weights that are loaded afterwards.
        image_size: of a trunk; None: 512 for torchvision's ResNets (VRP-SAM), else 256.

    Raises:
        UserError: for an unknown trunk, or weights that are not there.
    """
    if name == "sam":
        return EncoderReference(network, channels)
    size = image_size or (512 if name in RESNETS else 256)
    return TrunkReference(build_trunk(name, weights, size, channels=None))
