"""Networks of torchvision and timm, cut into the stages whose features are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from monai_ext.errors import UserError
from monai_ext.networks.pretrained_encoder import IMAGENET_MEAN, IMAGENET_STD

LITE0 = "tf_efficientnet_lite0"
"""timm's name of EfficientNet-Lite0, whose ImageNet weights come as a package."""

RESNETS = ("resnet50", "resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101")
"""Names of torchvision's networks; DeepLabv3's trunks are the dilated ResNets."""

FINEST_JOINED = 8
"""Smallest stride of the stages of timm's networks that are joined by default."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's weights, pixels in [0, 1]


@dataclass(frozen=True)
class Stages:
    """A network and the stages that share its weights.

    Attributes:
        network: as its weights are published, without what follows the last stage.
        modules: stages, to be run one after the other.
        channels: of the stages' features.
        strides: of the stages' features, in pixels.
        joined: the stages whose features are joined by default: of a ResNet the last (APSCL, ALPNet), of timm's
            networks those of stride 8 and more.
        mean: of the pixels in [0, 255] that the weights were trained on.
        std: likewise.
    """

    network: nn.Module
    modules: Sequence[nn.Module]
    channels: Sequence[int]
    strides: Sequence[int]
    joined: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]


def build_stages(name: str) -> Stages:
    """Build a network with random weights and cut it into stages; see :func:`monai_ext.networks.trunk.build_trunk`.

    Raises:
        UserError: there is no such network, or it has no stages.
    """
    return _torchvision_stages(name) if name in RESNETS else _timm_stages(name)


def _torchvision_stages(name: str) -> Stages:
    """Cut a ResNet into its stem and four stages, the last two dilated instead of strided, as DeepLabv3 does."""
    from torchvision import models

    network = getattr(models, name.removeprefix("deeplabv3_"))(
        weights=None, replace_stride_with_dilation=[False, True, True]
    )
    network.fc = nn.Identity()
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    return Stages(
        network,
        [stem, network.layer1, network.layer2, network.layer3, network.layer4],
        channels=(64, 256, 512, 1024, 2048),
        strides=(4, 4, 8, 8, 8),
        joined=(4,),
        mean=[255 * m for m in _MEAN],
        std=[255 * s for s in _STD],
    )


def _timm_stages(name: str) -> Stages:
    """Cut a network of timm behind each layer that its ``feature_info`` names."""
    import timm

    if name not in timm.list_models():
        raise UserError(
            f"trunk {name!r} is unknown: choose one of {', '.join(RESNETS)}, or a network of timm such as {LITE0}."
        )
    network: Any = timm.create_model(name, pretrained=False)
    info = getattr(network, "feature_info", None)
    if not isinstance(info, list) or getattr(network, "output_fmt", "") == "NHWC" or not _gets_coarser(info):
        raise UserError(f"trunk {name!r} has no stages of ever coarser maps: choose a convolutional network.")
    strides = [int(entry["reduction"]) for entry in info]
    lite = name == LITE0
    return Stages(
        network,
        _cut(network, [str(entry["module"]) for entry in info]),
        channels=[int(entry["num_chs"]) for entry in info],
        strides=strides,
        joined=[k for k, stride in enumerate(strides) if stride >= FINEST_JOINED],
        mean=IMAGENET_MEAN if lite else [255 * m for m in network.pretrained_cfg["mean"]],
        std=IMAGENET_STD if lite else [255 * s for s in network.pretrained_cfg["std"]],
    )


def _gets_coarser(info: Sequence[dict[str, Any]]) -> bool:
    strides = [entry["reduction"] for entry in info]
    return all(coarser > finer for finer, coarser in pairwise(strides))


def _cut(network: nn.Module, ends: Sequence[str]) -> list[nn.Module]:
    """Put a network's layers, in their order, into one stage for each layer that ends one."""
    stages: list[nn.Module] = []
    layers: list[nn.Module] = []
    for name, layer in _layers(network, ends):
        layers.append(layer)
        if name in ends:
            stages.append(nn.Sequential(*layers))
            layers = []
    if len(stages) != len(ends):
        raise UserError(f"{type(network).__name__} is no plain sequence of stages: choose another trunk.")
    return stages


def _layers(network: nn.Module, ends: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """List a network's children; those inside of which a stage ends are replaced by their own."""
    layers: list[tuple[str, nn.Module]] = []
    for name, child in network.named_children():
        inside = isinstance(child, nn.Sequential) and any(end.startswith(f"{name}.") for end in ends)
        layers += [(f"{name}.{k}", part) for k, part in child.named_children()] if inside else [(name, child)]
    return layers
