"""``run.json``: what ran, on what, with what, so that somebody else can repeat it and check the files.

Paths are written so that they mean something elsewhere: relative to the data root, to the output folder or to
the repository where a file lies below one of these (``in`` says which), each with its size and sha256.
:mod:`monai_ext.evaluation.verify` checks them.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_ext.configuration import PLACES, first_difference
from monai_ext.data.cards import find_card
from monai_ext.data.provenance import OFFICIAL_WEIGHTS
from monai_ext.data.provenance import read_record as read_weight_record
from monai_ext.data.text import read_json
from monai_ext.errors import UserError
from monai_ext.files import atomic_path, sha256_of, source_sha256

RUN_FILE = "run.json"
NOT_STATED = "not stated"
PACKAGES = (
    "monai-ext",
    "monai",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "POT",
    "nibabel",
    "pillow",
    "segment-anything",
    "pytorch-ignite",
)
FILE_KEYS = ("image", "label", "scribble", "reference_image", "reference_label", "prediction", "kept_mask")
REPOSITORY = Path(__file__).resolve().parents[2]
OWN_OPTIONS = PLACES
"""Options in which the shards of one evaluation may differ; of files the contents are compared, not the paths."""

PathLike = str | os.PathLike[str]


def write_record(
    output_dir: PathLike,
    *,
    inputs: Iterable[PathLike | Mapping[str, Any]] = (),
    outputs: Iterable[PathLike] | None = None,
    config: Mapping[str, Any] | None = None,
    checkpoint: PathLike | None = None,
    seed: int = 0,
    datalist: PathLike | None = None,
    data_root: PathLike | None = None,
    started: datetime | None = None,
    wall_seconds: float | None = None,
    peak_memory_bytes: int | None = None,
    processes: int = 1,
    shard: str | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Write ``run.json`` of a run that has just ended.

    Content: command line, hash of this package's source and its commit where it is a clone, start, wall time, peak
    memory, seed, options, package versions, hardware; data set, licence and data root; the weights with their
    record (licence, what they were trained on); path, size and sha256 of every input and output.

    Args:
        output_dir: folder of the run's outputs.
        inputs: paths, or cases and pairs, of which the entries of :data:`FILE_KEYS` are taken.
        outputs: files below ``output_dir``; None: all that are there, hidden ones and ``run.json`` left out.
        config: options of the run by name; what JSON cannot hold is written as text.
        checkpoint: file of the weights; None: there are none.
        seed: of the run.
        datalist: the data list; its name of the data set and its key ``licence`` are taken along.
        data_root: folder below which inputs are named relative to it; None: the folder of the data list.
        started: when the run began, with time zone; None: unknown.
        wall_seconds: how long it took; None: since ``started``.
        peak_memory_bytes: largest resident size of a process; None: of this one so far.
        processes: how many there were.
        shard: such as "1/4" where the run is of a part of the cases; its inputs are of that part alone.
        note: what a reader of the results has to know, such as that the weights have not seen the modality.

    Returns:
        What was written.

    Raises:
        UserError: where a file cannot be read, or the folder not written.
    """
    output_dir = Path(output_dir)
    now = datetime.now(timezone.utc)
    if wall_seconds is None and started is not None:
        wall_seconds = (now - started).total_seconds()
    if data_root is None and datalist is not None:
        data_root = Path(datalist).parent
    bases = _bases(output_dir, data_root)
    paths = sorted({str(path) for item in inputs for path in _paths(item)})
    written = output_files(output_dir) if outputs is None else [output_dir / path for path in outputs]
    record = {
        "command": _command(),
        "code": code_version(),
        "started": None if started is None else started.isoformat(timespec="seconds"),
        "wall_seconds": None if wall_seconds is None else round(wall_seconds, 3),
        "peak_memory_bytes": peak_memory() if peak_memory_bytes is None else peak_memory_bytes,
        "processes": processes,
        "shard": shard,
        "note": note,
        "seed": seed,
        "config": dict(config or {}),
        "versions": package_versions(),
        "hardware": hardware(),
        "data": _data(datalist, data_root, bases),
        "checkpoint": None if checkpoint is None else _weights(Path(checkpoint), bases),
        "inputs": [fingerprint(Path(path), bases) for path in paths],
        "outputs": [_output(path, output_dir) for path in sorted(set(written))],
    }
    return _write(output_dir, record)


