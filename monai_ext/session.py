"""What every bundle does before its first case: show mistakes as a sentence, check options, files and weights.

`python -m monai.bundle run --sead 3` adds an unused key ``sead`` to the config and runs with the old seed, exit code 0.
:func:`start` refuses such options.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow, run, run_workflow
from monai.utils import set_determinism

from monai_ext.data.checks import check_pairs
from monai_ext.data.images import ensure_writable_folder
from monai_ext.data.manifest import DataList
from monai_ext.data.phantoms import write_phantom_patient
from monai_ext.data.provenance import check_overlap, read_record, verify_sha256
from monai_ext.errors import UserError, report_user_errors
from monai_ext.inferers.slice_match import refuse_volumes_apart
from monai_ext.networks.sam import CHECKPOINTS, VARIANTS, fetch_checkpoint


def start(seed: int = 0, threads: int | None = None) -> None:
    """Begin a run: report mistakes as one sentence, refuse unknown options, fix all seeds.

    Args:
        seed: of Python, NumPy and torch.
        threads: of torch; None leaves its choice.

    Raises:
        UserError: for an option of the command line that no config file declares.
    """
    report_user_errors()
    check_options(sys.argv)
    set_determinism(seed=int(seed))
    if threads:
        torch.set_num_threads(int(threads))


def check_options(argv: Sequence[str]) -> None:
    """Refuse options of a `python -m monai.bundle run` command line that would be ignored.

    An option is known if it is an argument of MONAI's ``run`` or its workflow, an id of the given config files, or a
    further argument of a component there (`--evaluator#amp true`), which that component checks. Other programs'
    command lines are left alone.

    Raises:
        UserError: names the unknown option and the nearest known one.
    """
    if len(argv) < 2 or Path(argv[0]).parts[-3:-1] != ("monai", "bundle") or argv[1] not in ("run", "run_workflow"):
        return
    given = _flags(argv[2:])
    arguments = {name for call in (run, run_workflow, ConfigWorkflow) for name in inspect.signature(call).parameters}
    arguments -= {"override", "kwargs"}
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(str(given.pop("args_file"))), **given}
    files = given.get("config_file")
    if files is None:
        return
    parser = ConfigParser(ConfigParser.load_config_files(files))
    for option in given:
        if option not in arguments and not _is_declared(option, parser):
            known = sorted(arguments | {str(key) for key in parser.get() or {}})
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean --{near[0]}?" if near else "see the block of options on top of the config file."
            raise UserError(f"unknown option --{option}, {hint}")


def _is_declared(option: str, parser: ConfigParser) -> bool:
    name = option.replace("#", "::")
    if name in parser:
        return True
    parent = name.rpartition("::")[0]
    component = parser[parent] if parent and parent in parser else None
    return isinstance(component, dict) and "_target_" in component


def _flags(words: Sequence[str]) -> dict[str, Any]:
    """Read ``--key value`` and ``--key=value`` as fire does; a bare ``--key`` is True, a bare ``--nokey`` False."""
    flags: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_flag(word):
            continue
        key, equals, text = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if equals:
            flags[key] = DefaultParseValue(text)
        elif position < len(words) and not _is_flag(words[position]):
            flags[key] = DefaultParseValue(words[position])
            position += 1
        elif key.startswith("no"):
            flags[key[2:]] = False
        else:
            flags[key] = True
    return flags


def _is_flag(word: str) -> bool:
    return word.startswith("--") or re.match("-[a-zA-Z]", word) is not None


def choose_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_datalist(datalist: str | os.PathLike | None, output_dir: str | os.PathLike) -> Path:
    """Return the data list, or write the phantom patient into ``output_dir/phantom`` where none is given."""
    if datalist is not None:
        return Path(datalist)
    return Path(write_phantom_patient(ensure_writable_folder(output_dir) / "phantom"))


def select_labels(datalist: DataList, names: Sequence[str] | str | None) -> dict[str, int]:
    """Return name -> value of the structures asked for; None asks for all of the data list.

    Raises:
        UserError: for a name that the data list does not have.
    """
    if names is None:
        return dict(datalist.labels)
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in datalist.labels:
            raise UserError(f"label {name!r} is not in the data list: it has {', '.join(datalist.labels)}.")
    if not chosen:
        raise UserError("--labels is empty: name the structures to segment, or leave it out for all.")
    return {name: datalist.labels[name] for name in chosen}


def find_checkpoint(
    checkpoint: str | None,
    variant: str,
    bundle_root: str | os.PathLike,
    datalist: str | os.PathLike | None = "given",
) -> Path:
    """Return the weights' file: a path, the name of shipped weights, or the variant's own for None.

    Args:
        checkpoint: a path, or the name of a file in the bundle's ``models`` ("compact_chaos"), or None: the bundle's
            ``compact_acdc`` for the compact variant and SAM's official checkpoint, fetched once, for the others.
        variant: of the network.
        bundle_root: the bundle's folder.
        datalist: of the run; None, the phantom patient, is served by ``compact_chaos``, which has learned from other
            phantom patients.

    Raises:
        UserError: for a missing file, or one whose sha256 is not that of its record.
    """
    models = Path(bundle_root) / "models"
    if checkpoint is None and variant in CHECKPOINTS:
        return fetch_checkpoint(variant)
    if variant not in VARIANTS:
        raise UserError(f"sam_variant {variant!r} is unknown: choose one of {', '.join(VARIANTS)}.")
    name = checkpoint or ("compact_chaos" if datalist is None else "compact_acdc")
    path = Path(name)
    if not path.is_file() and (models / f"{name}.pt").is_file():
        path = models / f"{name}.pt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in models.glob("*.pt"))) or "none"
        raise UserError(
            f"checkpoint {name} does not exist: give a path, or one of the weights in {models} ({there}); is "
            "--bundle_root right?"
        )
    record = read_record(path)
    if record is not None and record.sha256:
        verify_sha256(path, record.sha256)
    return path


def refuse_overlap(
    checkpoint: str | os.PathLike, dataset: str, pairs: Sequence[Mapping[str, Any]], allow: bool = False
) -> None:
    """Refuse to evaluate weights on patients they were trained on, unless ``allow`` says so.

    Raises:
        UserError: names patients that are in both.
    """
    record = read_record(checkpoint)
    if record is not None:
        patients = sorted({str(p["patient"]) for p in pairs})
        check_overlap(record, dataset, patients, allow_overlap=allow)


def prepare(
    pairs: Sequence[Mapping[str, Any]],
    labels: dict[str, int],
    cases: DataList,
    output_dir: str | os.PathLike,
    slice_match: str = "position",
) -> None:
    """Check everything that could stop a run half-way, before its first case: outputs, images, reference labels.

    Args:
        pairs: the targets with their references.
        labels: name -> value of the structures asked for.
        cases: the data list, for its values.
        output_dir: must be writable.
        slice_match: rule by which slices are matched; ``position`` needs volumes that overlap in space.

    Raises:
        UserError: see :func:`monai_ext.data.checks.check_pairs`.
    """
    ensure_writable_folder(output_dir)
    check_pairs(pairs, cases.labels, cases.ignore, asked=labels)
    refuse_volumes_apart(pairs, slice_match)
