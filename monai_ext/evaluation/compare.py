"""Compare methods on the same cases: ``python -m monai_ext.evaluation.compare A/metrics.csv B/metrics.csv``.

The first table is compared with each of the others, or each with each (``--all_pairs``), by paired differences, first
minus second, per case. Their mean gets a confidence interval by resampling patients. The test and its effect size take
one number a patient, the mean of the patient's differences: a test that took visits for independent would find too
much. P-values are adjusted for all comparisons of the call. See :class:`Difference` for the columns and
:mod:`monai_ext.evaluation.ranking` for the rankings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.bootstrap import DRAWS, cohort_warning, refuse_seed
from monai_ext.evaluation.pairing import MACRO, Column, Measured, read_methods
from monai_ext.evaluation.ranking import rank_methods, ranking_text, write_ranking
from monai_ext.evaluation.statistics import (
    Floats,
    holm,
    percentile_intervals,
    resampled_means,
    signed_rank,
    smallest_p,
    sum_by_patient,
)
from monai_ext.evaluation.summary import layout
from monai_ext.evaluation.table import write_table

SIGNIFICANT = 0.05
FEWEST_DRAWS = 100


@dataclass(frozen=True)
class Difference:
    """One row of ``comparison.csv``: two methods in one metric and label, or in the mean over labels (``macro``).

    Attributes:
        metric: name; of ``volume_error_*`` the absolute values are compared.
        label: name, or ``macro``: per case the mean over the labels in which both have a value.
        first: method.
        second: method.
        better: ``higher``, ``lower``, ``nearer_zero``, or empty where the metric has no direction (``volume_ml``).
        n_pairs: cases in which both have a value.
        n_patients: patients of those.
        n_undefined: pairs left out because a value is undefined (``both_empty``).
        n_one_sided: those of them in which one method has a value: it found what is not there.
        mean_first: mean over the pairs.
        mean_second: mean over the pairs.
        difference: mean of first - second over the pairs.
        ci_low: lower end of its 95 % interval, cluster bootstrap over patients.
        ci_high: upper end.
        rank_biserial: effect size over patients, see :class:`~monai_ext.evaluation.statistics.SignedRank`.
        p: of the signed-rank test over patients, see :func:`~monai_ext.evaluation.statistics.signed_rank`.
        p_holm: adjusted by Holm for all comparisons of the call: all metrics, labels, macro and pairs of methods.
        favours: the method with the better mean, empty where there is none.
    """

    metric: str
    label: str
    first: str
    second: str
    better: str
    n_pairs: int
    n_patients: int
    n_undefined: int
    n_one_sided: int
    mean_first: float | None = None
    mean_second: float | None = None
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    rank_biserial: float | None = None
    p: float | None = None
    p_holm: float | None = None
    favours: str = ""


COLUMNS = tuple(field.name for field in fields(Difference))


@dataclass(frozen=True)
class _Pair:
    """Two methods in one metric and label."""

    measured: Measured
    first: int
    second: int
    column: Column

    @property
    def differences(self) -> Floats:
        """First - second of each case, [n]."""
        return self.column.values[:, 0] - self.column.values[:, 1]

    def sums(self) -> tuple[Floats, Floats]:
        """Sum and number of each patient's differences, [P, 1] each."""
        return sum_by_patient(self.differences[:, None], self.column.patients, len(self.measured.patients))


def compare(
    paths: Sequence[str | Path],
    metrics: str | Sequence[str] = "dice",
    draws: int = DRAWS,
    seed: int = 0,
    all_pairs: bool = False,
) -> list[Difference]:
    """Compare the first table with each of the others, or each with each.

    Args:
        paths: two or more ``metrics.csv``, one algorithm each.
        metrics: what is compared.
        draws: of the bootstrap over patients.
        seed: of the bootstrap.
        all_pairs: compare each with each.

    Returns:
        For each metric and pair of methods one row per label, then the macro mean where there are several labels.

    Raises:
        UserError: see :func:`~monai_ext.evaluation.pairing.read_methods`; or two methods share no case where a metric
            has a value.
    """
    measured = read_methods(paths, [metrics] if isinstance(metrics, str) else metrics)
    return compare_methods(measured, draws, seed, all_pairs)


