"""What every bundle does before its first case: show mistakes as a sentence, check options, files and weights.

`python -m monai.bundle run --sead 3` adds an unused key ``sead`` to the config and runs with the old seed, exit code 0.
:func:`start` refuses such options.

Where torchrun has started several processes (overlay ``multi_gpu.yaml``), what must happen once happens in the first
of them, and a mistake is shown once: see :mod:`monai_ext.processes`.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from fire.parser import DefaultParseValue
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow, run, run_workflow
from monai.utils import ensure_tuple, set_determinism

from monai_ext import __version__, processes
from monai_ext.data.checks import check_pairs
from monai_ext.data.doctor import examine, warn_and_stop
from monai_ext.data.images import atomic_path, ensure_writable_folder
from monai_ext.data.manifest import FILE_KEYS, DataList, load_datalist
from monai_ext.data.phantoms import PATIENT_LABELS, write_phantom_patient
from monai_ext.data.provenance import check_overlap, read_record, verify_sha256
from monai_ext.data.shards import parse_shard
from monai_ext.data.studies import DATALIST, served_folder
from monai_ext.errors import UserError, answer_user_errors, report_user_errors
from monai_ext.files import sha256_of
from monai_ext.inferers.slice_match import refuse_volumes_apart
from monai_ext.networks.sam import CHECKPOINTS, VARIANTS, fetch_checkpoint

NO_LABELS = "--labels is empty: name the structures to segment, or leave it out for all."
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


def start(seed: int = 0, threads: int | None = None) -> None:
    """Begin a run: report mistakes as one sentence, refuse unknown options, fix all seeds.

    Args:
        seed: of Python, NumPy and torch.
        threads: of torch; None leaves its choice.

    Raises:
        UserError: for an option of the command line that no config file declares, or where torchrun has started
            several processes and the config does not share the cases out.
    """
    _report_mistakes()
    check_options(sys.argv)
    if processes.started_by_torchrun() != processes.count():
        processes.join()
        _report_mistakes()
        raise UserError(
            f"torchrun has started {processes.started_by_torchrun()} processes, but each would do all of the work: "
            "add configs/multi_gpu.yaml (a training: train_multi_gpu.yaml) to --config_file, or run without torchrun."
        )
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")  # of no concern: we read no DICOM with it
    set_determinism(seed=int(seed))
    if threads:
        torch.set_num_threads(int(threads))


def start_process(seed: int = 0, threads: int | None = None, device: str | torch.device = "cpu") -> None:
    """Begin a run in one of the processes that torchrun has started, or in the only one; see :func:`start`.

    Args:
        seed: of Python, NumPy and torch.
        threads: of torch, in each process.
        device: of this process; see :func:`process_device`.
    """
    processes.join()
    processes.open_group(device)
    start(seed, threads)


def process_device() -> torch.device:
    """Return this process's device: the GPU that torchrun's LOCAL_RANK counts, or the CPU where there is none.

    Raises:
        UserError: if torchrun has started more processes on this machine than it has GPUs.
    """
    processes.join()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= gpus:
        _report_mistakes()
        raise UserError(
            f"torchrun has started more than {gpus} processes for {gpus} GPUs: set --nproc_per_node {gpus}."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _report_mistakes() -> None:
    """Show a mistake as one sentence; of several processes, the first that fails says why, the others are silent."""
    report_user_errors()
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it tells of each exception twice before it ends the run
    report = sys.excepthook

    def report_once(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if processes.fails_first():
            print(file=sys.stderr)  # the line may hold another process's progress bar
            report(kind, error, traceback)

    if processes.count() > 1:
        sys.excepthook = report_once


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
    """Return the data list, or write the phantom patient into ``output_dir/phantom`` where none is given.

    In a MONAI Label server: the data list beside its studies.
    """
    if datalist is not None:
        return Path(datalist)
    studies = served_folder()
    if studies is not None:
        beside = studies / DATALIST
        return beside if beside.is_file() else write_phantom_patient(tempfile.mkdtemp())  # requests name their labels
    folder = Path(output_dir).expanduser().absolute() / "phantom"
    return Path(processes.from_first(lambda: str(write_phantom_patient(ensure_writable_folder(folder)))))


def run_folder(output_dir: str | os.PathLike, shard: str | None = None) -> Path:
    """Return the folder of this run's outputs: ``output_dir``, or ``output_dir/shard-0-of-4`` for shard 0/4.

    Raises:
        UserError: for an impossible shard.
    """
    part = parse_shard(shard)
    return Path(output_dir) if part is None else Path(output_dir) / part.folder


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
            raise UserError(
                f"label {name!r} is not in the data list: it has {', '.join(datalist.labels)}; name the structures "
                "there as the weights or --labels do."
            )
    if not chosen:
        raise UserError(NO_LABELS)
    return {name: datalist.labels[name] for name in chosen}


def refuse_phantom(datalist: str | os.PathLike | None, labels: Sequence[str] | str | None) -> None:
    """Refuse to segment the phantom patient with weights that know other structures.

    Args:
        datalist: as the user gave it.
        labels: what the weights segment, None where that is not known.

    Raises:
        UserError: where no list is given and the phantom, which is taken then, lacks one of the labels.
    """
    names = [] if labels is None else ensure_tuple(labels)
    if datalist is None and served_folder() is None and set(names) - set(PATIENT_LABELS):
        raise UserError(
            f"these weights segment {', '.join(names)}, which the phantom patient, taken where no data list is given, "
            "does not have: give --datalist with your images."
        )


def count_classes(
    labels: Sequence[str] | str | None,
    datalist: str | os.PathLike | None,
    data_root: str | os.PathLike | None,
    output_dir: str | os.PathLike,
) -> int:
    """Return the number of classes of a segmentor, background included.

    Args:
        labels: what it segments, None where that is not known: then all structures of the data list.
        datalist: see :func:`find_datalist`, as the others.
        data_root: folder that relative paths refer to.
        output_dir: where the phantom is written to.

    Raises:
        UserError: where ``labels`` is empty.
    """
    if labels is None:
        labels = list(load_datalist(find_datalist(datalist, output_dir), data_root).labels)
    names = ensure_tuple(labels)
    if not names:
        raise UserError(NO_LABELS)
    return len(names) + 1


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

    answer_user_errors()  # the first of this package that runs in a MONAI Label server

    def find() -> Path:
        return _find_checkpoint(checkpoint, variant, Path(bundle_root), datalist)

    if processes.count() > 1:
        processes.from_first(lambda: str(find()))  # so that it is fetched once
    return find()


def _find_checkpoint(
    checkpoint: str | None, variant: str, bundle_root: Path, datalist: str | os.PathLike | None
) -> Path:
    models = bundle_root / "models"
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


def find_segmentor(checkpoint: str | None, bundle_root: str | os.PathLike, train: str) -> Path:
    """Return the file of a segmentor's weights.

    Args:
        checkpoint: a path, or the name of a file in the bundle's ``models``; None: ``models/model.pt``.
        bundle_root: the bundle's folder.
        train: command that makes weights, for the sentence of an error.

    Raises:
        UserError: for a missing file, or one whose sha256 is not that of its record.
    """
    answer_user_errors()  # the first of this package that runs in a MONAI Label server
    models = Path(bundle_root) / "models"
    path = Path(checkpoint or "model")
    if not path.is_file():
        path = models / f"{path}.pt"
    if not path.is_file() and checkpoint is None:
        raise UserError(
            f"there are no weights in {models}: train a segmentor ({train}) and give its weights, --checkpoint "
            "OUT/model.pt; is --bundle_root right?"
        )
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in models.glob("*.pt"))) or "none"
        raise UserError(
            f"checkpoint {checkpoint} does not exist: give a path, or the name of weights in {models} ({there})."
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

    Then the doctor looks at headers and doubtful values; what it only warns of is printed once.

    Of several processes, the first one checks for all.

    Args:
        pairs: the targets that are to be run, with their references.
        labels: name -> value of the structures asked for.
        cases: the data list, for its values.
        output_dir: must be writable.
        slice_match: rule by which slices are matched; ``position`` needs volumes that overlap in space.

    Raises:
        UserError: see :func:`monai_ext.data.checks.check_pairs`.
    """

    def check() -> None:
        ensure_writable_folder(output_dir)
        if pairs:
            check_pairs(pairs, cases.labels, cases.ignore, asked=labels)
            refuse_volumes_apart(pairs, slice_match)
            _look_at_headers(cases, pairs)

    processes.from_first(check)


