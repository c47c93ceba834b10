"""Opens the learners of a bundle: one for each structure, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_ext.engines.online.auxiliary import AuxiliaryFusion, AuxiliarySettings
from monai_ext.engines.online.learner import OnlineLearner
from monai_ext.engines.online.rivals import DirectOnline, InscribedEllipse, MeanCrop, Remembering, SamAlone
from monai_ext.engines.online.view import OnlineMethod
from monai_ext.errors import UserError
from monai_ext.networks.backbone import PromptableNetwork

METHODS = ("auxol", "sam", "ellipse", "mean_crop", "memory", "direct")


def open_learners(
    labels: Mapping[str, int],
    folder: str | Path | None,
    network: PromptableNetwork,
    sam_sha256: str,
    settings: Mapping[str, Any],
    method: str = "auxol",
    prompt: str = "box",
    frozen: bool = False,
    save_every: int = 1,
) -> dict[str, OnlineLearner]:
    """Open one learner a structure, in ``folder/<structure>``.

    Args:
        labels: name -> value of the structures.
        folder: None: nothing is kept.
        network: the frozen SAM.
        sam_sha256: of its weights.
        settings: of :class:`~monai_ext.engines.online.auxiliary.AuxiliarySettings`; with
            ``sam_channel`` None the paper's: the mask with boxes, nothing with points.
        method: one of :data:`METHODS`.
        prompt: ``box`` or ``point``; any other, such as an automatic one, is taken for a point.
        frozen: see :class:`~monai_ext.engines.online.learner.OnlineLearner`.
        save_every: likewise.

    Raises:
        UserError: for an unknown method or setting, or what a learner raises.

    Example:
        >>> learners = open_learners({"polyp": 1}, "OUT/learners", sam, sha256_of("compact_chaos.pt"), {"seed": 0})
        >>> learners["polyp"].position  # corrections that have been learned
        12
    """
    if not labels:
        raise UserError("there is no structure to learn: --labels is empty.")
    _refuse_one_folder(labels)
    return {
        name: OnlineLearner(
            build_method(method, network, settings, prompt),
            None if folder is None else Path(folder) / _folder_name(name),
            sam_sha256,
            frozen,
            save_every,
        )
        for name in labels
    }


def learned(learners: Mapping[str, OnlineLearner]) -> dict[str, str]:
    """Return a checksum, by structure, of what was learned: part of what decides a result."""
    return {name: learner.chain for name, learner in learners.items()}


def build_method(
    method: str, network: PromptableNetwork, settings: Mapping[str, Any], prompt: str = "box"
) -> OnlineMethod:
    """Build what learns; see :func:`open_learners`."""
    chosen = auxiliary_settings(settings, prompt)
    if method == "auxol":
        return AuxiliaryFusion(chosen, network.device)
    if method == "sam":
        return SamAlone()
    if method == "ellipse":
        return InscribedEllipse()
    if method == "mean_crop":
        return MeanCrop()
    if method == "memory":
        return Remembering(network.image_size, network.grid)
    if method == "direct":
        return DirectOnline(
            network,
            chosen.batch,
            chosen.policy,
            chosen.learning_rate,
            chosen.weight_decay,
            chosen.crop,
            chosen.official_loss,
            chosen.steps_per_feedback,
        )
    raise UserError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}.")


def auxiliary_settings(settings: Mapping[str, Any], prompt: str) -> AuxiliarySettings:
    """Complete the settings of a config: what SAM shows the network depends on the prompt."""
    given = dict(settings)
    if given.get("sam_channel") is None:
        given["sam_channel"] = "mask" if prompt == "box" else "none"
    return AuxiliarySettings(**given)


def _refuse_one_folder(names: Iterable[str]) -> None:
    """Refuse structures whose learners would share a folder, or lie outside of the learners' one."""
    taken: dict[str, str] = {}
    for name in names:
        folder = _folder_name(name)
        if folder in taken or not folder.strip("._"):
            other = f"shares it with {taken[folder]!r}" if folder in taken else "is no name of a folder"
            raise UserError(f"each structure is learned in a folder of its name, and {name!r} {other}: rename it.")
        taken[folder] = name


def _folder_name(name: str) -> str:
    return "".join("_" if character in "/\\" or character.isspace() else character for character in name)
