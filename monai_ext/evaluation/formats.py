"""The same numbers as other programs read them: challengeR, nnU-Net v2 and grand-challenge.org.

``challenger.csv``
    Dice, columns task, algorithm, case, value; ``challenger_hd95.csv`` and ``challenger_nsd.csv`` beside it,
    since a challengeR data set is of one metric. Every label is a task, ``<task>_<label>``. Put the files of
    several algorithms below each other (one header) and load them with ``as.challenge(data, by = "task",
    algorithm = "algorithm", case = "case", value = "value", smallBetter = FALSE, na.treat = "na.rm")``,
    ``smallBetter = TRUE`` for HD95. A structure that neither mask has is ``NA``; repeated runs of a case are
    averaged, as challengeR takes one value a case.
``nnunet_summary.json``
    ``summary.json`` of ``nnUNetv2_evaluate_folder``: per case and label value Dice, IoU, TP, FP, FN, TN,
    n_pred, n_ref; their means over cases; the mean of these over labels. Dice and IoU follow this package's
    policy for undefined values (nnU-Net does not evaluate a missing prediction at all), what is undefined or
    not known is null (nnU-Net writes NaN) and left out of means. Voxel counts need the masks: where only
    ``metrics.csv`` was left they are null. A file that is not known is named by its case.
``metrics.json``
    As evalutils writes it for grand-challenge.org: ``case`` (column -> number of the case -> value) and
    ``aggregates`` (column -> statistic); a leaderboard takes ``aggregates.dice_<label>.mean``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.evaluation.case_metrics import VoxelCounts
from monai_ext.evaluation.table import Row, write_table

CHALLENGER_COLUMNS = ("task", "algorithm", "case", "value")
CHALLENGER_FILES = {"dice": "challenger.csv", "hd95": "challenger_hd95.csv", "nsd": "challenger_nsd.csv"}
NNUNET_METRICS = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")


@dataclass(frozen=True)
class CaseDetail:
    """What formats say of a case beyond ``metrics.csv``.

    Args:
        prediction_file: path of the predicted mask; empty: not known.
        reference_file: path of the reference mask; empty: not known.
        counts: voxel counts of each label.
    """

    prediction_file: str = ""
    reference_file: str = ""
    counts: Mapping[str, VoxelCounts] = field(default_factory=dict)


# A case and its run, as in metrics.csv.
CaseKey = tuple[str, str]


def write_challenger(output_dir: str | Path, rows: Sequence[Row]) -> None:
    """Write ``challenger.csv`` and its siblings, rows of any number of tasks and algorithms.

    A sibling that an earlier run left and that these rows do not give is removed.
    """
    for kind, name in CHALLENGER_FILES.items():
        lines = challenger_lines(rows, kind)
        path = Path(output_dir) / name
        if lines or kind == "dice":
            write_table(path, CHALLENGER_COLUMNS, lines)
        else:
            path.unlink(missing_ok=True)


def challenger_lines(rows: Sequence[Row], kind: str) -> list[tuple[str, str, str, float | str]]:
    """Return the lines of a challengeR data set.

    Args:
        rows: of ``metrics.csv``.
        kind: "dice", "hd95" or "nsd".
    """
    chosen = [row for row in rows if row.metric == kind or row.metric.startswith(f"{kind}_")]
    chosen = [row for row in chosen if row.metric != "dice_slice_mean"]
    units = {row.metric for row in chosen}
    values: dict[tuple[str, str, str], list[float]] = {}
    for row in chosen:
        task = f"{row.task}_{row.label}" + (f"_{row.metric}" if len(units) > 1 else "")
        runs = values.setdefault((task, row.algorithm, row.case), [])
        if row.value is not None:
            runs.append(row.value)
    return [(*key, float(np.mean(runs)) if runs else "NA") for key, runs in values.items()]


def nnunet_summary(
    rows: Sequence[Row],
    label_values: Mapping[str, int] | None = None,
    details: Mapping[CaseKey, CaseDetail] | None = None,
) -> dict[str, Any]:
    """Return what nnU-Net v2 writes into ``summary.json``.

    Args:
        rows: of ``metrics.csv``, one algorithm.
        label_values: value in the masks by name, nnU-Net's keys; None: labels are numbered from 1 in their order.
        details: files and voxel counts by case and run.
    """
    labels = list(dict.fromkeys(row.label for row in rows))
    values = dict(label_values or {})
    keys = {label: str(values.get(label, number)) for number, label in enumerate(labels, start=1)}
    cases: dict[CaseKey, dict[str, dict[str, float | None]]] = {}
    for row in rows:
        if row.metric == "dice":
            detail = (details or {}).get((row.case, row.run), CaseDetail())
            of_case = cases.setdefault((row.case, row.run), {})
            of_case[keys[row.label]] = _nnunet_metrics(row.value, detail.counts.get(row.label))
    mean = {
        key: {
            name: _mean(of_case[key][name] for of_case in cases.values() if key in of_case) for name in NNUNET_METRICS
        }
        for key in keys.values()
    }
    return {
        "foreground_mean": {name: _mean(of_label[name] for of_label in mean.values()) for name in NNUNET_METRICS},
        "mean": mean,
        "metric_per_case": [
            {"metrics": metrics, **_nnunet_files(case, (details or {}).get((case, run), CaseDetail()))}
            for (case, run), metrics in cases.items()
        ],
    }


def grand_challenge_metrics(rows: Sequence[Row], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a grand-challenge.org evaluation writes into ``metrics.json``.

    Args:
        rows: of ``metrics.csv``, one algorithm.
        summary: what :func:`monai_ext.evaluation.summary.summarise` returned for them.
    """
    cells = list(dict.fromkeys((row.label, row.metric) for row in rows))
    names = _column_names(cells)
    numbers = {key: str(number) for number, key in enumerate(dict.fromkeys((row.case, row.run) for row in rows))}
    columns: dict[str, dict[str, Any]] = {"case": {}, "patient": {}, "run": {}}
    columns |= {name: {} for name in names.values()}
    found: dict[str, list[float]] = {name: [] for name in names.values()}
    for row in rows:
        number, name = numbers[row.case, row.run], names[row.label, row.metric]
        columns["case"][number], columns["patient"][number], columns["run"][number] = row.case, row.patient, row.run
        columns[name][number] = row.value
        if row.value is not None:
            found[name].append(row.value)
    aggregates = {
        name: _aggregate(summary["labels"][label][metric], found[name]) for (label, metric), name in names.items()
    }
    for metric, macro in summary["macro"].items():
        aggregates[f"macro_{_plain(metric)}"] = {key: macro[key] for key in ("mean", "ci_low", "ci_high")}
    return {"case": columns, "aggregates": aggregates}


