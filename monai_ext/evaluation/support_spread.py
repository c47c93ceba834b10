"""How far a few-shot result depends on its support: the spread over runs that differ in the support alone.

The choice of the support moves a mean by several points, more than most methods differ by, so one support says little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from monai_ext.errors import UserError
from monai_ext.evaluation.table import Row


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
