"""Over cases: what ``summary.json`` says, and the same as a table for the terminal.

A mean without its definition, its n and its interval is no result, so all three stand in the file: the policy
for undefined values, HD95's definition, the bootstrap's unit, draws and seed, and the warnings a reader
needs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.evaluation.bootstrap import DRAWS, cohort_warning, patient_bootstrap_ci
from monai_ext.evaluation.case_metrics import HD95_DEFINITION, UNDEFINED_POLICY, UNDEFINED_POLICY_TEXT
from monai_ext.evaluation.table import STATUSES, Row, write_text

LEVEL = 0.95
DEFINITIONS = {
    "dice": "2 |A and B| / (|A| + |B|) over all voxels of the case",
    "dice_slice_mean": "mean of the per-slice Dice over the slices where the reference is present",
    "hd95": HD95_DEFINITION,
    "nsd": "share of both surfaces' voxels within the tolerance of the other surface",
    "volume_ml": "volume of the prediction",
    "volume_error_ml": "predicted minus reference volume",
}


def summarise(rows: Sequence[Row], draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Summarise the rows of one algorithm on one data set.

    Per label and metric: ``n`` rows, ``n_by_status``, ``n_defined`` (what the statistics are of),
    ``n_patients``, mean, sample standard deviation, median, quartiles and the 95 % interval of the mean
    (bootstrap over patients). ``macro`` is the mean over labels of the labels' means, ``micro`` the mean over
    all rows; ``visits`` holds the same per visit. Means are over cases, whatever the number of cases per
    patient.

    Args:
        rows: of ``metrics.csv``.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A dictionary that JSON can hold; what is not defined is None.

    Raises:
        ValueError: where there are no rows, or rows of several algorithms or data sets.
    """
    tasks, algorithms = {row.task for row in rows}, {row.algorithm for row in rows}
    if len(tasks) != 1 or len(algorithms) != 1:
        raise ValueError(f"one task and one algorithm can be summarised, got {sorted(tasks)} and {sorted(algorithms)}")
    visits = _visits(rows)
    return {
        "task": tasks.pop(),
        "algorithm": algorithms.pop(),
        "n_cases": len({(row.case, row.run) for row in rows}),
        "n_patients": len({row.cluster for row in rows}),
        "undefined_values": {"policy": UNDEFINED_POLICY, "text": UNDEFINED_POLICY_TEXT},
        "definitions": DEFINITIONS,
        "mean_of": "cases",
        "confidence_interval": {
            "of": "mean",
            "level": LEVEL,
            "method": "percentile bootstrap",
            "unit": "patient",
            "draws": draws,
            "seed": seed,
        },
        **_levels(rows, draws, seed),
        "visits": {visit: _levels([row for row in rows if row.visit == visit], draws, seed) for visit in visits},
        "warnings": _warnings(rows),
    }


