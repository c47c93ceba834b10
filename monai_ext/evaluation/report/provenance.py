"""What a report says about where its numbers come from: facts of the runs, side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from monai_ext.configuration import is_program
from monai_ext.data.provenance import WeightRecord, check_overlap
from monai_ext.evaluation.record import NOT_STATED
from monai_ext.evaluation.report.sources import Evaluation
from monai_ext.evaluation.report.wording import NONE, count, duration, short_hash, size, time

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Fact:
    """One line of a table of facts: a cell for each method, or one for all where they agree."""

    name: str
    cells: tuple[str, ...]

    @property
    def common(self) -> str | None:
        """The text that all methods share, or None."""
        return self.cells[0] if len(set(self.cells)) == 1 else None


@dataclass(frozen=True)
class Provenance:
    """Facts of the runs, their options, versions and commands, a cell or a line for each method."""

    methods: tuple[str, ...]
    facts: tuple[Fact, ...]
    options: tuple[Fact, ...]
    versions: tuple[Fact, ...]
    commands: tuple[tuple[str, str], ...]


def provenance(evaluations: Sequence[Evaluation]) -> Provenance:
    """Collect what the records of the runs say."""
    return Provenance(
        methods=tuple(evaluation.name for evaluation in evaluations),
        facts=tuple(Fact(name, tuple(map(of, evaluations))) for name, of in FACTS.items()),
        options=tuple(_side_by_side(evaluations, [_options(e) for e in evaluations])),
        versions=tuple(_side_by_side(evaluations, [(e.record or {}).get("versions") or {} for e in evaluations])),
        commands=tuple((e.name, _shorten(e.record.get("command") or NOT_STATED, e)) for e in evaluations if e.record),
    )


def weights_text(evaluation: Evaluation) -> str:
    """Name the weights of a method."""
    if evaluation.record is None:
        return NOT_STATED
    entry = evaluation.record.get("checkpoint")
    if not entry:
        return "none"
    known = entry.get("record") or {}
    return f"{known['name']} ({known['variant']})" if known else Path(entry["path"]).name


def training_text(evaluation: Evaluation) -> str:
    """Say what the weights of a method have seen."""
    if evaluation.record is None:
        return NOT_STATED
    entry = evaluation.record.get("checkpoint")
    if not entry:
        return NONE
    known = _weight_record(entry)
    if known is None:
        return NOT_STATED
    told = []
    for data in known.datasets:
        patients = f"{count(len(data.patients), 'patient')}, " if data.patients else ""
        labels = "no labels" if data.labels == "none" else f"{data.labels} labels"
        told.append(f"{data.dataset} ({patients}{labels})")
    return "; ".join(told) or "nothing"


def provenance_warnings(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Say what a reader has to know of the runs before believing the numbers."""
    for evaluation in evaluations:
        if evaluation.record is None:
            yield f"{evaluation.name}: there is no run.json, so nothing is known of the run"
            continue
        seen = _seen_patients(evaluation)
        if seen:
            yield f"{evaluation.name}: the weights have seen {count(len(seen), 'patient')} of this evaluation"
        recorded = {entry["path"]: entry["sha256"] for entry in evaluation.record["outputs"]}
        if recorded.get("metrics.csv", evaluation.sha256) != evaluation.sha256:
            yield f"{evaluation.name}: metrics.csv has changed since its run was recorded"
        if (evaluation.record.get("code") or {}).get("dirty"):
            yield f"{evaluation.name}: the code of the run differed from its commit"
    yield from _different_inputs(evaluations)


