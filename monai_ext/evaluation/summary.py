"""Over cases: what ``summary.json`` says, and the same as a table for the terminal.

A mean without its definition, its n and its interval is no result, so all three stand in the file: the policy
for undefined values, HD95's definition, the bootstrap's unit, draws and seed, and the warnings a reader
needs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.evaluation.bootstrap import DRAWS, cohort_warning, group_means, percentile_interval
from monai_ext.evaluation.case_metrics import HD95_DEFINITION, UNDEFINED_POLICY, UNDEFINED_POLICY_TEXT
from monai_ext.evaluation.levels import (
    DEFAULT_LEVELS,
    NestedMean,
    describe_levels,
    nest,
    parse_levels,
    place,
    refuse_empty_levels,
)
from monai_ext.evaluation.table import STATUSES, Row, write_text

LEVEL = 0.95
MAX_VISITS = 10
SPACING_SOURCE = "header of the case's image file, in mm; frames have none"
DEFINITIONS = {
    "dice": "2 |A and B| / (|A| + |B|) over all voxels of the case",
    "dice_slice_mean": "mean of the per-slice Dice over the slices where the reference is present",
    "hd95": HD95_DEFINITION,
    "nsd": "share of both surfaces' voxels within the tolerance of the other surface",
    "volume_ml": "volume of the prediction",
    "volume_error_ml": "predicted minus reference volume",
    "relative_volume_error": "volume_error_ml / reference volume, of the cases whose reference holds the label",
}
# Columns of a table whose intervals are calculated at a time: bounds the memory.
COLUMNS_AT_A_TIME = 1_000


def summarise(
    rows: Sequence[Row],
    draws: int = DRAWS,
    seed: int = 0,
    mean_of: str | Sequence[str] = DEFAULT_LEVELS,
    remarks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Summarise the rows of one algorithm on one data set.

    Per label and metric: ``n`` rows, ``n_by_status``, ``n_defined``, ``n_patients``, ``n_units`` (the values
    that the statistics are of: cases, or what ``mean_of`` names last), their mean, sample standard deviation,
    median, quartiles, and the 95 % interval of the mean. ``macro`` is the mean over labels of the labels'
    means, ``micro`` the mean over all rows, whatever their label; ``visits`` holds the same per visit.

    Every interval is of the same resampled cohorts of patients, of whatever units the mean is; a cohort in
    which a mean has no value is left out of that mean's interval.

    Args:
        rows: of ``metrics.csv``, in any order.
        draws: of the bootstrap.
        seed: of the bootstrap.
        mean_of: levels of the mean as the protocol defines it, finest first:
            see :func:`monai_ext.evaluation.levels.parse_levels`. ``("case",)`` weighs every case alike.
        remarks: what else the file shall say, by key; its ``warnings`` are put before the summary's own.

    Returns:
        A dictionary that JSON can hold, numbers to 12 digits; what is not defined is None.

    Raises:
        UserError: where a level is unknown, or no row has it.
        ValueError: where there are no rows, or rows of several algorithms or data sets.
    """
    tasks, algorithms = {row.task for row in rows}, {row.algorithm for row in rows}
    if len(tasks) != 1 or len(algorithms) != 1:
        raise ValueError(f"one task and one algorithm can be summarised, got {sorted(tasks)} and {sorted(algorithms)}")
    levels = parse_levels(mean_of)
    refuse_empty_levels(levels, ({"visit": row.visit, "fold": row.fold, "run": row.run} for row in rows))
    told = dict(remarks or {})
    found_warnings = [*told.pop("warnings", []), *_unnamed(rows, levels), *_warnings(rows)]
    table = _Table(rows, levels, draws, seed)
    return {
        "task": tasks.pop(),
        "algorithm": algorithms.pop(),
        "n_cases": len({(row.case, row.run) for row in rows}),
        "n_patients": len({row.cluster for row in rows}),
        "undefined_values": {"policy": UNDEFINED_POLICY, "text": UNDEFINED_POLICY_TEXT},
        "definitions": DEFINITIONS,
        "spacing_source": SPACING_SOURCE,
        "mean_of": describe_levels(levels),
        "mean_of_levels": list(levels),
        "confidence_interval": {
            "of": "mean",
            "level": LEVEL,
            "method": "percentile bootstrap",
            "unit": "patient",
            "draws": draws,
            "seed": seed,
        },
        **told,
        **table.sections(),
        "warnings": found_warnings,
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
        f"mean over {summary['mean_of']} [{interval['level']:.0%} CI: {interval['draws']} bootstrap draws over "
        "patients]; macro: mean over labels",
        f"hd95: {HD95_DEFINITION}",
        f"undefined values ({UNDEFINED_POLICY}): {UNDEFINED_POLICY_TEXT}",
        *(
            f"iou_pooled of {label}: {of['mean']:.3f} (mean over {of['n']} patients; IoU over all cases of each)"
            for label, of in summary.get("iou_pooled", {}).get("labels", {}).items()
            if of["n"]
        ),
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


class _Table:
    """The statistics of a table; all of its intervals are of the same resampled cohorts."""

    def __init__(self, rows: Sequence[Row], levels: tuple[str, ...], draws: int, seed: int) -> None:
        clusters = sorted({row.cluster for row in rows})
        self._patients = {name: number for number, name in enumerate(clusters)}
        self._labels, self._metrics = _ordered(row.label for row in rows), _ordered(row.metric for row in rows)
        self._rows = sorted(rows, key=place)
        self._visits = _visits(rows)
        self._levels = levels
        self._draws, self._seed = draws, seed
        self._waiting: list[tuple[dict[str, Any], NestedMean]] = []

    def sections(self) -> dict[str, Any]:
        """Return the statistics over all rows, and per visit below the key ``visits``."""
        visits = self._visits if len(self._visits) <= MAX_VISITS else []
        found = self._section(self._rows)
        found["visits"] = {name: self._section([row for row in self._rows if row.visit == name]) for name in visits}
        self._give_intervals()
        return found

    def _section(self, rows: Sequence[Row]) -> dict[str, Any]:
        by_metric: dict[str, list[Row]] = {}
        cells: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            by_metric.setdefault(row.metric, []).append(row)
            cells.setdefault((row.label, row.metric), []).append(row)
        of_labels = {label for label, _ in cells}
        return {
            "labels": {
                label: {metric: self._statistics(cells.get((label, metric), [])) for metric in self._metrics}
                for label in self._labels
                if label in of_labels
            },
            "macro": {metric: self._macro(by_metric.get(metric, [])) for metric in self._metrics},
            "micro": {metric: self._statistics(by_metric.get(metric, [])) for metric in self._metrics},
        }

    def _statistics(self, rows: Sequence[Row]) -> dict[str, Any]:
        defined = [row for row in rows if row.value is not None]
        counted = Counter(row.status for row in rows)
        result: dict[str, Any] = {
            "n": len(rows),
            "n_by_status": {status: counted[status] for status in STATUSES},
            "n_defined": len(defined),
            "n_patients": len({row.cluster for row in defined}),
            "n_units": 0,
        }
        result |= dict.fromkeys(("mean", "std", "median", "q1", "q3", "ci_low", "ci_high"))
        if defined:
            nested = nest(defined, self._levels, self._patients)
            units = nested.values
            quartiles = [_rounded(np.quantile(units, share)) for share in (0.5, 0.25, 0.75)]
            spread = _rounded(np.std(units, ddof=1)) if len(units) > 1 else None
            result |= {"n_units": len(units), "mean": _rounded(nested.mean), "std": spread}
            result |= dict(zip(("median", "q1", "q3"), quartiles, strict=True))
            self._wait(result, nested)
        return result

    def _macro(self, rows: Sequence[Row]) -> dict[str, Any]:
        defined = [row for row in rows if row.value is not None]
        result: dict[str, Any] = {
            "n_labels": len({row.label for row in defined}),
            "n_patients": len({row.cluster for row in defined}),
            "mean": None,
            "ci_low": None,
            "ci_high": None,
        }
        if defined:
            below = [level for level in self._levels if level != "label"]
            nested = nest(defined, [*below, "label"], self._patients)
            result["mean"] = _rounded(nested.mean)
            self._wait(result, nested)
        return result

    def _wait(self, statistics: dict[str, Any], nested: NestedMean) -> None:
        """Let statistics wait for their interval, which many get at once."""
        self._waiting.append((statistics, nested))
        if sum(waiting.sums.shape[1] for _, waiting in self._waiting) > COLUMNS_AT_A_TIME:
            self._give_intervals()

    def _give_intervals(self) -> None:
        if not self._waiting:
            return
        nested_means = [nested for _, nested in self._waiting]
        sums = np.concatenate([nested.sums for nested in nested_means], axis=1)
        counts = np.concatenate([nested.counts for nested in nested_means], axis=1)
        ends = np.cumsum([nested.sums.shape[1] for nested in nested_means])
        means = np.empty((self._draws, len(nested_means)))
        for draws, of_groups in group_means(sums, counts, self._draws, self._seed):
            for column, (nested, part) in enumerate(zip(nested_means, np.split(of_groups, ends[:-1], 1), strict=True)):
                means[draws, column] = nested.of_cohorts(part)
        for column, (statistics, _) in enumerate(self._waiting):
            low, high = percentile_interval(means[:, column], LEVEL)
            statistics["ci_low"], statistics["ci_high"] = _rounded(low), _rounded(high)
        self._waiting = []


def _rounded(value: float | np.floating) -> float:
    """Round to 12 digits: beyond them a matrix product depends on the processor."""
    return float(f"{value:.12g}")


def _unnamed(rows: Sequence[Row], levels: Sequence[str]) -> Iterator[str]:
    """Warn of cases without a name of a level: together they count as one unit of it."""
    for level in levels:
        if level in ("visit", "fold", "run"):
            cases = {(row.case, row.run): getattr(row, level) for row in rows}
            without = sum(not name for name in cases.values())
            if without:
                told = f"{without} of {len(cases)} cases name no {level}"
                yield f"mean_of {level}: {told} and count as one {level} together"


def _warnings(rows: Sequence[Row]) -> list[str]:
    found = [cohort_warning(len({row.cluster for row in rows}))]
    if not all(row.patient for row in rows):
        found.append("cases without a patient count as patients of their own")
    visits = _visits(rows)
    if len(visits) > MAX_VISITS:
        found.append(f"{len(visits)} different visits: no means per visit, which are given of up to {MAX_VISITS}")
    first, statuses = rows[0].metric, {row.label: Counter[str]() for row in rows}
    for row in rows:
        if row.metric == first:
            statuses[row.label][row.status] += 1
    for label, counted in statuses.items():
        told = ", ".join(f"{counted[name]} {name}" for name in STATUSES if name != "ok" and counted[name])
        if told:
            found.append(f"{label}: {told} of {counted.total()} cases")
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