def compare_methods(
    measured: Sequence[Measured], draws: int = DRAWS, seed: int = 0, all_pairs: bool = False
) -> list[Difference]:
    """Do as :func:`compare` with tables that have been read."""
    pairs = _pairs(measured, all_pairs)
    found = _differences(pairs, draws, seed)
    tested = [number for number, row in enumerate(found) if row.p is not None]
    adjusted = holm([row.p for row in found if row.p is not None])
    for number, p in zip(tested, adjusted, strict=True):
        found[number] = replace(found[number], p_holm=p)
    return found


def count_wins(differences: Sequence[Difference]) -> dict[tuple[str, str, str], int]:
    """Count for each (metric, label, method) the others that it beats: better, with p_holm below 0.05."""
    wins: dict[tuple[str, str, str], int] = {}
    for row in differences:
        for method in (row.first, row.second):
            wins.setdefault((row.metric, row.label, method), 0)
        if row.favours and row.p_holm is not None and row.p_holm < SIGNIFICANT:
            wins[row.metric, row.label, row.favours] += 1
    return wins


def comparison_text(differences: Sequence[Difference]) -> str:
    """Lay out the differences as plain text, a block a metric."""
    blocks = []
    for metric in dict.fromkeys(row.metric for row in differences):
        rows = [row for row in differences if row.metric == metric]
        lines = [["first", "second", "label", "n", "patients", "mean first", "mean second", "difference [95% CI]"]]
        lines[0] += ["effect", "p", "p Holm"]
        lines += [_cells(row) for row in rows]
        better = {"nearer_zero": "|value|, lower is better", "": "no direction"}
        told = better.get(rows[0].better, f"{rows[0].better} is better")
        blocks.append(f"{metric} ({told})\n\n{layout(lines)}")
    return "\n\n".join(blocks)


def comparison_notes(differences: Sequence[Difference], measured: Sequence[Measured], draws: int = DRAWS) -> list[str]:
    """Say how the numbers were made, and warn where they carry less than it seems."""
    notes = [
        f"paired by case, first minus second; 95% CI: {draws} bootstrap draws over patients",
        "effect: matched-pairs rank-biserial correlation; p: Wilcoxon signed-rank, two-sided, zeros as Pratt; both "
        "over patients (the mean of each patient's differences)",
        f"p Holm: over all {sum(row.p is not None for row in differences)} comparisons here; macro: mean over a case's "
        "labels, then over cases",
    ]
    patients = len(measured[0].patients)
    warnings = [cohort_warning(patients), *_power_warning(differences), *_one_sided_warnings(measured)]
    if not all(of_metric.all_named for of_metric in measured):
        warnings.append("cases without a patient count as patients of their own")
    return notes + [f"warning: {text}" for text in warnings if text]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m monai_ext.evaluation.compare", description=__doc__)
    parser.add_argument("tables", nargs="+", metavar="metrics.csv", help="two or more; the first against the others")
    parser.add_argument("--metric", nargs="+", default=["dice"], help="names in the column metric (default: dice)")
    parser.add_argument("--all_pairs", action="store_true", help="compare each table with each")
    parser.add_argument("--output_dir", help="folder for comparison.csv, ranking.csv and rank_frequencies.csv")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"of the bootstrap (default: {DRAWS})")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    options = parser.parse_args(arguments)
    if options.draws < FEWEST_DRAWS:
        raise UserError(f"--draws {options.draws} are too few for an interval; give {FEWEST_DRAWS} or more")

    refuse_seed(options.seed)
    measured = read_methods(options.tables, options.metric)
    differences = compare_methods(measured, options.draws, options.seed, options.all_pairs)
    every_pair = options.all_pairs or len(options.tables) == 2
    wins = count_wins(differences) if every_pair else None
    ranks, frequencies = rank_methods(measured, options.draws, options.seed, wins)
    print(f"{comparison_text(differences)}\n")
    print("\n".join(comparison_notes(differences, measured, options.draws)))
    if ranks:
        print(f"\n{ranking_text(ranks, frequencies)}")
    if options.output_dir:
        path = Path(options.output_dir) / "comparison.csv"
        write_table(path, COLUMNS, map(astuple, differences))
        written = [path, *write_ranking(options.output_dir, ranks, frequencies)]
        print(f"\nwritten to {', '.join(map(str, written))}")