def read_record(path: PathLike) -> dict[str, Any]:
    """Read a ``run.json``, or that of an output folder.

    Raises:
        UserError: where it is absent or not such a record.
    """
    path = Path(path)
    path = path / RUN_FILE if path.is_dir() else path
    try:
        record = read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; name the {RUN_FILE} of a run") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the {RUN_FILE} of a run") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a record of a run ({error}); name another file") from error
    problem = _problem(record)
    if problem:
        raise UserError(f"{path}: not a record of a run ({problem}); name the {RUN_FILE} of a run")
    return record


def write_merged_record(
    output_dir: PathLike,
    shard_dirs: Sequence[PathLike],
    outputs: Iterable[PathLike] | None = None,
    started: datetime | None = None,
) -> dict[str, Any]:
    """Write one ``run.json`` for an evaluation that ran in parts.

    Inputs are united, wall times added up, the largest memory is kept; ``shards`` tells what each part ran on.

    Args:
        output_dir: folder of the merged outputs.
        shard_dirs: output folders of the parts, each with its ``run.json``.
        outputs: as for :func:`write_record`.
        started: when merging began; None: when the first part did.

    Returns:
        What was written.

    Raises:
        UserError: where a record is absent, or options, seed, weights or data list differ from the first one's.
    """
    records = read_shard_records(shard_dirs)
    output_dir = Path(output_dir)
    written = output_files(output_dir) if outputs is None else [output_dir / path for path in outputs]
    known = {str(entry["sha256"]) + str(entry["path"]): entry for record in records for entry in record["inputs"]}
    starts = [record["started"] for record in records if record.get("started")]
    walls = [record.get("wall_seconds") or 0.0 for record in records]
    merged = records[0] | {
        "command": _command(),
        "started": started.isoformat(timespec="seconds") if started else min(starts, default=None),
        "wall_seconds": round(sum(walls), 3),
        "peak_memory_bytes": max((record.get("peak_memory_bytes") or 0 for record in records), default=0) or None,
        "shard": None,
        "config": _common_options(records[0]),
        "shards": [_part(record) for record in records],
        "inputs": sorted(known.values(), key=lambda entry: entry["path"]),
        "outputs": [_output(path, output_dir) for path in sorted(set(written))],
    }
    return _write(output_dir, merged)


def output_files(output_dir: PathLike) -> list[Path]:
    """Return the files below an output folder, hidden ones and ``run.json`` left out."""
    found = sorted(Path(output_dir).rglob("*"))
    return [path for path in found if path.is_file() and path.name != RUN_FILE and not path.name.startswith(".")]


def fingerprint(path: Path, bases: Mapping[str, Path]) -> dict[str, Any]:
    """Return path, size and sha256 of a file, its path relative to the first of the bases that holds it.

    Args:
        path: of the file.
        bases: folders by name, such as ``data_root``.

    Returns:
        ``path`` (with ``/``), ``in`` (name of the base; None: ``path`` is absolute), ``bytes``, ``sha256``.

    Raises:
        UserError: where the file cannot be read.
    """
    name, base = Path(os.path.abspath(path)), None
    for candidate, folder in bases.items():
        relative = _relative(path, folder)
        if relative is not None:
            name, base = relative, candidate
            break
    try:
        return {"path": name.as_posix(), "in": base, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), so {RUN_FILE} cannot be written; do not change inputs "
            "or outputs while a run goes on"
        ) from error


