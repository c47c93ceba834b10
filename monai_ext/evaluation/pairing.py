"""Several ``metrics.csv`` laid side by side: the same cases, each measured for every method.

Tables of different cases are refused: their means would differ whatever the methods do. What has no value in one of
the methods compared (status ``both_empty``) is left out for all of them, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_ext.errors import UserError
from monai_ext.evaluation.statistics import Floats
from monai_ext.evaluation.table import Row, read_rows

MACRO = "macro"

# What a row is about: task, case, run, label. Methods are paired where it is the same.
Key = tuple[str, str, str, str]
Table = dict[Key, Row]

# Whether the reference has the label, by status; that of a missing or failed prediction does not tell.
_IN_REFERENCE = {"ok": True, "pred_empty": True, "ref_empty": False, "both_empty": False}

_DIRECTIONS = (
    (("dice", "nsd_", "iou", "miou", "fb_iou"), "higher"),
    (("hd95_", "hd_", "assd_", "masd_"), "lower"),
    (("volume_error", "relative_volume_error"), "nearer_zero"),
)


@dataclass(frozen=True)
class Column:
    """One label of some methods, where all of them have a value.

    Attributes:
        label: its name, or ``macro``: for each case the mean over the labels that have a value in all methods.
        values: [n, A] finite, one row a case.
        patients: [n] number of each row's patient.
        undefined: [u, A] of the cases left out, True where the method has no value.
    """

    label: str
    values: Floats
    patients: NDArray[np.int64]
    undefined: NDArray[np.bool_]

    @property
    def one_sided(self) -> int:
        """Cases left out although some of the methods have a value: they found what is not there."""
        return int((~self.undefined).any(axis=1).sum())


@dataclass(frozen=True)
class Measured:
    """One metric of all methods on the same cases.

    Attributes:
        metric: name in ``metrics.csv``.
        better: see :func:`better_direction`. Of ``nearer_zero`` the values are absolute values.
        methods: [A] names.
        labels: [L] names.
        patients: names in sorted order.
        patient: [N] number of each case's patient.
        held: [N, L] True where the tables have a row of the case and label.
        values: [N, L, A], NaN where there is no value.
        all_named: False where a case names no patient and so counts as a patient of its own.
    """

    metric: str
    better: str
    methods: tuple[str, ...]
    labels: tuple[str, ...]
    patients: tuple[str, ...]
    patient: NDArray[np.int64]
    held: NDArray[np.bool_]
    values: Floats
    all_named: bool = True

    def columns(self, methods: Sequence[int] | None = None) -> list[Column]:
        """Return the labels in their order, then ``macro`` where there are several.

        Args:
            methods: positions of those compared; None: all.
        """
        values = self.values if methods is None else self.values[:, :, list(methods)]
        defined = np.asarray(np.isfinite(values).all(axis=2), dtype=np.bool_)
        found = []
        for number, label in enumerate(self.labels):
            keep, drop = defined[:, number], self.held[:, number] & ~defined[:, number]
            undefined = np.isnan(values[drop, number])
            found.append(Column(label, values[keep, number], self.patient[keep], undefined))
        if len(self.labels) > 1:
            some = np.asarray(defined.any(axis=1), dtype=np.bool_)
            counted = np.where(defined[..., None], values, 0.0)[some].sum(axis=1)
            means = counted / defined[some].sum(axis=1, keepdims=True)
            undefined = np.asarray(np.isnan(values[~some]).all(axis=1), dtype=np.bool_)
            found.append(Column(MACRO, means, self.patient[some], undefined))
        return found


def better_direction(metric: str) -> str:
    """Return which values of a metric are better: ``higher``, ``lower``, ``nearer_zero``, or "" where it is unknown."""
    for prefixes, direction in _DIRECTIONS:
        if metric.startswith(prefixes):
            return direction
    return ""


def read_methods(paths: Sequence[str | Path], metrics: Sequence[str]) -> list[Measured]:
    """Read two or more tables of one algorithm each, and lay them side by side.

    A method is called by its algorithm, or by its file where two tables have the same.

    Args:
        paths: two or more ``metrics.csv``.
        metrics: names in the column ``metric``.

    Returns:
        One :class:`Measured` a metric, in the given order.

    Raises:
        UserError: where tables cannot be read, are given twice, hold several algorithms or none of a metric, or are
            not of the same cases, labels, patients and reference masks (as far as statuses tell).
    """
    if len(paths) < 2:
        raise UserError("one table alone cannot be compared; name two or more metrics.csv")
    if len({Path(path).resolve() for path in paths}) != len(paths):
        raise UserError("a table is given twice; name each metrics.csv once")
    rows = [read_rows(path) for path in paths]
    algorithms = [_algorithm(path, of_table) for path, of_table in zip(paths, rows, strict=True)]
    names = algorithms if len(set(algorithms)) == len(algorithms) else [str(path) for path in paths]
    patients = sorted({row.cluster for row in rows[0]})
    found = []
    for metric in dict.fromkeys(metrics):
        tables = [_table(path, of_table, metric) for path, of_table in zip(paths, rows, strict=True)]
        for path, table in zip(paths[1:], tables[1:], strict=True):
            _refuse_different_cases(paths[0], tables[0], path, table)
            _refuse_different_patients(paths[0], tables[0], path, table)
            _refuse_different_references(paths[0], tables[0], path, table)
        found.append(_side_by_side(metric, names, patients, tables))
    return found


def _algorithm(path: str | Path, rows: Sequence[Row]) -> str:
    names = sorted({row.algorithm for row in rows})
    if len(names) > 1:
        raise UserError(f"{path}: rows of {len(names)} algorithms ({', '.join(names)}); give a table of one algorithm")
    return names[0] if names else str(path)


def _table(path: str | Path, rows: Sequence[Row], metric: str) -> Table:
    if not any(row.metric == metric for row in rows):
        known = ", ".join(dict.fromkeys(row.metric for row in rows)) or "nothing"
        raise UserError(f"{path}: no rows of the metric {metric}; choose --metric from what it holds ({known})")
    return {(row.task, row.case, row.run, row.label): row for row in rows if row.metric == metric}


def _refuse_different_cases(first_path: str | Path, first: Table, second_path: str | Path, second: Table) -> None:
    if first.keys() == second.keys():
        return
    told = [
        f"only in {path}: {_list_cases(keys - others, others)}"
        for path, keys, others in (
            (first_path, first.keys(), second.keys()),
            (second_path, second.keys(), first.keys()),
        )
        if keys - others
    ]
    raise UserError(f"the tables are not of the same cases ({'; '.join(told)}); evaluate both on the same data list")


def _list_cases(only: Set[Key], others: Set[Key]) -> str:
    """Name three cases that the other table lacks; with task, run and label where it has the case itself."""
    known = {case for _, case, _, _ in others}
    names = sorted(
        {
            f"{case} (task {task}, run {run}, label {label})" if case in known else case
            for task, case, run, label in only
        }
    )
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _refuse_different_patients(first_path: str | Path, first: Table, second_path: str | Path, second: Table) -> None:
    for key, row in first.items():
        if second[key].cluster != row.cluster:
            raise UserError(
                f"case {row.case} is of patient {row.cluster} in {first_path} but of {second[key].cluster} in "
                f"{second_path}; evaluate both on the same data list"
            )


def _refuse_different_references(first_path: str | Path, first: Table, second_path: str | Path, second: Table) -> None:
    for key, row in first.items():
        one, other = _IN_REFERENCE.get(row.status), _IN_REFERENCE.get(second[key].status)
        if None not in (one, other) and one != other:
            told, none = (first_path, second_path) if one else (second_path, first_path)
            raise UserError(
                f"case {row.case}: its reference mask holds label {row.label} in {told}, but not in {none}; score both "
                "against the same reference masks"
            )


def _side_by_side(metric: str, names: Sequence[str], patients: Sequence[str], tables: Sequence[Table]) -> Measured:
    labels = list(dict.fromkeys(row.label for row in tables[0].values()))
    cases = {key[:3]: row.cluster for key, row in tables[0].items()}
    row_of, label_of = ({name: i for i, name in enumerate(names)} for names in (cases, labels))
    patient_of = {name: i for i, name in enumerate(patients)}
    better = better_direction(metric)
    values = np.full((len(cases), len(labels), len(tables)), np.nan)
    held = np.zeros((len(cases), len(labels)), dtype=bool)
    for number, table in enumerate(tables):
        for key, row in table.items():
            case, label = row_of[key[:3]], label_of[row.label]
            held[case, label] = True
            if row.value is not None:
                values[case, label, number] = abs(row.value) if better == "nearer_zero" else row.value
    patient = np.array([patient_of[name] for name in cases.values()], dtype=np.int64)
    all_named = all(row.patient for row in tables[0].values())
    return Measured(metric, better, tuple(names), tuple(labels), tuple(patients), patient, held, values, all_named)
