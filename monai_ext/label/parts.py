"""What a server takes from the config of an online bundle: network, learners, transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_ext.engines.online import OnlineLearner
from monai_ext.inferers.reference_inferer import ReferenceInferer
from monai_ext.networks.backbone import PromptableNetwork

AUTOMATIC = "automatic"
"""Option ``prompt`` of a server that finds the structures of later visits by itself."""

FOLLOW_UP = ("point_window", "slice_match", "n_pos", "n_neg", "references", "follow_up")
"""What such a server takes from the bundle's ``session.yaml``."""


@dataclass(frozen=True)
class Parts:
    """What a bundle's config makes.

    Attributes:
        labels: name -> value.
        learners: by structure.
        network: the frozen SAM.
        preprocessing: ``image`` -> the input frame.
        label_preprocessing: ``image`` and ``label`` likewise.
        postprocessing: ``image`` and ``pred``, logits [L, H, W, D], -> a mask on the file's grid.
        prompt: ``box`` or ``point``: what the learners are taught with; ``automatic``: with what ``follow_up`` finds.
        point_window: see :class:`~monai_ext.inferers.online.OnlineInferer`.
        follow_up: finds the structures of a later visit by the patient's first one; None: users prompt.
    """

    labels: Mapping[str, int]
    learners: Mapping[str, OnlineLearner]
    network: PromptableNetwork
    preprocessing: Callable[[dict[str, Any]], Any]
    label_preprocessing: Callable[[dict[str, Any]], Any]
    postprocessing: Callable[[dict[str, Any]], Any]
    prompt: str = "box"
    point_window: float = 0.0
    follow_up: ReferenceInferer | None = None


def load_parts(bundle: Path, datalist: Path, folder: Path, options: Mapping[str, Any]) -> Parts:
    """Build the parts of a bundle's ``inference.yaml``, with learners that learn.

    With the option ``prompt: automatic`` the part of ``session.yaml`` that finds structures without prompts is added.

    Args:
        bundle: its folder.
        datalist: names the structures.
        folder: of the learners, in ``learners/<structure>``.
        options: of the config, as on a command line.

    Raises:
        UserError: an option, the weights or what was learned before is not usable.
    """
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.yaml")
    given = {"bundle_root": str(bundle), "datalist": str(datalist), "state_dir": str(folder / "learners")}
    automatic = options.get("prompt") == AUTOMATIC
    if automatic:
        session = ConfigParser.load_config_file(bundle / "configs" / "session.yaml")
        given |= {name: session[name] for name in FOLLOW_UP}
    parser.update({**given, **options, "learners#frozen": False})
    parser["label_preprocessing"] = {**parser.get("preprocessing"), "masks": "label"}
    parser.parse(True)
    return Parts(
        parser.get_parsed_content("label_values"),
        parser.get_parsed_content("learners"),
        parser.get_parsed_content("network").eval().requires_grad_(False),
        parser.get_parsed_content("preprocessing"),
        parser.get_parsed_content("label_preprocessing"),
        parser.get_parsed_content("postprocessing"),
        parser.get_parsed_content("prompt"),
        parser.get_parsed_content("point_window"),
        parser.get_parsed_content("follow_up") if automatic else None,
    )
