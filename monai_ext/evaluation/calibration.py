"""Does what a method says of its masks find the failures? Calibrated on one run, measured on another.

    python -m monai_ext.evaluation.calibration TEST --on VALIDATION --output_dir OUT
    python -m monai_ext.evaluation.calibration TEST --on VALIDATION --datalist LIST.json --output_dir OUT

TEST and VALIDATION are output folders of runs on frozen episodes (``episodes.csv``), or, with the data list, of runs on
cases (``review_features.csv`` and ``masks/``). Each feature by itself, and the sets that ``--set`` names, are turned
into the chance of a Dice of 0.7 or more by the logistic regression of :mod:`monai_ext.evaluation.review`, fitted on
VALIDATION. On TEST are measured: Spearman's rank correlation of that chance and Dice, its AUROC for a Dice below 0.7,
the expected calibration error (ECE; Naeini et al. 2015), and the AUROC less that of the feature that ``--against``
names; each with a 95 % interval over patients (cluster bootstrap). Written are ``calibration.csv``,
``reliability.csv`` and ``reliability.png``, and of each set ``review_SET.json``, which an inference takes as
``--review`` for its ``review.csv``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from monai_ext.data.episode_outcomes import read_outcomes
from monai_ext.data.manifest import load_datalist
from monai_ext.data.text import read_json
from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.bootstrap import cohort_warning, percentile_interval, resampled
from monai_ext.evaluation.calibrate_review import LEAST_SHARE, SliceOfRun, read_run
from monai_ext.evaluation.curves import COLOURS
from monai_ext.evaluation.episodes import EPISODES
from monai_ext.evaluation.review import GOOD_DICE, Calibration, auroc, calibrate, calibration_text
from monai_ext.evaluation.summary import layout
from monai_ext.evaluation.table import write_table, write_text
from monai_ext.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 2000
BINS = 10
SETS = {
    "draws": ("agreement", "entropy", "variance_ratio"),
    "views": ("view_agreement", "view_entropy", "view_variance_ratio"),
    "single": ("certainty", "predicted_iou"),
}
"""Sets of features that are fitted together where a run has them: of ProSAM's draws, of test-time augmentation, and of
the one mask that any SAM gives."""

MAKERS = ("prompts", "sam")
"""Entries of a run's summary that tell what made its features."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One row of ``calibration.csv``: a score on the test run, each number with the ends of its 95 % interval.

    Attributes:
        score: a feature, or a set of them.
        n: masks.
        patients: of these.
        bad: share of the masks with a Dice below 0.7.
        spearman: of score and Dice.
        auroc: chance that a mask below 0.7 has the lower score.
        ece: mean distance of the score and the share of good masks, over bins of as many masks.
        gain: AUROC less that of the score that is compared with.
    """

    score: str
    n: int
    patients: int
    bad: float
    spearman: float
    spearman_low: float
    spearman_high: float
    auroc: float
    auroc_low: float
    auroc_high: float
    ece: float
    ece_low: float
    ece_high: float
    gain: float
    gain_low: float
    gain_high: float


def read_masks(folder: Path, datalist: Path | None = None, data_root: str | None = None) -> list[SliceOfRun]:
    """Read features and Dice of the masks of a run: episodes, or with a data list the slices of its cases.

    Raises:
        UserError: it has neither.
    """
    if (folder / EPISODES).is_file():
        return [SliceOfRun(one.patient, one.features, one.dice) for one in read_outcomes(folder / EPISODES)]
    if datalist is None:
        raise UserError(f"{folder} has no {EPISODES}: for a run on cases give the data list with --datalist.")
    return read_run(folder, load_datalist(datalist, data_root))


def fit_scores(masks: Sequence[SliceOfRun], sets: dict[str, Sequence[str]], on: str) -> dict[str, Calibration]:
    """Fit a calibration of each feature by itself and of each set, on the masks of a validation run.

    A set of which the run lacks a feature is left out, as is a feature that is the same for all masks.

    Raises:
        UserError: all masks are good, or none is.
    """
    names = sorted({name for mask in masks for name, value in mask.features.items() if value is not None})
    wanted = {**{name: (name,) for name in names}, **{name: of for name, of in sets.items() if set(of) <= set(names)}}
    dice = [mask.dice for mask in masks]
    fitted = {}
    for score, of in wanted.items():
        known = [{name: mask.features.get(name) for name in of} for mask in masks]
        if len({tuple(one.values()) for one in known}) > 1:
            fitted[score] = calibrate(known, dice, on)
    return fitted


def measure_scores(
    masks: Sequence[SliceOfRun], calibrations: dict[str, Calibration], against: str, draws: int = DRAWS, seed: int = 0
) -> list[Measured]:
    """Measure each score on the masks of a test run; see :class:`Measured`.

    Args:
        masks: with their Dice.
        calibrations: of each score.
        against: the score whose AUROC is taken from each.
        draws: resampled cohorts of patients.
        seed: of the bootstrap.

    Raises:
        UserError: there is no such score, or all masks are good or none is.
    """
    if against not in calibrations:
        raise UserError(f"--against {against} is none of the scores: they are {', '.join(calibrations)}.")
    dice = np.array([mask.dice for mask in masks])
    good = dice >= GOOD_DICE
    if good.all() or not good.any():
        raise UserError(f"{int(good.sum())} of {len(good)} masks of the test run have a Dice of {GOOD_DICE} or more.")
    patients, numbers = np.unique([mask.patient for mask in masks], return_inverse=True)
    weights = np.concatenate(list(resampled(len(patients), draws, seed))).astype(int)
    cohorts = [np.arange(len(masks)), *(np.repeat(np.arange(len(masks)), drawn[numbers]) for drawn in weights)]
    scores = {name: np.array([c.score(mask.features) for mask in masks]) for name, c in calibrations.items()}
    measures: tuple[Callable[[Floats, Floats], float], ...] = (_spearman, _auroc, expected_error)
    found = {
        name: [np.array([of(values[rows], dice[rows]) for rows in cohorts]) for of in measures]
        for name, values in scores.items()
    }
    reference = found[against][1]
    return [
        Measured(
            name,
            len(masks),
            len(patients),
            float((~good).mean()),
            *(number for values in (*of, of[1] - reference) for number in _told(values)),
        )
        for name, of in found.items()
    ]


def known_scores(calibrations: dict[str, Calibration], masks: Sequence[SliceOfRun]) -> dict[str, Calibration]:
    """Leave out the scores of which a run lacks a feature, such as those of views that it did not make."""
    known = {name for mask in masks for name, value in mask.features.items() if value is not None}
    return {score: one for score, one in calibrations.items() if set(one.names) <= known}


def expected_error(scores: Floats, dice: Floats) -> float:
    """Return the expected calibration error of scores that claim to be the chance of a good Dice."""
    return float(sum(abs(claimed - found) * n for claimed, found, n in reliability(scores, dice)) / len(scores))


def reliability(scores: Floats, dice: Floats, bins: int = BINS) -> list[tuple[float, float, int]]:
    """Sort masks by score into bins of as many, and return mean score, share of good masks and number of each."""
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(float(scores[p].mean()), float((dice[p] >= GOOD_DICE).mean()), len(p)) for p in parts]


def draw_reliability(curves: dict[str, list[tuple[float, float, int]]]) -> Figure:
    """Draw the share of good masks over the score, a line a score; on the diagonal a score keeps its promise."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(
            [c for c, _, _ in curve], [f for _, f, _ in curve], marker="o", markersize=4, color=colour, label=name
        )
    axis.set_xlabel(f"score: claimed chance of a Dice of {GOOD_DICE} or more")
    axis.set_ylabel("share of masks that have it")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrate on one run and measure on another, as the command line says."""
    report_user_errors()
    parser = argparse.ArgumentParser(prog="python -m monai_ext.evaluation.calibration", description=__doc__)
    parser.add_argument("test", type=Path, help="output folder of the run that is measured")
    parser.add_argument("--on", required=True, type=Path, help="output folder of the validation run")
    parser.add_argument("--output_dir", required=True, type=Path, help="where tables and figure are written")
    parser.add_argument("--datalist", type=Path, help="for runs on cases: their data list, with labels")
    parser.add_argument("--validation_datalist", type=Path, help="that of the validation run, if it is another")
    parser.add_argument("--data_root", help="folder that relative paths of the lists refer to")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=FEATURE,...", help="more features together")
    parser.add_argument("--against", default="predicted_iou", help="score that the others are compared with")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"resampled cohorts of patients (default: {DRAWS})")
    given = parser.parse_args(arguments)
    if given.draws < 1:
        raise UserError(f"--draws is {given.draws}: give 1 or more.")
    validation = read_masks(given.on, given.validation_datalist or given.datalist, given.data_root)
    test = read_masks(given.test, given.datalist, given.data_root)
    both = {mask.patient for mask in validation} & {mask.patient for mask in test}
    if both:
        raise UserError(
            f"patient {min(both)} is in both runs: calibrate on other patients than those that are measured."
        )
    sets: dict[str, Sequence[str]] = {**SETS, **dict(_parse_set(text) for text in given.set)}
    patients = ", ".join(sorted({mask.patient for mask in validation}))
    made_by = read_makers(given.on)
    fitted = {
        name: replace(one, made_by=made_by)
        for name, one in fit_scores(validation, sets, f"{len(validation)} masks of {patients}").items()
    }
    calibrations = known_scores(fitted, test)
    measured = measure_scores(test, calibrations, given.against, given.draws)
    dice = np.array([mask.dice for mask in test])
    shown = [name for name in calibrations if name in sets] or list(calibrations)
    curves = {
        name: reliability(np.array([calibrations[name].score(mask.features) for mask in test]), dice) for name in shown
    }
    _write(given.output_dir, measured, curves, {name: calibrations[name] for name in shown if name in sets})
    print(measured_text(measured, given.against))
    if lacking := sorted(set(fitted) - set(calibrations)):
        print(f"left out, as the test run lacks their features: {', '.join(lacking)}")
    for warning in measured_warnings(measured[0]):
        print(warning)


def read_makers(folder: Path) -> dict[str, str]:
    """Return which learned prompts and SAM a run on episodes had, as its ``summary.json`` says; {}: it does not say."""
    path = folder / "summary.json"
    told = read_json(path) if path.is_file() else {}
    return {key: told[key] for key in MAKERS if isinstance(told.get(key), str)}


def measured_text(measured: Sequence[Measured], against: str) -> str:
    """Lay the rows out, the highest AUROC first."""
    lines: list[tuple[str, ...]] = [("score", "Spearman", "AUROC", "ECE", f"AUROC less that of {against}")]
    for row in sorted(measured, key=lambda row: -row.auroc):
        values = astuple(row)[4:]
        cells = [_cell(*values[k : k + 3]) for k in range(0, len(values), 3)]
        lines.append((row.score, *cells))
    first = measured[0]
    return f"{first.n} masks of {first.patients} patients, {first.bad:.0%} below {GOOD_DICE}\n" + layout(lines)


def measured_warnings(first: Measured) -> list[str]:
    """Return sentences on what a run is too small for."""
    warning = cohort_warning(first.patients)
    found = [warning] if warning else []
    rare = round(min(first.bad, 1 - first.bad) * first.n)
    if min(first.bad, 1 - first.bad) < LEAST_SHARE:
        kind = "have" if first.bad > LEAST_SHARE else "lack"
        found.append(f"only {rare} of {first.n} masks {kind} a Dice of {GOOD_DICE}: AUROC and ECE say little")
    return found


def _write(
    folder: Path,
    measured: Sequence[Measured],
    curves: dict[str, list[tuple[float, float, int]]],
    calibrations: dict[str, Calibration],
) -> None:
    columns = [field.name for field in fields(Measured)]
    rows = [[f"{v:.6g}" if isinstance(v, float) else v for v in astuple(row)] for row in measured]
    write_table(folder / "calibration.csv", columns, rows)
    lines = [(name, f"{c:.6g}", f"{f:.6g}", n) for name, curve in curves.items() for c, f, n in curve]
    write_table(folder / "reliability.csv", ("score", "claimed", "found", "n"), lines)
    with atomic_path(folder / "reliability.png") as temporary:
        draw_reliability(curves).savefig(temporary, dpi=120)
    for name, calibration in calibrations.items():
        write_text(folder / f"review_{name}.json", calibration_text(calibration))


def _parse_set(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, features = text.partition("=")
    if not name or not equals or not features:
        raise UserError(f"--set {text!r} is none: give NAME=FEATURE,FEATURE.")
    return name, tuple(features.split(","))


def _spearman(scores: Floats, dice: Floats) -> float:
    if len(np.unique(scores)) < 2 or len(np.unique(dice)) < 2:
        return math.nan
    return float(stats.spearmanr(scores, dice).statistic)


def _auroc(scores: Floats, dice: Floats) -> float:
    return auroc(scores.tolist(), (dice >= GOOD_DICE).tolist())


def _told(values: Floats) -> tuple[float, float, float]:
    """Return the value of all masks, and the interval of the resampled cohorts that have one."""
    drawn = values[1:]
    if np.isnan(drawn).all():
        return float(values[0]), math.nan, math.nan
    return float(values[0]), *percentile_interval(drawn)


def _cell(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
