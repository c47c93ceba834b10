"""Compare methods on the same cases: ``python -m monai_ext.evaluation.compare A/metrics.csv B/metrics.csv``.

The first table is compared with each of the others by paired differences (first minus other, per case), whose
mean gets a confidence interval by resampling patients. Tables of different cases are refused: their means
would differ whatever the methods do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence, Set
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.bootstrap import DRAWS, cohort_warning, patient_bootstrap_ci
from monai_ext.evaluation.summary import layout
from monai_ext.evaluation.table import Row, read_rows, write_table

MACRO = "macro"

# What a row is about: task, case, run, label. Two methods are paired where it is the same.
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Difference:
    """One row of ``comparison.csv``: paired difference first - second of a label, or of all labels' mean."""

    metric: str
    label: str
    first: str
    second: str
    n: int
    mean_first: float
    mean_second: float
    difference: float
    ci_low: float
    ci_high: float


COLUMNS = tuple(field.name for field in fields(Difference))


def compare(paths: Sequence[str | Path], metric: str = "dice", draws: int = DRAWS, seed: int = 0) -> list[Difference]:
    """Compare the first table with each of the others.

    Pairs in which a method has no value (status ``both_empty``) are left out; ``n`` counts the pairs that are
    left. ``macro`` is, per case, the mean over the labels that have a value in both tables.

    Args:
        paths: two or more ``metrics.csv``, one algorithm each.
        metric: what is compared.
        draws: of the bootstrap over patients.
        seed: of the bootstrap.

    Returns:
        For each other table one row per label, then the macro mean where there are several labels.

    Raises:
        UserError: where tables cannot be read, hold several algorithms, or are not of the same cases and
            labels.
    """
    if len(paths) < 2:
        raise UserError("one table alone cannot be compared; name two or more metrics.csv")
    rows = [read_rows(path) for path in paths]
    tables = [_values(path, of_table, metric) for path, of_table in zip(paths, rows, strict=True)]
    names = _names(paths, [_algorithm(path, of_table) for path, of_table in zip(paths, rows, strict=True)])
    for path, table in zip(paths[1:], tables[1:], strict=True):
        _refuse_different_cases(paths[0], tables[0], path, table)
    differences = []
    for name, table in zip(names[1:], tables[1:], strict=True):
        differences += _against(tables[0], table, metric, names[0], name, draws, seed)
    return differences


def format_differences(differences: Sequence[Difference]) -> str:
    """Lay out the differences as plain text."""
    lines = [["first", "second", "label", "n", "mean first", "mean second", "difference", "95% CI"]]
    for row in differences:
        numbers = [f"{value:.4f}" for value in (row.mean_first, row.mean_second)]
        interval = f"[{row.ci_low:+.4f}, {row.ci_high:+.4f}]"
        lines.append([row.first, row.second, row.label, str(row.n), *numbers, f"{row.difference:+.4f}", interval])
    return layout(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m monai_ext.evaluation.compare", description=__doc__)
    parser.add_argument("tables", nargs="+", metavar="metrics.csv", help="two or more; the first against the others")
    parser.add_argument("--metric", default="dice", help="name in the column metric (default: dice)")
    parser.add_argument("--output_dir", help="folder to write comparison.csv to")
    options = parser.parse_args(arguments)

    differences = compare(options.tables, options.metric)
    print(f"{options.metric}, paired by case, first minus second; 95% CI: {DRAWS} bootstrap draws over patients")
    print(f"\n{format_differences(differences)}\n")
    warning = cohort_warning(len({row.cluster for row in read_rows(options.tables[0])}))
    if warning:
        print(f"warning: {warning}")
    if options.output_dir:
        path = Path(options.output_dir) / "comparison.csv"
        write_table(path, COLUMNS, map(astuple, differences))
        print(f"written to {path}")


def _algorithm(path: str | Path, rows: Sequence[Row]) -> str:
    names = sorted({row.algorithm for row in rows})
    if len(names) != 1:
        raise UserError(f"{path}: rows of {len(names)} algorithms ({', '.join(names)}); give a table of one algorithm")
    return names[0]


def _values(path: str | Path, rows: Sequence[Row], metric: str) -> dict[Key, Row]:
    if not any(row.metric == metric for row in rows):
        known = ", ".join(dict.fromkeys(row.metric for row in rows)) or "nothing"
        raise UserError(f"{path}: no rows of the metric {metric}; choose --metric from what it holds ({known})")
    table: dict[Key, Row] = {}
    for row in rows:
        if row.metric != metric:
            continue
        key = (row.task, row.case, row.run, row.label)
        if key in table:
            raise UserError(
                f"{path}: case {row.case} has several rows of label {row.label}, run {row.run or 'unnamed'}; "
                "number the runs in the column run"
            )
        table[key] = row
    return table


def _names(paths: Sequence[str | Path], algorithms: Sequence[str]) -> list[str]:
    """Return what the tables are called: by algorithm, or by file where two share it."""
    return list(algorithms) if len(set(algorithms)) == len(algorithms) else [str(path) for path in paths]


def _refuse_different_cases(
    first_path: str | Path, first: dict[Key, Row], second_path: str | Path, second: dict[Key, Row]
) -> None:
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


def _against(
    first: dict[Key, Row],
    second: dict[Key, Row],
    metric: str,
    name: str,
    other_name: str,
    draws: int,
    seed: int,
) -> list[Difference]:
    pairs: list[tuple[Key, str, float, float]] = []
    for key, row in first.items():
        other = second[key].value
        if row.value is not None and other is not None:
            pairs.append((key, row.cluster, row.value, other))
    if not pairs:
        raise UserError(
            f"{name} and {other_name} share no case where {metric} has a value; there is nothing to compare"
        )
    labels = list(dict.fromkeys(key[3] for key, *_ in pairs))
    groups = {label: [(cluster, a, b) for key, cluster, a, b in pairs if key[3] == label] for label in labels}
    if len(labels) > 1:
        groups[MACRO] = _mean_over_labels(pairs)
    return [_difference(group, metric, label, name, other_name, draws, seed) for label, group in groups.items()]


def _mean_over_labels(pairs: Sequence[tuple[Key, str, float, float]]) -> list[tuple[str, float, float]]:
    cases: dict[tuple[str, ...], list[tuple[str, float, float]]] = {}
    for key, cluster, first, second in pairs:
        cases.setdefault(key[:3], []).append((cluster, first, second))
    return [
        (
            of_case[0][0],
            float(np.mean([a for _, a, _ in of_case])),
            float(np.mean([b for _, _, b in of_case])),
        )
        for of_case in cases.values()
    ]


def _difference(
    group: Sequence[tuple[str, float, float]],
    metric: str,
    label: str,
    name: str,
    other: str,
    draws: int,
    seed: int,
) -> Difference:
    clusters = [cluster for cluster, _, _ in group]
    first, second = np.array([a for _, a, _ in group]), np.array([b for _, _, b in group])
    paired = first - second
    low, high = patient_bootstrap_ci(paired.tolist(), clusters, draws, seed)
    return Difference(
        metric=metric,
        label=label,
        first=name,
        second=other,
        n=len(group),
        mean_first=float(first.mean()),
        mean_second=float(second.mean()),
        difference=float(paired.mean()),
        ci_low=low,
        ci_high=high,
    )


if __name__ == "__main__":
    report_user_errors()
    main()
