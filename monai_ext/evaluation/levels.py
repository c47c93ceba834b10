"""Means of means, level by level as a protocol defines them, with every level named.

A protocol averages a case's value over visits, then over patients (4D-Lung); over frames, then videos
(CVC-ClinicDB, where frames are the cases and the video is the patient); over scans, then classes, then folds
(few-shot). :class:`NestedMean` is that mean for any sequence of columns of ``metrics.csv``, and the mean of
resampled cohorts of patients beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_ext.errors import UserError
from monai_ext.evaluation.bootstrap import patient_sums
from monai_ext.evaluation.table import Row

PLURALS = {
    "case": "cases",
    "visit": "visits",
    "patient": "patients",
    "label": "labels",
    "fold": "folds",
    "run": "runs",
}
LEVELS = tuple(PLURALS)
DEFAULT_LEVELS = ("case",)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def parse_levels(mean_of: str | Sequence[str]) -> tuple[str, ...]:
    """Read the levels of a mean, finest first: ``"visit,patient"`` or ``["visit", "patient"]``.

    Returns:
        The levels that are averaged over, from the case on: ``("case", "visit", "patient")``.

    Raises:
        UserError: where a level is unknown or named twice.
    """
    named = mean_of.split(",") if isinstance(mean_of, str) else list(mean_of)
    levels = [name.strip() for name in named if name.strip()]
    for name in levels:
        if name not in LEVELS:
            raise UserError(f"--mean_of {name}: there is no such level; choose from {', '.join(LEVELS)}")
        if levels.count(name) > 1:
            raise UserError(f"--mean_of names {name} twice; name each level once, the finest first")
    return tuple(levels) if levels[:1] == ["case"] else ("case", *levels)


def describe_levels(levels: Sequence[str]) -> str:
    """Say in words what is averaged: ``cases -> visits -> patients``."""
    return " -> ".join(PLURALS[level] for level in levels)


def refuse_empty_levels(levels: Sequence[str], cases: Iterable[Mapping[str, object]]) -> None:
    """Refuse a level that no case names.

    Args:
        levels: of a mean.
        cases: what is known of each case, by level; a level that is not in it is not checked.

    Raises:
        UserError: where a level is empty throughout.
    """
    empty = set(levels)
    for case in cases:
        empty -= {level for level in empty if case.get(level, True)}
    for level in levels:
        if level in empty:
            raise UserError(
                f"--mean_of {level}: no case has a {level}; add it to the cases of the data list or leave it out"
            )


def place(row: Row) -> tuple[str, ...]:
    """Return what rows are sorted by, so that no sum depends on the order in which they come."""
    return (row.cluster, row.case, row.run, row.label, row.visit, row.fold, repr(row.value))


@dataclass(frozen=True)
class NestedMean:
    """A mean of means over one set of values.

    Attributes:
        values: [U] means of the units of the last level, which the final mean is of.
        sums: [patients, G] sum of each patient's values in each group that may hold several patients.
        counts: [patients, G] how many they are.
        parents: each [groups of a level] -> number of the group of the next one; the last has the groups' sole
            parent, 0. Empty where one group holds all patients.
    """

    values: Floats
    sums: Floats
    counts: Floats
    parents: tuple[Integers, ...]

    @property
    def mean(self) -> float:
        """The mean over the units of the last level."""
        return float(np.mean(self.values))

    def of_cohorts(self, means: Floats) -> Floats:
        """Return the mean of each resampled cohort, [draws].

        A patient drawn twice counts as two; a fold, label, visit or run counts once, or not at all where the
        cohort holds no value of it.

        Args:
            means: [draws, G] of the groups, NaN where a cohort holds no value.
        """
        for parent in self.parents:
            means = _mean_by(means, parent)
        return means[:, 0]


def nest(rows: Sequence[Row], levels: Sequence[str], patients: dict[str, int]) -> NestedMean:
    """Average rows level by level.

    Args:
        rows: that have a value, at least one, sorted by :func:`place`.
        levels: from :func:`parse_levels`, finest first. A unit is what all coarser levels name together: with
            ``("case", "visit", "patient")`` the visits of one patient.
        patients: number of each patient of the whole table, by :attr:`Row.cluster`.

    Returns:
        The nested mean. What a unit of one patient holds is averaged before the patients are resampled.
    """
    values = np.array([row.value for row in rows], dtype=np.float64)
    of_patient = np.array([patients[row.cluster] for row in rows], dtype=np.int64)
    grouping = list(levels[1:])
    keys = np.array([[_name(row, level) for level in grouping] for row in rows], dtype=object).reshape(len(rows), -1)
    codes = np.stack([_codes(column) for column in keys.T], axis=1) if grouping else np.zeros((len(rows), 0), int)

    while grouping and {"case", "patient"} & set(grouping):  # units that lie within one patient
        _, first, values = _average(codes, values)
        codes, of_patient, grouping = codes[first, 1:], of_patient[first], grouping[1:]
    if not grouping:
        sums, counts = patient_sums(values, of_patient, np.zeros(len(values), np.int64), len(patients))
        return NestedMean(values, sums, counts, ())

    group, first, units = _average(codes, values)
    sums, counts = patient_sums(values, of_patient, group, len(patients))
    parents = []
    codes = codes[first, 1:]
    for _ in grouping[1:]:
        group, first, units = _average(codes, units)
        parents.append(group)
        codes = codes[first, 1:]
    return NestedMean(units, sums, counts, (*parents, np.zeros(len(units), np.int64)))


def _name(row: Row, level: str) -> str:
    return row.cluster if level == "patient" else getattr(row, level)


def _codes(column: NDArray[np.object_]) -> Integers:
    """Number the names of a column in sorted order."""
    order = {name: number for number, name in enumerate(sorted(set(column)))}
    return np.array([order[name] for name in column], dtype=np.int64)


def _average(codes: Integers, values: Floats) -> tuple[Integers, Integers, Floats]:
    """Average the values of each unit, a unit being a distinct row of ``codes``.

    Returns:
        The unit of each value, the position of each unit's first value, and the units' means.
    """
    _, first, unit = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    unit = unit.reshape(-1)
    return unit, first, np.bincount(unit, values) / np.bincount(unit)


def _mean_by(means: Floats, parent: Integers) -> Floats:
    """Average columns [draws, groups] to [draws, parents], leaving out what is NaN."""
    held = ~np.isnan(means)
    member = np.zeros((len(parent), int(parent.max()) + 1))
    member[np.arange(len(parent)), parent] = 1.0
    with np.errstate(invalid="ignore"):
        return (np.where(held, means, 0.0) @ member) / (held @ member)