def package_versions() -> dict[str, str | None]:
    """Return the versions of Python and of :data:`PACKAGES`; None where one is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    versions["torch"] = str(torch.__version__)  # with its build: +cu132, +cpu
    return versions


def code_version() -> dict[str, Any]:
    """Return the hash of this package's source, its commit where it is a clone, and whether that differs from it.

    ``commit`` and ``dirty`` are None where there is no git or no clone.
    """
    state: dict[str, Any] = {"source": source_sha256(), "commit": None, "dirty": None}
    told = _git("rev-parse", "--show-toplevel", "HEAD")
    if told is None or len(told.split("\n")) != 2:
        return state
    top, commit = told.split("\n")
    if Path(top).resolve() != REPOSITORY:  # installed into an environment that lies in another repository
        return state
    changes = _git("status", "--porcelain", "--", "monai_ext", "bundles")
    return state | {"commit": commit, "dirty": None if changes is None else bool(changes)}


def hardware() -> dict[str, Any]:
    """Return what this process runs on."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
        "gpu_peak_memory_bytes": [torch.cuda.max_memory_allocated(index) for index in gpus],
        "system": platform.platform(),
    }


def peak_memory() -> int | None:
    """Return the largest resident size of this process so far in bytes; None where it is not known."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# Parts of the record


def _bases(output_dir: Path, data_root: PathLike | None) -> dict[str, Path]:
    """Return the folders that paths are written relative to; the output folder moves with its record, so first."""
    bases = {"output_dir": output_dir}
    if data_root is not None:
        bases["data_root"] = Path(data_root).expanduser()
    return bases | {"repository": REPOSITORY}


def _relative(path: Path, folder: Path) -> Path | None:
    """Return the path below a folder, by name or, where links lead there, in truth; None: it is not below it."""
    named, true = Path(os.path.abspath(path)), path.resolve()
    for form, base in ((named, Path(os.path.abspath(folder))), (named, folder.resolve()), (true, folder.resolve())):
        if form.is_relative_to(base):
            return form.relative_to(base)
    return None


def _paths(item: PathLike | Mapping[str, Any]) -> Iterator[PathLike]:
    if not isinstance(item, Mapping):
        yield item
        return
    for key in FILE_KEYS:
        value = item.get(key)
        if isinstance(value, (str, os.PathLike)):
            yield value
        elif value is not None:
            yield from value


def _output(path: Path, output_dir: Path) -> dict[str, Any]:
    entry = fingerprint(path, {"output_dir": output_dir})
    if entry.pop("in") is None:
        raise ValueError(f"{path} is not below the output folder {output_dir}")
    return entry


def _data(datalist: PathLike | None, data_root: PathLike | None, bases: Mapping[str, Path]) -> dict[str, Any]:
    """Return what is known of the data as a whole."""
    data: dict[str, Any] = {"dataset": None, "licence": NOT_STATED, "root": None, "datalist": None}
    if data_root is not None:
        data["root"] = bases["data_root"].resolve().as_posix()
    if datalist is None:
        return data
    path = Path(datalist).expanduser()
    data["datalist"] = fingerprint(path, bases)
    try:
        content = read_json(path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a data list ({error}); check --datalist") from error
    if isinstance(content, dict):
        data["dataset"] = content.get("dataset")
        data["licence"] = content.get("licence") or content.get("license") or _licence_on_card(data["dataset"])
    return data


def _licence_on_card(dataset: str | None) -> str:
    card = find_card(dataset)
    return card.licence if card else NOT_STATED


def _weights(path: Path, bases: Mapping[str, Path]) -> dict[str, Any]:
    entry = fingerprint(path, bases)
    record = read_weight_record(path) or OFFICIAL_WEIGHTS.get(entry["sha256"])
    return entry | {
        "licence": record.licence if record else NOT_STATED,
        "record": record.model_dump(exclude={"sha256"}) if record else None,
    }


def _command() -> str:
    """Return the command line, without the folder of the interpreter: another machine has its own."""
    program, *rest = sys.orig_argv or [sys.executable or "python"]
    return " ".join(map(_quoted, [Path(program).name, *rest]))


def _quoted(word: str) -> str:
    """Quote a word for a shell, in double quotes where these read better."""
    plain = "'" in word and not set(word) & set('"$`\\!\n')
    return f'"{word}"' if plain else shlex.quote(word)


def _git(*arguments: str) -> str | None:
    """Return what git says about the folder of this package; None where there is no git or no clone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(REPOSITORY), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


