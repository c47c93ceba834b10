"""What APSCL's training config calls: its network and objective with the ablation's switches, and its predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_ext.engines.apscl import ApsclObjective, segment_queries
from monai_ext.errors import UserError
from monai_ext.networks.prototype_net import PrototypeNet, build_prototype_net


def build_network(
    trunk: str,
    trunk_weights: str | None,
    image_size: int,
    fem: bool = True,
    scl: bool = True,
    mgd: bool = True,
    prototypes: str = "global",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    auxiliary: bool = True,
) -> PrototypeNet:
    """Build the network as a training starts with it, or as inference has it; see :func:`build_prototype_net`.

    Args:
        trunk: of the network.
        trunk_weights: that the trunk starts from; None or ``random``: random ones.
        image_size: side of the padded square in pixels.
        fem: see :class:`monai_ext.networks.prototype_net.PrototypeOptions`, as the other switches.
        scl: likewise.
        mgd: likewise.
        prototypes: likewise.
        options: the further ones.
        seed: of what starts from random numbers.
        checkpoint: weights of the whole network; None: it starts from the trunk's.
        auxiliary: whether what only training needs is built, too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        switches = {"fem": fem, "scl": scl, "mgd": mgd, "prototypes": prototypes}
        further = {**switches, **(options or {})}
        start = None if trunk_weights == "random" else trunk_weights
        return build_prototype_net(
            trunk, start, image_size=image_size, auxiliary=auxiliary, options=further, checkpoint=checkpoint
        )


def build_objective(
    fem: bool = True,
    scl: bool = True,
    lambda_kl: float = 0.1,
    lambda_scl: float = 0.07,
    lambda_align: float = 0.0,
    ce_weight: Sequence[float] = (1.0, 1.0),
    scl_pool: str = "two_class",
) -> ApsclObjective:
    """Build the objective; the terms of what is switched off are off."""
    return ApsclObjective(
        lambda_kl if fem else 0.0, lambda_scl if scl else 0.0, lambda_align, ce_weight, scl_pool=scl_pool
    )


def predict_queries(network: PrototypeNet, batch: Mapping[str, Any]) -> Tensor:
    """Segment the queries of a batch: [B, S, S], the structure's score minus the background's."""
    return segment_queries(network, batch)


def weights_file(trunk_weights: str | None) -> Path | None:
    """Return the file that a trunk starts from; None for random or published weights, which are known by their name.

    Raises:
        UserError: there is no such file.
    """
    if trunk_weights in (None, "random", "coco", "imagenet"):
        return None
    path = Path(str(trunk_weights))
    if not path.is_file():
        raise UserError(f"--trunk_weights {path} is no file: give coco, imagenet, random or the path of a file.")
    return path
