"""Opens the learners of a bundle: one for each structure, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_ext.data.mask_names import structure_name
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
            None if folder is None else Path(folder) / structure_name(name),
            sam_sha256,
            frozen,
            save_every,
        )
        for name in labels
    }


def learned(learners: Mapping[str, OnlineLearner]) -> dict[str, str]:
    """Return a checksum, by structure, of what was learned: part of what decides a result."""
    return {name: learner.chain for name, learner in learners.items()}


def refuse_other_prompts(
    learners: Mapping[str, OnlineLearner], cases: Iterable[Mapping[str, Any]], allow: bool = False
) -> None:
    """Refuse prompts of another kind than learners were taught with: the crop round a point is not that of a box.

    Args:
        learners: of :func:`open_learners`. The first structure is prompted, and one that still learns takes any prompt.
        cases: of :func:`~monai_ext.data.streams.as_stream`, with ``box`` and ``points``.
        allow: let them pass.

    Raises:
        UserError: names the structure and both kinds.
    """
    name, learner = next(iter(learners.items()))
    taught = learner.taught_with
    if allow or not learner.frozen or not taught:
        return
    for case in cases:
        given = next((kind for kind in ("box", "points") if case.get(kind) and kind not in taught), None)
        if given is not None:
            raise UserError(
                f"case {case['case']!r} is prompted by {_PROMPTS[given]}, but {name!r} was taught with "
                f"{' and '.join(_PROMPTS[kind] for kind in sorted(taught))}: give such prompts, or set "
                "--allow_prompt true."
            )


_PROMPTS = {"box": "a box", "points": "points", "none": "masks that were found without a prompt"}


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
        folder = structure_name(name)
        if folder in taken or not folder.strip("._"):
            other = f"shares it with {taken[folder]!r}" if folder in taken else "is no name of a folder"
            raise UserError(f"each structure is learned in a folder of its name, and {name!r} {other}: rename it.")
        taken[folder] = name