def _nnunet_metrics(dice: float | None, counts: VoxelCounts | None) -> dict[str, float | None]:
    found: dict[str, float | None] = dict.fromkeys(NNUNET_METRICS)
    if dice is not None:
        found |= {"Dice": dice, "IoU": dice / (2.0 - dice)}
    if counts is not None:
        found |= {"TP": counts.tp, "FP": counts.fp, "FN": counts.fn, "TN": counts.tn}
        found |= {"n_pred": counts.tp + counts.fp, "n_ref": counts.tp + counts.fn}
    return found


def _nnunet_files(case: str, detail: CaseDetail) -> dict[str, str]:
    return {"prediction_file": detail.prediction_file or case, "reference_file": detail.reference_file or case}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _aggregate(statistics: Mapping[str, Any], values: Sequence[float]) -> dict[str, Any]:
    """Return evalutils' statistics of a column, ``%`` as ``pc`` as there, and the interval."""
    given = {"count": "n_defined", "mean": "mean", "std": "std", "25pc": "q1", "50pc": "median", "75pc": "q3"}
    aggregate = {name: statistics[key] for name, key in given.items()}
    aggregate |= {"min": min(values, default=None), "max": max(values, default=None)}
    return aggregate | {"ci_low": statistics["ci_low"], "ci_high": statistics["ci_high"]}


def _column_names(cells: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Name a column ``<metric>_<label>``, without dots and blanks: leaderboards look up ``a.b.c``."""
    names: dict[tuple[str, str], str] = {}
    for label, metric in cells:
        name = _plain(f"{metric}_{label}")
        while name in names.values():
            name += "_"
        names[label, metric] = name
    return names


def _plain(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z_-]", "_", name)