def _different_inputs(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    known: dict[str, tuple[str, str]] = {}
    for evaluation in evaluations:
        for entry in (evaluation.record or {}).get("inputs", []):
            if entry.get("in") != "data_root":
                continue
            other, sha256 = known.setdefault(entry["path"], (evaluation.name, entry["sha256"]))
            if sha256 != entry["sha256"]:
                yield f"{evaluation.name} and {other} have read different bytes of {entry['path']}"


def _weight_record(entry: Record) -> WeightRecord | None:
    try:
        return WeightRecord.model_validate({"sha256": "", **entry["record"]}) if entry.get("record") else None
    except ValidationError:
        return None


def _seen_patients(evaluation: Evaluation) -> list[str]:
    entry = (evaluation.record or {}).get("checkpoint")
    record = _weight_record(entry) if entry else None
    patients = {row.cluster for row in evaluation.rows}
    return check_overlap(record, evaluation.rows[0].task, patients, allow_overlap=True)


# Facts


def _of_record(tell: Callable[[Record], str]) -> Callable[[Evaluation], str]:
    return lambda evaluation: NOT_STATED if evaluation.record is None else tell(evaluation.record) or NOT_STATED


def _of_weights(tell: Callable[[Record], str]) -> Callable[[Evaluation], str]:
    return _of_record(lambda record: tell(record["checkpoint"]) if record.get("checkpoint") else NONE)


def _commit(record: Record) -> str:
    code = record.get("code") or {}
    return f"{code['commit']}{' with changes' if code.get('dirty') else ''}" if code.get("commit") else ""


def _hardware(record: Record) -> str:
    hardware = record.get("hardware") or {}
    parts = [str(hardware.get("cpu", "")), f"{hardware.get('cores')} cores, threads used: {hardware.get('threads')}"]
    return "; ".join([*parts, *map(str, hardware.get("gpus") or ["no GPU"])]) if hardware else ""


def _data(evaluation: Evaluation) -> str:
    data = (evaluation.record or {}).get("data") or {}
    return f"{data.get('dataset') or evaluation.rows[0].task}, licence: {data.get('licence') or NOT_STATED}"


def _datalist(record: Record) -> str:
    entry = (record.get("data") or {}).get("datalist")
    return f"{Path(entry['path']).name}, sha256 {entry['sha256']}" if entry else ""


def _files(entries: Sequence[Record]) -> str:
    """Count files and give one checksum for all of them, the same for the same bytes under the same names."""
    lines = sorted(f"{entry['sha256']}  {entry['path']}\n" for entry in entries)
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    n_bytes = sum(entry.get("bytes") or 0 for entry in entries)
    return f"{count(len(entries), 'file')}, {size(n_bytes)}, sha256 of their list {short_hash(digest)}"


def _weights_file(entry: Record) -> str:
    return f"{Path(entry['path']).name}, {size(entry.get('bytes'))}, sha256 {entry['sha256']}"


def _seen(evaluation: Evaluation) -> str:
    entry = (evaluation.record or {}).get("checkpoint")
    if not entry or _weight_record(entry) is None:
        return NONE if evaluation.record and not entry else NOT_STATED
    return ", ".join(_seen_patients(evaluation)) or "none"


def _runs_on(record: Record) -> str:
    shards = len(record.get("shards") or [])
    processes = count(record.get("processes") or 1, "process", "processes")
    return f"{processes}, merged from {shards} shards" if shards else processes


FACTS: dict[str, Callable[[Evaluation], str]] = {
    "Data": _data,
    "Data list": _of_record(_datalist),
    "Weights": weights_text,
    "Weights’ file": _of_weights(_weights_file),
    "Weights’ licence": _of_weights(lambda entry: entry.get("licence") or NOT_STATED),
    "Weights trained on": training_text,
    "Of these evaluated": _seen,
    "Inputs": _of_record(lambda record: _files(record["inputs"])),
    "Outputs": _of_record(lambda record: _files(record["outputs"])),
    "metrics.csv": lambda evaluation: f"sha256 {short_hash(evaluation.sha256)}",
    "Commit": _of_record(_commit),
    "Seed": _of_record(lambda record: str(record.get("seed", ""))),
    "Started": _of_record(lambda record: time(record.get("started"))),
    "Wall time": _of_record(lambda record: duration(record.get("wall_seconds"))),
    "Peak memory": _of_record(lambda record: size(record.get("peak_memory_bytes"))),
    "Run as": _of_record(_runs_on),
    "Hardware": _of_record(_hardware),
    "System": _of_record(lambda record: str((record.get("hardware") or {}).get("system", ""))),
}


def _options(evaluation: Evaluation) -> dict[str, Any]:
    """Return the options of a run: the entries of its configuration that are plain values, not components."""
    config = (evaluation.record or {}).get("config") or {}
    return {name: value for name, value in config.items() if not is_program(value)}


def _side_by_side(evaluations: Sequence[Evaluation], tables: Sequence[Mapping[str, Any]]) -> Iterator[Fact]:
    """Lay a dictionary of every record side by side, a line for each name."""
    for name in dict.fromkeys(name for table in tables for name in table):
        cells = [
            _shorten(_text(table[name]), evaluation) if name in table else NONE
            for table, evaluation in zip(tables, evaluations, strict=True)
        ]
        yield Fact(str(name), tuple(cells))


def _text(value: Any) -> str:
    if value is None or value == "":
        return NONE
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)


def _shorten(text: str, evaluation: Evaluation) -> str:
    """Write DATA and OUT for the folders of data and outputs, whose place on one machine tells others nothing."""
    record = evaluation.record or {}
    root = (record.get("data") or {}).get("root") or (record.get("config") or {}).get("data_root")
    for folder, name in ((str(evaluation.folder.resolve()), "OUT"), (str(root or ""), "DATA")):
        if len(folder) > 1 and Path(folder).is_absolute():
            text = text.replace(folder, name)
    return text
