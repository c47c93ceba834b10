"""How far a few-shot result depends on its support: ``python -m monai_ext.evaluation.support_spread METRICS METRICS``.

The tables, ``metrics.csv``, are of runs that differ in the support alone, whose choice moves a mean by several points,
more than most methods differ by: one support says little.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.summary import layout, write_summary
from monai_ext.evaluation.table import Row, read_rows


def support_spread(rows: Iterable[Row], metric: str = "dice", levels: str = "label") -> dict[str, Any]:
    """Average each support's cases, then compare the supports.

    Args:
        rows: of the ``metrics.csv`` of several runs, each with one support, whose name is the row's ``reference``.
        metric: whose values count; cases without a value are left out.
        levels: ``label``: the mean of a support is that of its cases, by label, then over the labels (scan -> class);
            ``case``: of all values together.

    Returns:
        ``supports`` {name: mean}, and over them ``mean``, ``std`` (of a sample; None of one support), ``min``, ``max``
        and ``n``. Values to 12 digits.

    Raises:
        UserError: no row has a value of the metric, or two supports were run on different labels.
    """
    if levels not in ("label", "case"):
        raise ValueError(f"levels must be label or case, not {levels!r}")
    values: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for row in rows:
        if row.metric == metric and row.value is not None:
            values[row.reference][row.label, row.case] = row.value
    if not values:
        raise UserError(f"no row has a value of {metric}: give the metrics.csv of evaluations with one support each.")
    _refuse_other_labels(values)
    means = {support: _round(_mean(values[support], levels)) for support in sorted(values)}
    every = np.array(list(means.values()))
    return {
        "metric": metric,
        "supports": means,
        "n": len(means),
        "mean": _round(float(every.mean())),
        "std": _round(float(every.std(ddof=1))) if len(every) > 1 else None,
        "min": _round(float(every.min())),
        "max": _round(float(every.max())),
    }


def _refuse_other_labels(values: dict[str, dict[tuple[str, str], float]]) -> None:
    labels = {support: {label for label, _ in found} for support, found in values.items()}
    first = next(iter(labels))
    for support, own in labels.items():
        missing = labels[first] ^ own
        if missing:
            raise UserError(
                f"supports {first} and {support} were not run on the same labels ({', '.join(sorted(missing))} is in "
                "one alone): run both on all."
            )


def _mean(found: dict[tuple[str, str], float], levels: str) -> float:
    if levels == "case":
        return float(np.mean(list(found.values())))
    of_label: dict[str, list[float]] = defaultdict(list)
    for (label, _), value in found.items():
        of_label[label].append(value)
    return float(np.mean([np.mean(of) for of in of_label.values()]))


def _round(value: float) -> float:
    return float(f"{value:.12g}")


def read_runs(paths: Iterable[Path]) -> list[Row]:
    """Read the tables of several runs.

    Raises:
        UserError: a file is no such table, or two of them are of one support, of which one alone would count.
    """
    rows: list[Row] = []
    run_of: dict[str, Path] = {}
    for path in paths:
        own = read_rows(path)
        for support in sorted({row.reference for row in own}):
            if support in run_of:
                raise UserError(f"{run_of[support]} and {path} are both of support {support}: give each support once.")
            run_of[support] = path
        rows += own
    return rows


def spread_text(spread: dict[str, Any]) -> str:
    """Lay the supports' means and their spread out as lines."""
    lines = [("support", spread["metric"]), *((name, f"{mean:.4f}") for name, mean in spread["supports"].items())]
    lines += [(what, "-" if spread[what] is None else f"{spread[what]:.4f}") for what in ("mean", "std", "min", "max")]
    return layout(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser("python -m monai_ext.evaluation.support_spread", description=__doc__)
    parser.add_argument("tables", nargs="+", type=Path, metavar="METRICS", help="metrics.csv of runs, one a support")
    parser.add_argument("--metric", default="dice", help="whose values count (default: dice)")
    parser.add_argument("--levels", choices=("label", "case"), default="label", help="what a support's mean is made of")
    parser.add_argument("--output", type=Path, help="JSON file to write as well")
    given = parser.parse_args(arguments)
    spread = support_spread(read_runs(given.tables), given.metric, given.levels)
    if given.output is not None:
        write_summary(given.output, spread)
    print(spread_text(spread))


if __name__ == "__main__":
    report_user_errors()
    main()
