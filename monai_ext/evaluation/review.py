"""How far a mask can be trusted, from what is known without its label: a calibrated score for each structure and slice.

A method hands over named features of each structure and slice (distances, spread, change of area, ...). Logistic
regression on validation cases, whose labels are known, turns them into the chance that the slice's Dice is at least
:data:`GOOD_DICE`. Nothing here knows which method made the features: other methods bring others, and calibrate anew.
Without a calibration masks can still be put in an order, by the features that are shares (:class:`Uncalibrated`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.stats import rankdata

from monai_ext.data.text import read_json
from monai_ext.errors import UserError

Features = Mapping[str, float | None]

REVIEW = "review.csv"
FEATURES = "review_features.csv"
REVIEW_COLUMNS = ("case", "patient", "visit", "label", "slice", "score", "flag", "reason", "method")
FEATURE_COLUMNS = ("case", "patient", "visit", "label", "slice", "feature", "value")

GOOD_DICE = 0.7
METHOD = "logistic regression"
FLAGGED_SHARE = 0.8
"""Share of the validation slices below :data:`GOOD_DICE` that the threshold flags."""


SHARES = {"certainty": 1, "self_check": 1, "cycle": 1, "jump": -1, "shift": -1, "spread": -1}
"""Features in [0, 1] that are good when high (1) or low (-1), whatever made them."""


NOT_SOUGHT = {"reference_absent", "outside_reference"}
"""What is told of a structure on a slice where no reference that serves shows it."""


MEAN_OF_SHARES = "shares"
"""Name of the mean of the :data:`SHARES` as the one feature of a calibration, for few patients."""


class Scorer(Protocol):
    """Turns features into a score.

    Attributes:
        method: how the score was made.
        threshold: scores below it are flagged; None: nothing can be flagged.
    """

    @property
    def method(self) -> str:
        """How the score was made."""

    @property
    def threshold(self) -> float | None:
        """Scores below it are flagged; None: nothing can be flagged."""

    def score(self, features: Features) -> float | None:
        """Return a score in [0, 1], None where nothing is known."""

    def reason(self, features: Features) -> str:
        """Name the feature that lowers the score most, with its value; "" where none does."""


@dataclass(frozen=True)
class Uncalibrated:
    """An order of masks where no calibration is given: the mean of the :data:`SHARES`, low ones taken from 1.

    The score is no chance of anything, and nothing is flagged.
    """

    method: str = "uncalibrated"
    threshold: None = None

    def score(self, features: Features) -> float | None:
        """Return the mean in [0, 1] of the shares that are known; None where none is."""
        known = _shares(features)
        return sum(known.values()) / len(known) if known else None

    def reason(self, features: Features) -> str:
        """Name the worst of the shares, with its value."""
        known = _shares(features)
        worst = min(known, key=lambda name: known[name], default=None)
        return "" if worst is None else f"{worst} {features[worst]:.3g}"


@dataclass(frozen=True)
class Calibration:
    """Turns features into a score.

    Attributes:
        method: how it was made, and on what.
        names: of the features.
        centres: mean of each on the validation slices; a feature that is not known counts as this.
        scales: standard deviation of each there.
        weights: of the standardised features.
        intercept: of the logistic function.
        threshold: scores below it are flagged.
        made_by: what made the features, name -> first digits of the sha256, such as of learned ``prompts`` and their
            ``sam``; empty: not known.
    """

    method: str
    names: tuple[str, ...]
    centres: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    threshold: float
    made_by: Mapping[str, str] = field(default_factory=dict)

    def contributions(self, features: Features) -> dict[str, float]:
        """Return what each feature adds to the score's logit: negative ones speak against the mask."""
        added = {}
        for name, centre, scale, weight in zip(self.names, self.centres, self.scales, self.weights, strict=True):
            value = _value(features, name)
            known = value is not None and math.isfinite(value)
            added[name] = weight * (float(value) - centre) / scale if known and value is not None else 0.0
        return added

    def score(self, features: Features) -> float:
        """Return the chance, in [0, 1], that the slice's Dice is at least :data:`GOOD_DICE`."""
        logit = self.intercept + sum(self.contributions(features).values())
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))

    def reason(self, features: Features) -> str:
        """Name the feature that lowers the score most, with its value; "" where none does."""
        added = self.contributions(features)
        worst = min(added, key=lambda name: added[name], default=None)
        if worst is None or added[worst] >= 0:
            return ""
        return Uncalibrated().reason(features) if worst == MEAN_OF_SHARES else f"{worst} {features[worst]:.3g}"


