"""Results over frozen episodes: class-wise mIoU, FB-IoU and Dice per case, with intervals over patients.

Both IoU pool intersections and unions over all episodes before they divide (Shaban et al. 2017; Rakelly et al. 2018).
The Dice of a case pools its episodes of one class; the mean is over cases, then over classes. Intervals resample the
queries' patients. ``metrics.csv`` has the Dice per case for :mod:`monai_ext.evaluation.compare`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.episode_outcomes import EpisodeOutcome, write_outcomes
from monai_ext.evaluation.bootstrap import DRAWS, cohort_warning, percentile_interval, resampled
from monai_ext.evaluation.summary import layout, write_summary
from monai_ext.evaluation.table import Row, write_rows

EPISODES = "episodes.csv"
Floats = NDArray[np.float64]


def summarise_episodes(outcomes: Sequence[EpisodeOutcome], draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Return ``miou``, ``fb_iou`` and ``dice`` with their 95 % intervals, those of each class, and how many there are.

    Args:
        outcomes: of one method.
        draws: resampled cohorts of patients.
        seed: of the bootstrap.
    """
    patients = sorted({one.patient for one in outcomes})
    classes = sorted({one.episode.name for one in outcomes})
    counts, dice, cases = _tables(outcomes, patients, classes)
    weights = np.concatenate(list(resampled(len(patients), draws, seed)))
    whole = np.ones((1, len(patients)))
    values: dict[str, Any] = {}
    for name, of in (("miou", _miou), ("fb_iou", _fb_iou)):
        values[name] = _with_interval(of(whole, counts)[0], of(weights, counts))
    values["dice"] = _with_interval(_mean_dice(whole, dice, cases)[0], _mean_dice(weights, dice, cases))
    values["classes"] = {
        name: {
            "iou": _with_interval(_class_iou(whole, counts)[0, k], _class_iou(weights, counts)[:, k]),
            "dice": _with_interval(_class_dice(whole, dice, cases)[0, k], _class_dice(weights, dice, cases)[:, k]),
            "episodes": sum(one.episode.name == name for one in outcomes),
        }
        for k, name in enumerate(classes)
    }
    warning = cohort_warning(len(patients))
    return {
        **values,
        "episodes": len(outcomes),
        "patients": len(patients),
        "draws": draws,
        "seed": seed,
        "warnings": [warning] if warning else [],
    }


def case_rows(outcomes: Sequence[EpisodeOutcome], algorithm: str, run: str = "") -> list[Row]:
    """Return the Dice of each case and class as rows of ``metrics.csv``."""
    sums: dict[tuple[str, str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for one in outcomes:
        place = one.episode.query
        for k, count in enumerate(one.counts):
            sums[place.dataset, place.case, one.patient, one.episode.name][k] += count
    rows = []
    for (dataset, case, patient, name), (tp, fp, fn, _) in sorted(sums.items()):
        told = Row(dataset, algorithm, case, patient, "", "frozen episodes", "", run, name, "dice", None, "both_empty")
        whole = 2 * tp + fp + fn
        if whole:
            status = "ok" if tp + fp and tp + fn else "ref_empty" if tp + fp else "pred_empty"
            told = Row(**{**told.__dict__, "value": 2 * tp / whole, "status": status})
        rows.append(told)
    return rows


def report_episodes(folder: str | Path, outcomes: Sequence[EpisodeOutcome], algorithm: str, **notes: Any) -> None:
    """Write ``episodes.csv``, ``metrics.csv`` and ``summary.json``, and print the means.

    Args:
        folder: of the run.
        outcomes: of its method.
        algorithm: its name.
        notes: what else the summary says, such as weights and annotation.
    """
    summary = summarise_episodes(outcomes)
    write_outcomes(Path(folder) / EPISODES, outcomes)
    write_rows(Path(folder) / "metrics.csv", case_rows(outcomes, algorithm))
    write_summary(Path(folder) / "summary.json", {"algorithm": algorithm, **notes, **summary})
    lines = [("", "IoU", "Dice", "episodes")]
    lines += [
        (name, _told(of["iou"]), _told(of["dice"]), str(of["episodes"])) for name, of in summary["classes"].items()
    ]
    lines += [("mean", _told(summary["miou"]), _told(summary["dice"]), str(len(outcomes)))]
    print(layout(lines))
    print(f"FB-IoU {_told(summary['fb_iou'])}; {summary['patients']} patients")


def _tables(
    outcomes: Sequence[EpisodeOutcome], patients: Sequence[str], classes: Sequence[str]
) -> tuple[Floats, Floats, Floats]:
    """Return pixel counts [P, L, 4] and, of the cases, the sums of their Dice and their number, each [P, L]."""
    counts = np.zeros((len(patients), len(classes), 4))
    for one in outcomes:
        counts[patients.index(one.patient), classes.index(one.episode.name)] += one.counts
    dice, cases = np.zeros(counts.shape[:2]), np.zeros(counts.shape[:2])
    for row in case_rows(outcomes, ""):
        if row.value is not None:
            place = patients.index(row.patient), classes.index(row.label)
            dice[place] += row.value
            cases[place] += 1
    return counts, dice, cases


def _class_iou(weights: Floats, counts: Floats) -> Floats:
    """Return [draws, L]; NaN where a cohort has no episode of a class."""
    tp, fp, fn, _ = np.moveaxis(np.einsum("dp,plc->dlc", weights, counts), -1, 0)
    return _ratio(tp, tp + fp + fn)


def _miou(weights: Floats, counts: Floats) -> Floats:
    return np.nanmean(_class_iou(weights, counts), axis=1)


def _fb_iou(weights: Floats, counts: Floats) -> Floats:
    tp, fp, fn, tn = (weights @ counts.sum(axis=1)).T
    return (_ratio(tp, tp + fp + fn) + _ratio(tn, tn + fp + fn)) / 2


def _class_dice(weights: Floats, dice: Floats, cases: Floats) -> Floats:
    return _ratio(weights @ dice, weights @ cases)


def _mean_dice(weights: Floats, dice: Floats, cases: Floats) -> Floats:
    return np.nanmean(_class_dice(weights, dice, cases), axis=1)


def _ratio(common: Floats, whole: Floats) -> Floats:
    return np.divide(common, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _with_interval(value: float, drawn: Floats) -> dict[str, float]:
    low, high = percentile_interval(drawn)
    return {key: float(f"{number:.12g}") for key, number in (("mean", value), ("low", low), ("high", high))}


def _told(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
