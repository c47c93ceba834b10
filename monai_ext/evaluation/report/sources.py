"""Reads the output folders of evaluations: rows, what they sum up to, the record of the run, overlays."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_ext.data.text import read_json
from monai_ext.errors import UserError
from monai_ext.evaluation.curves import StepRow, read_interaction
from monai_ext.evaluation.levels import DEFAULT_LEVELS
from monai_ext.evaluation.record import RUN_FILE, read_record
from monai_ext.evaluation.summary import summarise
from monai_ext.evaluation.table import Row, read_rows
from monai_ext.files import sha256_of

PathLike = str | os.PathLike[str]
Statistics = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """One output folder.

    Attributes:
        name: what the method is called in the report; no two are called alike.
        folder: of the outputs.
        rows: of ``metrics.csv``.
        sha256: of ``metrics.csv``.
        summary: of the rows, see :func:`~monai_ext.evaluation.summary.summarise`.
        record: ``run.json``, or None where there is none.
        curve: rows of ``interaction.csv``, with ``name`` as the algorithm; none where there is no such file.
    """

    name: str
    folder: Path
    rows: tuple[Row, ...]
    sha256: str
    summary: Statistics
    record: dict[str, Any] | None
    curve: tuple[StepRow, ...]

    @property
    def table(self) -> Path:
        """Path of ``metrics.csv``."""
        return self.folder / "metrics.csv"

    def overlay(self, case: str) -> Path | None:
        """Return the picture of a case, or None where there is none."""
        if not case or Path(case).name != case or "\0" in case:
            return None
        path = self.folder / "overlays" / f"{case}.png"
        return path if path.is_file() else None


def read_evaluations(folders: Sequence[PathLike], names: Sequence[str] | None = None) -> list[Evaluation]:
    """Read one or more output folders.

    Args:
        folders: each with ``metrics.csv`` of one method.
        names: what the methods are called; None: by the algorithm, and by what tells them apart where two have the
            same: weights, else folder.

    Raises:
        UserError: where a folder holds no usable evaluation, or two are given twice or called alike.
    """
    paths = [_folder(folder) for folder in folders]
    if len({path.resolve() for path in paths}) != len(paths):
        raise UserError("an evaluation is given twice; name each output folder once")
    records = [read_record(path) if (path / RUN_FILE).is_file() else None for path in paths]
    tables = [_rows(path) for path in paths]
    called = list(names) if names else _names(paths, [table[0].algorithm for table in tables], records)
    if len(called) != len(paths) or len(set(called)) != len(called):
        raise UserError(f"--names gives {len(set(called))} different names for {len(paths)} evaluations; give each one")
    return [
        Evaluation(
            name=name,
            folder=path,
            rows=tuple(table),
            sha256=sha256_of(path / "metrics.csv"),
            summary=_summary(path, table),
            record=record,
            curve=_curve(path / "interaction.csv", name),
        )
        for name, path, table, record in zip(called, paths, tables, records, strict=True)
    ]


def _folder(folder: PathLike) -> Path:
    path = Path(folder)
    path = path.parent if path.name == "metrics.csv" else path
    if not (path / "metrics.csv").is_file():
        raise UserError(f"{path}: there is no metrics.csv in it; name the output folder of an evaluation")
    return path


def _rows(path: Path) -> list[Row]:
    rows = read_rows(path / "metrics.csv")
    tasks, algorithms = sorted({row.task for row in rows}), sorted({row.algorithm for row in rows})
    if len(tasks) == 1 and len(algorithms) == 1:
        return rows
    told = "no rows" if not rows else f"rows of {', '.join(algorithms)} on {', '.join(tasks)}"
    raise UserError(f"{path / 'metrics.csv'}: {told}; give a table of one method on one data set")


def _summary(folder: Path, rows: Sequence[Row]) -> Statistics:
    """Summarise the rows again, as ``summary.json`` says where there is one, and refuse one of other rows."""
    path = folder / "summary.json"
    if not path.is_file():
        return summarise(rows)
    try:
        stored = read_json(path)
        interval = stored["confidence_interval"]
        levels = stored.get("mean_of_levels", DEFAULT_LEVELS)
        summary = summarise(rows, int(interval["draws"]), int(interval["seed"]), levels)
        same = stored["n_cases"] == summary["n_cases"] and _means(stored) == _means(summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not the summary of an evaluation ({error!r}); score again or remove it") from error
    if not same:
        raise UserError(f"{path}: it is not of the metrics.csv beside it; score again or remove it")
    told = [str(text) for text in stored.get("warnings", []) if text not in summary["warnings"]]
    return {**stored, **summary, "warnings": told + summary["warnings"]}


def _means(summary: Statistics) -> dict[tuple[str, str], float | None]:
    """Return the mean of each label and metric, rounded: other versions of numpy may add up in another order."""
    return {
        (label, metric): None if statistics["mean"] is None else float(f"{statistics['mean']:.9g}")
        for label, of_label in summary["labels"].items()
        for metric, statistics in of_label.items()
    }


def _curve(path: Path, name: str) -> tuple[StepRow, ...]:
    return tuple(replace(row, algorithm=name) for row in read_interaction(path)) if path.is_file() else ()


def _names(paths: Sequence[Path], algorithms: Sequence[str], records: Sequence[dict[str, Any] | None]) -> list[str]:
    """Call each method by its algorithm; add weights or folder to those that share it."""
    counted = Counter(algorithms)
    shared = [number for number, algorithm in enumerate(algorithms) if counted[algorithm] > 1]
    names = list(algorithms)
    for of_number in (lambda n: _weights_name(records[n]), lambda n: _own_part(paths[n], [paths[i] for i in shared])):
        candidates = _with_details(algorithms, shared, of_number)
        if len(set(candidates)) == len(candidates):
            return candidates
    for number in shared:
        names[number] = f"{algorithms[number]} ({number + 1})"
    return names


def _with_details(algorithms: Sequence[str], shared: Sequence[int], detail: Callable[[int], str]) -> list[str]:
    return [f"{name} ({detail(i)})" if i in shared and detail(i) else name for i, name in enumerate(algorithms)]


def _weights_name(record: dict[str, Any] | None) -> str:
    checkpoint = (record or {}).get("checkpoint") or {}
    known = checkpoint.get("record") or {}
    return str(known.get("name") or Path(checkpoint.get("path") or "").stem)


def _own_part(path: Path, others: Sequence[Path]) -> str:
    """Return the last part of a path that the others have differently."""
    parts, theirs = path.resolve().parts[::-1], [other.resolve().parts[::-1] for other in others]
    for depth, part in enumerate(parts):
        if len({other[depth] if depth < len(other) else "" for other in theirs}) > 1:
            return part
    return ""
