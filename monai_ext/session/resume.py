"""What decides a result: a kept one counts as long as all of this is the same."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_ext import __version__
from monai_ext.data.images import atomic_path
from monai_ext.data.manifest import DataList
from monai_ext.errors import UserError
from monai_ext.files import sha256_of

NOT_OF_A_CASE = frozenset(
    {
        *("_meta_", "imports", "initialize", "run", "finalize", "run_record", "finished"),
        *("bundle_root", "datalist", "data_root", "dataset_dir", "split", "shard", "output_dir", "run_dir"),
        *("checkpoint", "device", "threads", "mean_of", "pooled_iou", "allow_overlap"),
    }
)
"""Entries of a config that leave the result of a case as it is, or of which the contents are hashed."""


NOT_OF_A_TRAINING = frozenset(
    {
        *("_meta_", "imports", "initialize", "run", "finalize", "rounds", "name", "licence"),
        *("bundle_root", "sam_models", "datalist", "data_root", "dataset_dir", "output_dir", "device", "threads"),
        "allow_dense_sam",
    }
)
"""Entries of a training's config that may change when it goes on: what is trained, on what cases and how stays."""


DECIDING_PACKAGES = ("monai", "torch", "numpy", "scipy", "scikit-learn", "POT", "nibabel")
"""Packages of which another version may give other results."""


MAKES_RESULTS = (
    *("inferers", "metrics", "networks", "prompts", "transforms", "handlers"),
    *("data/images.py", "data/case_reader.py", "evaluation/case_metrics.py"),
)
"""Parts of this package that make a case's results of its files."""


def case_settings(
    cases: DataList, weights: str | os.PathLike | None, device: str | torch.device, precision: str | None = None
) -> dict[str, Any]:
    """Return all that decides a case's result besides its own files: what a finished case may be kept for.

    Args:
        cases: the data list.
        weights: their file; None: there are none.
        device: the kind of device counts (CPU or GPU), not its number.
        precision: what the encoder really runs in, which may be another than was asked for.

    Returns:
        Versions and a hash of the source that makes results, sha256 of the weights, data set and labels, and
        ``config``: what this config holds, with overlays and overrides, but for :data:`NOT_OF_A_CASE`.
    """
    config = {key: value for key, value in running_config().items() if key not in NOT_OF_A_CASE}
    return {
        "versions": {"monai-ext": __version__, **{name: version(name).split("+")[0] for name in DECIDING_PACKAGES}},
        "code": _source_sha256(),
        "weights": None if weights is None else sha256_of(weights),
        "device": torch.device(device).type,
        "precision": precision,
        "dataset": cases.dataset,
        "labels": dict(cases.labels),
        "ignore": cases.ignore,
        "config": config,
    }


def running_config() -> dict[str, Any]:
    """Return the content of the config whose ``$`` expression is making this call; empty outside of one.

    MONAI hands its parser to no expression, so it is looked for among the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            return dict(caller.get())
        frame = frame.f_back
    return {}


def keep_settings(output_dir: str | os.PathLike) -> None:
    """Keep the running config in ``output_dir/settings.json``; refuse to go on in a folder made with another one.

    Stages (``round_*``) of a longer training that are there are taken over, so all of them must have the same settings;
    a run that was refused before its first stage leaves nothing to go on from, and its settings give way. The device,
    folders and the number of rounds may change: more rounds go on after those that were run.

    Raises:
        UserError: names the first option that differs.
    """
    path = Path(output_dir) / "settings.json"
    config = {key: value for key, value in running_config().items() if key not in NOT_OF_A_TRAINING}
    text = json.dumps(config, indent=1, sort_keys=True, default=str) + "\n"
    if path.is_file() and any(path.parent.glob("round_*")):
        kept, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        for key in sorted({*kept, *now}):
            if kept.get(key) != now.get(key):
                raise UserError(
                    f"{output_dir} holds a training with another {key} ({kept.get(key)}, now {now.get(key)}): repeat "
                    "it, or give a new --output_dir."
                )
    else:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _source_sha256() -> str:
    """Return a hash of the modules of :data:`MAKES_RESULTS`: who changes a method's code wants its cases run again."""
    root = Path(__file__).parents[1]
    found = (path for name in MAKES_RESULTS for path in [root / name, *(root / name).rglob("*.py")] if path.is_file())
    names = (f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n" for path in sorted(found))
    return hashlib.sha256("".join(names).encode()).hexdigest()
