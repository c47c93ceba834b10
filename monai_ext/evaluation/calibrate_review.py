"""Calibrate the review score on a run, or measure it.

    python -m monai_ext.evaluation.calibrate_review VALIDATION_RUN --datalist LIST.json --output review.json
    python -m monai_ext.evaluation.calibrate_review TEST_RUN --datalist LIST.json --calibration review.json
    python -m monai_ext.evaluation.calibrate_review RUN --datalist LIST.json

Reads ``review_features.csv`` and ``masks/`` of the run and the labels of the list. What is measured, over slices and
structures: Spearman's rank correlation of score and Dice, and the AUROC for a Dice below 0.7, each with a 95 % interval
over patients (cluster bootstrap), only where both classes hold a tenth of the slices. The third command measures the
score that is not calibrated. Of a calibration it is also told how it does on patients left out of it, one by one; with
few patients the mean of the features that are shares alone, ``--shares``, can do better than all features.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from monai_ext.data.images import read_geometry, read_label
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.text import read_table
from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.bootstrap import resampled
from monai_ext.evaluation.record import RUN_FILE, read_record
from monai_ext.evaluation.review import (
    FEATURES,
    GOOD_DICE,
    MEAN_OF_SHARES,
    Scorer,
    Uncalibrated,
    auroc,
    calibrate,
    calibration_text,
    read_calibration,
)
from monai_ext.evaluation.table import write_text
from monai_ext.transforms.sam_input import to_display

LEAST_SHARE = 0.1
"""Of slices that each of the two classes must hold for a rank correlation or an AUROC to be told."""

DRAWS = 2000

Key = tuple[str, str, int]


@dataclass(frozen=True)
class SliceOfRun:
    """A structure on a slice of a finished run.

    Attributes:
        patient: whose.
        features: of the method.
        dice: in the plane of the slice, on the grid of the file; 1 where mask and label are both empty.
    """

    patient: str
    features: dict[str, float | None]
    dice: float


def read_run(run: Path, cases: DataList) -> list[SliceOfRun]:
    """Read what a run says of its slices, and their Dice.

    Slices are those that the run has cut, as its ``run.json`` says.

    Raises:
        UserError: the run has no features, has left out or kept masks, or one of its cases has no label or mask.
    """
    features, patients = _read_features(run / FEATURES)
    config = (read_record(run).get("config") or {}) if (run / RUN_FILE).is_file() else {}
    if config.get("abstain"):
        raise UserError(f"{run}: this run has left out masks (--abstain), whose Dice says nothing; run without it.")
    if config.get("keep"):
        raise UserError(f"{run}: masks of this run are partly those of --keep, not the method's; run without it.")
    slice_axis = axis if (axis := config.get("slice_axis")) in ("R", "A", "S") else None
    labels = {case.case: case.label for case in cases.cases}
    volumes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    slices = []
    for (case, label, k), known in features.items():
        if case not in volumes:
            volumes = {case: _volumes(run, case, labels.get(case), slice_axis)}
        found, truth = (volume[..., k] == cases.labels[label] for volume in volumes[case])
        both = int(found.sum() + truth.sum())
        dice = 2 * int((found & truth).sum()) / both if both else 1.0
        slices.append(SliceOfRun(patients[case] or case, known, dice))
    return slices


def measure(
    slices: Sequence[SliceOfRun], scores: Sequence[float], seed: int = 0
) -> dict[str, tuple[float, float, float]] | None:
    """Measure how well scores tell good masks from bad ones.

    Args:
        slices: with their Dice.
        scores: of each.
        seed: of the bootstrap.

    Returns:
        ``spearman`` and ``auroc`` -> value and its 95 % interval over patients; None where one of the two classes
        (Dice below 0.7, and not) holds less than a tenth of the slices.
    """
    dice = np.array([one.dice for one in slices])
    share = float((dice >= GOOD_DICE).mean())
    if not LEAST_SHARE <= share <= 1 - LEAST_SHARE:
        return None
    names, numbers = np.unique([one.patient for one in slices], return_inverse=True)
    values = np.asarray(scores, float)
    measures: Mapping[str, Callable[[np.ndarray], float]] = {
        "spearman": lambda rows: _spearman(values[rows], dice[rows]),
        "auroc": lambda rows: auroc(values[rows].tolist(), (dice[rows] >= GOOD_DICE).tolist()),
    }
    everything = np.arange(len(slices))
    drawn = [weights for block in resampled(len(names), DRAWS, seed) for weights in block.astype(int)]
    cohorts = [np.repeat(everything, weights[numbers]) for weights in drawn]
    return {name: (of(everything), *_interval([of(rows) for rows in cohorts])) for name, of in measures.items()}


def held_out_scores(slices: Sequence[SliceOfRun], names: Sequence[str] | None = None) -> list[float] | None:
    """Score the slices of each patient by a calibration on the others.

    Args:
        slices: of at least two patients.
        names: of the features that count, see :func:`~monai_ext.evaluation.review.calibrate`.

    Returns:
        A score of each slice; None where the others of a patient cannot be calibrated on.
    """
    scores = {}
    for patient in {one.patient for one in slices}:
        others = [one for one in slices if one.patient != patient]
        try:
            fitted = calibrate([one.features for one in others], [one.dice for one in others], "the others", names)
        except UserError:
            return None
        scores.update({n: fitted.score(one.features) for n, one in enumerate(slices) if one.patient == patient})
    return [scores[n] for n in range(len(slices))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrate, or measure, as the command line says."""
    report_user_errors()
    parser = argparse.ArgumentParser(prog="python -m monai_ext.evaluation.calibrate_review", description=__doc__)
    parser.add_argument("run", type=Path, help="output folder of a run with review_features.csv and masks/")
    parser.add_argument("--datalist", required=True, help="the data list, with the labels of the run's cases")
    parser.add_argument("--data_root", help="folder that relative paths of the list refer to")
    parser.add_argument("--output", type=Path, help="calibrate: where the calibration is written")
    parser.add_argument("--calibration", type=Path, help="measure: the calibration")
    parser.add_argument("--without", nargs="+", default=[], help="names of features that are left out")
    parser.add_argument("--shares", action="store_true", help="calibrate on the mean of the features that are shares")
    options = parser.parse_args(arguments)
    names = (MEAN_OF_SHARES,) if options.shares else None
    if options.output is not None and options.calibration is not None:
        raise UserError("give --output to calibrate or --calibration to measure, not both.")
    cases = load_datalist(options.datalist, options.data_root)
    slices = [_without(one, options.without) for one in read_run(options.run, cases)]
    scorer = _scorer(slices, cases.dataset, options.output, options.calibration, names)
    scores = [scorer.score(one.features) for one in slices]
    known = [(one, score) for one, score in zip(slices, scores, strict=True) if score is not None]
    print(f"{len(slices)} slices and structures, {sum(one.dice < GOOD_DICE for one in slices)} below {GOOD_DICE}")
    if scorer.threshold is not None:
        low = [one for one, score in known if score < scorer.threshold]
        print(f"flagged: {len(low)}, of which below {GOOD_DICE}: {sum(one.dice < GOOD_DICE for one in low)}")
    _print_measures("", measure([one for one, _ in known], [score for _, score in known]))
    if options.output is not None:
        held_out = held_out_scores(slices, names)
        _print_measures("patients left out: ", None if held_out is None else measure(slices, held_out))