# Shards


def _part(record: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("shard", "command", "started", "wall_seconds", "peak_memory_bytes", "processes", "code", "versions")
    return {key: record.get(key) for key in keys} | {"hardware": record.get("hardware")}


def _common_options(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.get("config", {}).items() if name not in OWN_OPTIONS}


def read_shard_records(shard_dirs: Sequence[PathLike]) -> list[dict[str, Any]]:
    """Read the ``run.json`` of every shard.

    Raises:
        UserError: there is none, one is missing, or two are not of one evaluation.
    """
    records = [read_record(Path(path) / RUN_FILE) for path in shard_dirs]
    if not records:
        raise UserError("there are no shards to merge; name the output folders of the parts")
    for path, record in zip(shard_dirs[1:], records[1:], strict=True):
        _refuse_other_run(shard_dirs[0], records[0], path, record)
    return records


def _refuse_other_run(
    first_path: PathLike, first: Mapping[str, Any], path: PathLike, record: Mapping[str, Any]
) -> None:
    """Refuse to merge parts that are not of one evaluation; other versions or hardware are only recorded."""
    told = {"seed": (first.get("seed"), record.get("seed"))}
    one, other = _common_options(first), _common_options(record)
    found = first_difference(one, other)
    told |= {f"option {found[0]}": found[1:]} if found else {}
    told["weights"] = (_sha256(first.get("checkpoint")), _sha256(record.get("checkpoint")))
    lists = [_sha256((part.get("data") or {}).get("datalist")) for part in (first, record)]
    told["data list"] = (lists[0], lists[1])
    for what, (value, other_value) in told.items():
        if value != other_value:
            raise UserError(
                f"{Path(first_path) / RUN_FILE} and {Path(path) / RUN_FILE} are not parts of one evaluation: {what} "
                f"is {value!r} and {other_value!r}; run both parts alike"
            )


def _sha256(entry: Mapping[str, Any] | None) -> str | None:
    return entry["sha256"] if entry else None


# Reading and writing


def _problem(record: Any) -> str | None:
    """Return what keeps a JSON value from being a record, in a few words."""
    if not isinstance(record, dict):
        return "it is no object"
    for key in ("data", "code", "versions"):
        if not isinstance(record.get(key) or {}, dict):
            return f"{key} is no object"
    data = record.get("data") or {}
    if not isinstance(data.get("root"), (str, type(None))):
        return "the root of data is no path"
    for key in ("inputs", "outputs"):
        if not isinstance(record.get(key), list):
            return f"{key} is no list"
    entries = [*record["inputs"], *record["outputs"], record.get("checkpoint"), data.get("datalist")]
    for entry in entries:
        if entry is not None and not (isinstance(entry, dict) and isinstance(entry.get("path"), str)):
            return "an entry of a file has no path"
        if entry is not None and not isinstance(entry.get("sha256"), str):
            return f"{entry['path']!r} has no sha256"
        if entry is not None and not _has_place_and_size(entry):
            return f"{entry['path']!r} has no usable path, 'in' or size"
    return None


def _has_place_and_size(entry: Mapping[str, Any]) -> bool:
    place, size = entry.get("in"), entry.get("bytes")
    return "\0" not in entry["path"] and isinstance(place, (str, type(None))) and isinstance(size, (int, type(None)))


def _write(output_dir: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = _plain(record)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(output_dir / RUN_FILE) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return plain


def _plain(value: Any) -> Any:
    """Return what JSON can hold of a value: anything unknown, NaN and Inf as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
