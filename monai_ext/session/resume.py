"""What decides a result. A finished case or training is kept as long as all of this is the same.

That is the configuration, the contents of every file that is read, and the code: this package's source as a whole and
the versions of the packages it computes with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.utils import ensure_tuple

from monai_ext import __version__, processes
from monai_ext.configuration import deciding_config, first_difference, running_parser
from monai_ext.data.contents import case_contents
from monai_ext.data.manifest import DataList
from monai_ext.data.provenance import read_record
from monai_ext.data.training_settings import SETTINGS_FILE, as_text, read_settings, write_settings
from monai_ext.errors import UserError
from monai_ext.files import sha256_of, source_sha256
from monai_ext.made import note_file

NOT_OF_A_CASE = frozenset({"run_record", "finished", "split", "mean_of", "pooled_iou", "allow_overlap"})
"""Entries of an inference or evaluation that leave the result of a case as it is."""

DECIDING_PACKAGES = ("monai", "torch", "numpy", "scipy", "scikit-learn", "POT", "nibabel")
"""Packages of which another version may give other results."""


def case_settings(
    cases: DataList,
    weights: str | os.PathLike | Sequence[str | os.PathLike] | None,
    device: str | torch.device,
    precision: str | None = None,
) -> dict[str, Any]:
    """Return all that decides a case's result besides its own files: what a finished case may be kept for.

    Args:
        cases: the data list.
        weights: their file, or several; None: there are none.
        device: the kind of device counts (CPU or GPU), not its number.
        precision: what the encoder really runs in, which may be another than was asked for.

    Returns:
        ``made_with`` (hash of this package's source, versions), sha256 of the weights and what their records tell of
        their training, data set and labels, and ``config``: what the running config holds; see
        :func:`monai_ext.configuration.deciding_config`.
    """
    files = [] if weights is None else [Path(file) for file in ensure_tuple(weights)]
    return {
        "made_with": _code(),
        "weights": [sha256_of(file) for file in files],
        "trained_as": [record and record.trained_as for record in map(read_record, files)],
        "device": torch.device(device).type,
        "precision": precision,
        "dataset": cases.dataset,
        "labels": list(cases.labels.items()),  # their order decides between equal logits
        "ignore": cases.ignore,
        "config": deciding_config(running_parser(), NOT_OF_A_CASE),
    }


def _code() -> dict[str, str]:
    versions = {name: version(name).split("+")[0] for name in DECIDING_PACKAGES}
    return {"source": source_sha256(), "monai-ext": __version__, **versions}


def keep_training(
    output_dir: str | os.PathLike,
    cases: DataList,
    used: Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[Mapping[str, Any]],
    weights: str | os.PathLike | None = None,
    may_change: Sequence[str] = (),
    accept_code: bool = False,
) -> None:
    """Keep in ``output_dir/settings.json`` what decides a training; refuse to go on in a folder made with another one.

    What an earlier start has left there (``round_*``, checkpoints, weights) is taken over or, if the training was
    finished, kept as it is; so configuration, data and start must be the same. A start that was refused before it left
    anything is replaced.

    Args:
        output_dir: of the training.
        cases: the data list, for its name and values.
        used: the cases that are read, or several groups of them by name (``train``, ``validation``).
        weights: that the training starts from; None: there are none.
        may_change: options that may be others when the training goes on, such as a number of rounds.
        accept_code: go on though the code is another one; the records of the weights will say so.

    Raises:
        UserError: names the first thing that differs.
    """
    processes.from_first(lambda: _keep_training(Path(output_dir), cases, used, weights, may_change, accept_code))


def _keep_training(
    folder: Path,
    cases: DataList,
    used: Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[Mapping[str, Any]],
    weights: str | os.PathLike | None,
    may_change: Sequence[str],
    accept_code: bool,
) -> None:
    groups = used if isinstance(used, Mapping) else {"train": used}
    settings: dict[str, Any] = {
        "config": deciding_config(running_parser(), {"accept_code", *may_change}),
        "data": {"dataset": cases.dataset, "labels": list(cases.labels.items()), "ignore": cases.ignore},
        "cases": {name: [[str(c["case"]), case_contents(c)] for c in group] for name, group in groups.items()},
        "weights": None if weights is None else sha256_of(weights),
        "processes": processes.count(),
        "made_with": _code(),
        "accepted": [],
    }
    if not _has_begun(folder):
        note_file(folder / SETTINGS_FILE)
        write_settings(folder, settings)
        return
    kept, now = read_settings(folder), json.loads(as_text(settings))
    difference = _find_difference(kept, now)
    if difference:
        raise UserError(f"{folder} holds a training {difference}: repeat it, or give a new --output_dir.")
    found = first_difference([kept["made_with"], *kept["accepted"]][-1], now["made_with"])
    if found is None:
        return
    name, before, after = found
    what = f"{'source of monai_ext' if name == 'source' else name} ({before[:12]}, now {after[:12]})"
    if not accept_code:
        raise UserError(
            f"{folder} holds a training with another {what}: give a new --output_dir, or --accept_code true to go on "
            "with it all the same, which the record of the weights will say."
        )
    print(f"{folder} holds a training with another {what}: it is accepted", flush=True)
    write_settings(folder, {**kept, "accepted": [*kept["accepted"], now["made_with"]]})


def _has_begun(folder: Path) -> bool:
    """Whether a training has left something in its folder that would be taken over."""
    return any(folder.glob("round_*")) or any(folder.glob("*.pt"))


def _find_difference(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say in words the first thing, besides the code, in which two settings of a training differ."""
    for part, what in (("config", ""), ("data", " of the data list")):
        found = first_difference(kept[part], now[part])
        if found:
            name = found[0] if part == "config" else found[0].partition("#")[0]
            before, after = found[1:] if part == "config" else (kept[part][name], now[part][name])
            return f"with another {name}{what} ({_short(before)}, now {_short(after)})"
    for group in sorted({*kept["cases"], *now["cases"]}):
        had, has = (dict(settings["cases"].get(group, [])) for settings in (kept, now))
        for case in sorted({*had, *has}):
            if case not in has or case not in had:
                return f"that {'did not have' if case in has else 'had'} case {case} in its {group} cases"
            found = first_difference(had[case], has[case])
            if found:
                return f"in which case {case} had another {found[0].partition('#')[0]}"
        if list(had) != list(has):
            return f"with its {group} cases in another order"
    if kept["weights"] != now["weights"]:
        return "that began with other weights"
    if kept["processes"] != now["processes"]:
        return f"of {kept['processes']} processes, now {now['processes']}"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