def write_summary(path: str | Path, summary: dict[str, Any]) -> None:
    """Write ``summary.json`` whole or not at all."""
    write_text(path, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def format_table(rows: Sequence[Row], summary: dict[str, Any] | None = None) -> str:
    """Lay out labels x metrics, per visit and over all, as plain text: mean [95 % CI].

    The last column counts the cases that were not ok. Volumes and ``dice_slice_mean`` are left to
    ``summary.json``.

    Args:
        rows: as for :func:`summarise`.
        summary: what that returned for them; None: calculated here.
    """
    if summary is None:
        summary = summarise(rows)
    metrics = [name for name in _ordered(row.metric for row in rows) if _in_table(name)]
    lines = [["visit", "label", "n", *metrics, "not ok"]]
    sections = summary["visits"] if len(summary["visits"]) > 1 else {}
    for visit, level in [*sections.items(), ("all", summary)]:
        for label, of_label in level["labels"].items():
            lines.append([visit, label, *_cells(of_label, metrics), _not_ok(of_label[metrics[0]])])
        if len(level["labels"]) > 1:
            lines.append([visit, "macro", *_cells(level["macro"], metrics), ""])
    interval = summary["confidence_interval"]
    notes = [
        f"mean over cases [{interval['level']:.0%} CI: {interval['draws']} bootstrap draws over patients]; "
        "macro: mean over labels",
        f"hd95: {HD95_DEFINITION}",
        f"undefined values ({UNDEFINED_POLICY}): {UNDEFINED_POLICY_TEXT}",
        *(f"warning: {text}" for text in summary["warnings"]),
    ]
    size = f"{summary['n_cases']} cases, {summary['n_patients']} patients"
    title = f"{summary['algorithm']} on {summary['task']}: {size}"
    return "\n".join([title, "", layout(lines), "", *notes])


def layout(lines: Sequence[Sequence[str]]) -> str:
    """Align rows of cells to columns; the first row is a header."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([rows[0], "  ".join("-" * width for width in widths), *rows[1:]])


def _in_table(metric: str) -> bool:
    return metric == "dice" or metric.startswith(("hd95_", "nsd_"))


def _levels(rows: Sequence[Row], draws: int, seed: int) -> dict[str, Any]:
    labels, metrics = _ordered(row.label for row in rows), _ordered(row.metric for row in rows)
    by_metric = {metric: [row for row in rows if row.metric == metric] for metric in metrics}

    def of_label(label: str) -> dict[str, Any]:
        chosen = {metric: [row for row in by_metric[metric] if row.label == label] for metric in metrics}
        return {metric: _statistics(chosen[metric], draws, seed) for metric in metrics}

    return {
        "labels": {label: of_label(label) for label in labels},
        "macro": {metric: _macro(by_metric[metric], draws, seed) for metric in metrics},
        "micro": {metric: _statistics(by_metric[metric], draws, seed) for metric in metrics},
    }


def _statistics(rows: Sequence[Row], draws: int, seed: int) -> dict[str, Any]:
    values, patients = _defined(rows)
    counted = Counter(row.status for row in rows)
    result: dict[str, Any] = {
        "n": len(rows),
        "n_by_status": {status: counted[status] for status in STATUSES},
        "n_defined": len(values),
        "n_patients": len(set(patients)),
    }
    names = ("mean", "std", "median", "q1", "q3", "ci_low", "ci_high")
    if not values:
        return result | dict.fromkeys(names)
    numbers = np.array(values)
    spread = float(np.std(numbers, ddof=1)) if len(values) > 1 else None
    quartiles = [float(np.quantile(numbers, share)) for share in (0.5, 0.25, 0.75)]
    interval = patient_bootstrap_ci(values, patients, draws, seed, LEVEL)
    return result | dict(zip(names, (float(np.mean(numbers)), spread, *quartiles, *interval), strict=True))


def _macro(rows: Sequence[Row], draws: int, seed: int) -> dict[str, Any]:
    values, patients = _defined(rows)
    labels = [row.label for row in rows if row.value is not None]
    result: dict[str, Any] = {"n_labels": len(set(labels)), "n_patients": len(set(patients))}
    if not values:
        return result | {"mean": None, "ci_low": None, "ci_high": None}
    numbers, names = np.array(values), np.array(labels)
    mean = float(np.mean([np.mean(numbers[names == label]) for label in _ordered(labels)]))
    low, high = patient_bootstrap_ci(values, patients, draws, seed, LEVEL, groups=labels)
    return result | {"mean": mean, "ci_low": low, "ci_high": high}


def _defined(rows: Iterable[Row]) -> tuple[list[float], list[str]]:
    pairs = [(row.value, row.cluster) for row in rows if row.value is not None]
    return [value for value, _ in pairs], [patient for _, patient in pairs]


def _warnings(rows: Sequence[Row]) -> list[str]:
    found = [cohort_warning(len({row.cluster for row in rows}))]
    if not all(row.patient for row in rows):
        found.append("cases without a patient count as patients of their own")
    first = rows[0].metric
    for label in _ordered(row.label for row in rows):
        of_label = [row for row in rows if (row.label, row.metric) == (label, first)]
        counted = Counter(row.status for row in of_label if row.status != "ok")
        if counted:
            told = ", ".join(f"{counted[status]} {status}" for status in STATUSES if counted[status])
            found.append(f"{label}: {told} of {len(of_label)} cases")
    return [text for text in found if text]


def _visits(rows: Iterable[Row]) -> list[str]:
    """Return the visits in their order: numbers by size, others (ISO dates) as text."""
    names = {row.visit for row in rows if row.visit}
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _cells(of_label: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    counts = [value["n_defined"] for value in (of_label[name] for name in metrics) if "n_defined" in value]
    return [str(counts[0]) if counts else "", *(_cell(of_label[name], name) for name in metrics)]


def _cell(statistics: dict[str, Any], metric: str) -> str:
    if statistics["mean"] is None:
        return "-"
    digits = 1 if metric.startswith("hd95") else 3
    mean, low, high = (f"{statistics[name]:.{digits}f}" for name in ("mean", "ci_low", "ci_high"))
    return f"{mean} [{low}, {high}]"


def _not_ok(statistics: dict[str, Any]) -> str:
    counts = statistics["n_by_status"]
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if status != "ok" and counts[status])