def _without(one: SliceOfRun, names: Collection[str]) -> SliceOfRun:
    return replace(one, features={name: value for name, value in one.features.items() if name not in names})


def _scorer(
    slices: Sequence[SliceOfRun],
    dataset: str,
    output: Path | None,
    calibration: Path | None,
    names: Sequence[str] | None,
) -> Scorer:
    """Return what turns features into scores: made now and written, read, or not calibrated."""
    if calibration is not None:
        return read_calibration(calibration)
    if output is None:
        return Uncalibrated()
    patients = sorted({one.patient for one in slices})
    on = f"{len(slices)} slices and structures of {dataset}: {', '.join(patients)}"
    fitted = calibrate([one.features for one in slices], [one.dice for one in slices], on, names)
    write_text(output, calibration_text(fitted))
    return fitted


def _print_measures(of: str, found: Mapping[str, tuple[float, float, float]] | None) -> None:
    if found is None:
        print(f"{of}one class holds less than {LEAST_SHARE:.0%} of them: no correlation, no AUROC")
    for name, (value, least, most) in (found or {}).items():
        print(f"{of}{name} {value:.3f} [{least:.3f}, {most:.3f}]")


def _read_features(path: Path) -> tuple[dict[Key, dict[str, float | None]], dict[str, str]]:
    features: dict[Key, dict[str, float | None]] = {}
    patients = {}
    fix = "give the output folder of a finished run."
    header, *lines = read_table(path, fix) or [[]]
    try:
        for line in lines:
            row = dict(zip(header, line, strict=True))
            known = features.setdefault((row["case"], row["label"], int(row["slice"])), {})
            known[row["feature"]] = float(row["value"]) if row["value"] else None
            patients[row["case"]] = row["patient"]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {fix}") from error
    if not features:
        raise UserError(f"{path} has no features: the run's method hands over none.")
    return features, patients


def _volumes(run: Path, case: str, label: Path | str | None, slice_axis: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Mask and label of a case, upright: [H, W, D] each."""
    files = [path for suffix in (".nii.gz", ".png") if (path := run / "masks" / f"{case}{suffix}").is_file()]
    if label is None or not files:
        raise UserError(f"case {case} has no label in the data list, or no mask in {run / 'masks'}: add it.")
    affine = read_geometry(label).affine
    mask, truth = (to_display(read_label(path), affine, slice_axis) for path in (files[0], label))
    return mask, truth


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; NaN where one of both is constant."""
    ranks = [rankdata(one) - (len(one) + 1) / 2 for one in (a, b)]
    norm = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / norm if norm > 0 else math.nan


def _interval(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if not math.isnan(value)]
    least, most = np.percentile(finite or [math.nan], [2.5, 97.5])
    return float(least), float(most)


if __name__ == "__main__":
    main()