def calibrate(
    features: Sequence[Features], dice: Sequence[float], on: str, names: Sequence[str] | None = None
) -> Calibration:
    """Fit a calibration by logistic regression with an L2 penalty (C = 1), on standardised features.

    >>> calibrate([{"distance": d} for d in (0.1, 0.2, 0.5, 0.6)], [0.9, 0.8, 0.3, 0.2], "four slices").score(
    ...     {"distance": 0.1}
    ... ) > 0.5
    True

    Args:
        features: of each slice and structure.
        dice: of each, in [0, 1].
        on: what they are of, for ``method``.
        names: of the features that count, :data:`MEAN_OF_SHARES` among them; None: all of ``features``.

    Raises:
        UserError: all or none of them are good, so that there is nothing to tell apart.
    """
    from sklearn.linear_model import LogisticRegression  # here, since only calibrating needs it

    good = np.asarray(dice, float) >= GOOD_DICE
    if good.all() or not good.any():
        raise UserError(
            f"{int(good.sum())} of {len(good)} validation slices have a Dice of {GOOD_DICE} or more: calibration needs "
            "slices above and below it; add cases to the validation run."
        )
    if names is None:
        names = sorted({name for one in features for name, value in one.items() if value is not None})
    table = np.array([[_number(_value(one, name)) for name in names] for one in features], float)
    centres, scales = np.nanmean(table, axis=0), np.nanstd(table, axis=0)
    scales = np.where(scales > 0, scales, 1.0)
    standard = np.nan_to_num((table - centres) / scales)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(standard, good)
    scores = fitted.predict_proba(standard)[:, 1]
    threshold = float(np.quantile(scores[~good], FLAGGED_SHARE))
    return Calibration(
        method=f"{METHOD} on {on}",
        names=tuple(names),
        centres=tuple(centres.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(fitted.coef_[0].tolist()),
        intercept=float(fitted.intercept_[0]),
        threshold=threshold,
    )


def read_calibration(path: str | Path) -> Calibration:
    """Read what :func:`calibration_text` has written.

    Raises:
        UserError: the file is missing or is no calibration.
    """
    try:
        content = read_json(Path(path))
        tuples = {key: tuple(content[key]) for key in ("names", "centres", "scales", "weights")}
        calibration = Calibration(
            str(content["method"]),
            intercept=float(content["intercept"]),
            threshold=float(content["threshold"]),
            made_by={str(key): str(value) for key, value in dict(content.get("made_by", {})).items()},
            **tuples,
        )
        calibration.score(dict.fromkeys(calibration.names, 0.0))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is no calibration of the review score ({error}): make one with "
            "python -m monai_ext.evaluation.calibrate_review, or leave --review out."
        ) from error
    return calibration


def calibration_text(calibration: Calibration) -> str:
    """Return the JSON text of a calibration."""
    return json.dumps(asdict(calibration), indent=1) + "\n"


def auroc(scores: Sequence[float], good: Sequence[bool]) -> float:
    """Chance that a good mask has the higher score than a bad one, ties counting half; NaN where a class is empty."""
    values, kind = np.asarray(scores, float), np.asarray(good, bool)
    goods, pairs = int(kind.sum()), int(kind.sum()) * int((~kind).sum())
    won = rankdata(values)[kind].sum() - goods * (goods + 1) / 2
    return float(won / pairs) if pairs else math.nan


def worst_first(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Sort the rows of ``review.csv`` by score, rows of equal scores as they come."""
    column = REVIEW_COLUMNS.index("score")
    return sorted((list(row) for row in rows), key=lambda row: float(row[column]))


def review_rows(
    names: Sequence[str],
    slices: Sequence[tuple[str, int, Features]],
    scorer: Scorer,
    missing: Mapping[str, str] | None = None,
) -> list[list[str]]:
    """Return a case's rows of ``review.csv``: of its slices, of each structure and of the case.

    A structure's score is the mean of its slices', the case's the lowest of its structures; that of a structure without
    any mask is 0, since it may have been missed. ``slice`` is empty for a structure, ``label`` too for the case;
    ``flag`` where the scorer has no threshold. Masks of which nothing is known have no row.

    Args:
        names: of the case: ``case, patient, visit``.
        slices: label, slice and features of each mask that was made.
        scorer: turns features into scores.
        missing: structures without a mask on any slice -> reason.
    """
    rows, scores = [], dict[str, dict[int, float]]()
    for label, k, features in slices:
        score = scorer.score(features)
        if score is not None:
            scores.setdefault(label, {})[k] = score
            rows.append(_row(names, label, str(k), score, scorer, scorer.reason(features)))
    means = {label: sum(own.values()) / len(own) for label, own in scores.items()}
    means.update(dict.fromkeys(missing or {}, 0.0))
    for label, mean in means.items():
        reason = missing[label] if missing and label in missing else _reason_of_structure(scores[label], scorer)
        rows.append(_row(names, label, "", mean, scorer, reason))
    if means:
        lowest = min(means, key=lambda label: means[label])
        rows.append(_row(names, "", "", means[lowest], scorer, f"lowest: {lowest}"))
    return rows


def missing_structures(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the structures of which a method has no mask on any slice, and why.

    >>> missing_structures([{"label": "LV", "status": "no_foreground"}, {"label": "RV", "status": "ok"}])
    {'LV': 'found on no slice'}

    Args:
        rows: of a case's details, with ``status`` as in :class:`monai_ext.inferers.reference_inferer.SliceResult`; of
            structures with another status nothing is said.
    """
    told: dict[str, set[Any]] = {}
    for row in rows:
        told.setdefault(row["label"], set()).add(row.get("status"))
    missing = {}
    for label, statuses in told.items():
        if statuses <= NOT_SOUGHT:
            missing[label] = "sought on no slice"
        elif statuses <= {*NOT_SOUGHT, "no_foreground"}:
            missing[label] = "found on no slice"
    return missing


def _reason_of_structure(scores: Mapping[int, float], scorer: Scorer) -> str:
    if scorer.threshold is None:
        return f"lowest: slice {min(scores, key=lambda k: scores[k])}"
    return f"{sum(score < scorer.threshold for score in scores.values())} of {len(scores)} slices flagged"


def _row(names: Sequence[str], label: str, k: str, score: float, scorer: Scorer, reason: str) -> list[str]:
    flag = "" if scorer.threshold is None else str(int(score < scorer.threshold))
    return [*names, label, k, f"{score:.4f}", flag, reason, scorer.method]


def _value(features: Features, name: str) -> float | None:
    return Uncalibrated().score(features) if name == MEAN_OF_SHARES else features.get(name)


def _shares(features: Features) -> dict[str, float]:
    """Return the :data:`SHARES` that are known, so that 1 is good."""
    known = {name: features.get(name) for name in SHARES}
    return {
        name: value if SHARES[name] > 0 else 1 - value
        for name, value in known.items()
        if value is not None and math.isfinite(value)
    }


def _number(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else float(value)