def _pairs(measured: Sequence[Measured], all_pairs: bool) -> list[_Pair]:
    found: list[_Pair] = []
    for of_metric in measured:
        for first, second in combinations(range(len(of_metric.methods)), 2):
            if first and not all_pairs:
                continue
            columns = of_metric.columns([first, second])
            if not any(len(column.values) for column in columns):
                raise UserError(
                    f"{of_metric.methods[first]} and {of_metric.methods[second]} share no case where "
                    f"{of_metric.metric} has a value; there is nothing to compare"
                )
            found += [_Pair(of_metric, first, second, column) for column in columns]
    return found


def _differences(pairs: Sequence[_Pair], draws: int, seed: int) -> list[Difference]:
    """Make all rows, their intervals from the same draws of patients; p_holm is still to come."""
    sums, counts = (np.hstack(parts) for parts in zip(*(pair.sums() for pair in pairs), strict=True))
    held = counts.any(axis=0)
    low, high = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    low[held], high[held] = percentile_intervals(resampled_means(sums[:, held], counts[:, held], draws, seed))
    return [
        _difference(pair, sums[:, number], counts[:, number], (float(low[number]), float(high[number])))
        for number, pair in enumerate(pairs)
    ]


def _difference(pair: _Pair, sums: Floats, counts: Floats, interval: tuple[float, float]) -> Difference:
    """Make the row of a pair from the sums and counts [P] of the patients' differences."""
    measured, column = pair.measured, pair.column
    first, second = measured.methods[pair.first], measured.methods[pair.second]
    present = counts > 0
    row = Difference(
        metric=measured.metric,
        label=column.label,
        first=first,
        second=second,
        better=measured.better,
        n_pairs=len(column.values),
        n_patients=int(present.sum()),
        n_undefined=len(column.undefined),
        n_one_sided=column.one_sided,
    )
    if not present.any():
        return row
    test = signed_rank(sums[present] / counts[present])
    difference = float(pair.differences.mean())
    return replace(
        row,
        mean_first=float(column.values[:, 0].mean()),
        mean_second=float(column.values[:, 1].mean()),
        difference=difference,
        ci_low=interval[0],
        ci_high=interval[1],
        rank_biserial=test.rank_biserial,
        p=test.p,
        favours=_favoured(measured.better, difference, first, second),
    )


def _favoured(better: str, difference: float | None, first: str, second: str) -> str:
    if not better or not difference:
        return ""
    return first if (difference > 0) == (better == "higher") else second


def _cells(row: Difference) -> list[str]:
    names = [row.first, row.second, row.label, str(row.n_pairs), str(row.n_patients)]
    if row.difference is None:
        return [*names, *["-"] * 6]
    return [
        *names,
        f"{row.mean_first:.4f}",
        f"{row.mean_second:.4f}",
        f"{row.difference:+.4f} [{row.ci_low:+.4f}, {row.ci_high:+.4f}]",
        f"{row.rank_biserial:+.2f}",
        *(f"{p:.2g}" if p is not None else "-" for p in (row.p, row.p_holm)),
    ]


def _power_warning(differences: Sequence[Difference]) -> list[str]:
    tested = [row for row in differences if row.p is not None]
    lowest = min((smallest_p(row.n_patients) for row in tested), default=1.0) * len(tested)
    if lowest < SIGNIFICANT:
        return []
    return [
        f"{len(tested)} comparisons over at most {max((row.n_patients for row in tested), default=0)} patients: no p "
        f"Holm can be below {min(lowest, 1.0):.2g}, so none can count as significant"
    ]


def _one_sided_warnings(measured: Sequence[Measured]) -> list[str]:
    """Name the methods that are spared their false positives because another has no value there."""
    found = []
    of_metric = measured[0]
    for column in of_metric.columns():
        if column.label == MACRO or not column.one_sided:
            continue
        given = (~column.undefined[column.undefined.any(axis=1)]).sum(axis=0)
        told = ", ".join(f"{name} in {n}" for name, n in zip(of_metric.methods, given, strict=True) if n)
        found.append(
            f"{column.label}: neither reference nor some method has it, but {told} of {len(column.undefined)} cases "
            "left out; such false positives do not count in paired differences"
        )
    return found


if __name__ == "__main__":
    report_user_errors()
    main()