def look_at_headers(cases: DataList, used: Sequence[Mapping[str, Any]]) -> None:
    """Let the doctor look at the headers of the files that a run uses: print its warnings, stop at its first error.

    It also reads the few files whose values a run may take for something else.

    Of several processes, the first one looks for all.

    Args:
        cases: the data list.
        used: what the run uses of it: cases, or targets with their references.

    Raises:
        UserError: see :mod:`monai_ext.data.doctor`.
    """
    processes.from_first(lambda: _look_at_headers(cases, used))


def _look_at_headers(cases: DataList, used: Sequence[Mapping[str, Any]]) -> None:
    files = {path for item in used for key in FILE_KEYS for path in ensure_tuple(item.get(key) or ())}
    warn_and_stop(examine(cases, only=files, glance=True, leave_out=("visits_apart",), follow_up=False))


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
    root = Path(__file__).parent
    found = (path for name in MAKES_RESULTS for path in [root / name, *(root / name).rglob("*.py")] if path.is_file())
    names = (f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n" for path in sorted(found))
    return hashlib.sha256("".join(names).encode()).hexdigest()


def run_cases(evaluator: Engine) -> None:
    """Run an evaluator; where no case is left to be run, let its handlers write the tables all the same.

    MONAI's engines leave an empty data loader without calling any handler.
    """
    if evaluator.state.epoch_length:
        evaluator.run()
        return
    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
        evaluator.fire_event(event)
