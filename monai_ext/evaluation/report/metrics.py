"""Sections of a report that tell of one metric: a figure a label, a table, a table per visit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from monai_ext.errors import UserError
from monai_ext.evaluation.curves import COLOURS
from monai_ext.evaluation.pairing import better_direction, read_methods
from monai_ext.evaluation.report import figures, wording
from monai_ext.evaluation.report.sources import Evaluation

MAIN = ("dice", "hd95_mm", "hd95_px", "nsd_")
LINKED_UP_TO = 60


@dataclass(frozen=True)
class MetricRow:
    """One line of a metric's table."""

    label: str
    method: str
    n: str
    mean: str
    median: str
    quartiles: str
    not_ok: str
    best: bool = False


@dataclass(frozen=True)
class MetricSection:
    """One metric: a figure a label, the table, and per visit (visit, label, a cell for each method).

    ``remarks`` are sentences, the definition first; ``note`` says which values are better.
    """

    metric: str
    title: str
    note: str
    is_main: bool
    has_best: bool
    panels: tuple[tuple[str, Markup], ...]
    rows: tuple[MetricRow, ...]
    visits: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]


def shared_metrics(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the metrics that all methods have, the main ones first.

    Raises:
        UserError: where there are none, or the methods are not of the same cases and labels.
    """
    tables = [{row.metric for row in evaluation.rows} for evaluation in evaluations]
    metrics = dict.fromkeys(row.metric for row in evaluations[0].rows)
    shared = [name for name in metrics if all(name in of_table for of_table in tables)]
    if not shared:
        raise UserError("the evaluations share no metric; measure all of them alike")
    if len(evaluations) > 1:
        read_methods([evaluation.table for evaluation in evaluations], shared)
    return sorted(shared, key=lambda name: next((n for n, main in enumerate(MAIN) if _matches(name, main)), len(MAIN)))


def metric_section(evaluations: Sequence[Evaluation], metric: str, labels: Sequence[str]) -> MetricSection:
    """Arrange one metric of all methods."""
    strips = {
        label: [_strip(evaluation, label, metric, n) for n, evaluation in enumerate(evaluations)] for label in labels
    }
    shown = [strip for of_label in strips.values() for strip in of_label]
    limits, beyond = _limits(metric, shown)
    unit = wording.metric_title(metric)
    linked = is_linked(evaluations)
    panels = [
        (label, Markup(figures.strip_figure(_told(metric, label, of_label), of_label, limits, unit, linked)))
        for label, of_label in strips.items()
    ]
    remarks = [f"{definition[0].upper()}{definition[1:]}."] if (definition := _definition(evaluations, metric)) else []
    if beyond:
        remarks.append(f"{wording.count(beyond, 'value')} beyond the axis, drawn as crosses at its end.")
    if metric == "dice_slice_mean" and all(_same_values(evaluation, "dice", metric) for evaluation in evaluations):
        panels = []
        remarks.append("The same as Dice, for every case has one slice.")
    rows = tuple(_metric_rows(evaluations, metric, labels))
    return MetricSection(
        metric=metric,
        title=unit,
        note=wording.metric_note(metric),
        is_main=is_main(metric),
        has_best=any(row.best for row in rows),
        panels=tuple(panels) if better_direction(metric) else (),
        rows=rows,
        visits=tuple(_visit_rows(evaluations, metric, labels)),
        remarks=tuple(remarks),
    )


def is_main(metric: str) -> bool:
    """Whether a metric stands in the first table and has a section of its own."""
    return any(_matches(metric, main) for main in MAIN)


def is_linked(evaluations: Sequence[Evaluation]) -> bool:
    """Whether the dots of a case are joined: of two methods, and not too many of them."""
    return len(evaluations) == 2 and evaluations[0].summary["n_cases"] <= LINKED_UP_TO


def colour_of(number: int) -> str:
    """Return the colour of a method by its place, repeated beyond seven."""
    return COLOURS[number % len(COLOURS)]


def _strip(evaluation: Evaluation, label: str, metric: str, number: int) -> figures.Strip:
    rows = [row for row in evaluation.rows if (row.label, row.metric) == (label, metric) and row.value is not None]
    statistics = evaluation.summary["labels"][label][metric]
    several_runs = len({row.run for row in rows}) > 1
    names = [f"{row.case}, run {row.run}" if several_runs else row.case for row in rows]
    return figures.Strip(
        name=evaluation.name,
        colour=colour_of(number),
        dots=tuple(
            figures.Dot(name, float(row.value or 0.0), row.status) for name, row in zip(names, rows, strict=True)
        ),
        mean=statistics["mean"],
        interval=None if statistics["mean"] is None else (statistics["ci_low"], statistics["ci_high"]),
    )


def _limits(metric: str, strips: Sequence[figures.Strip]) -> tuple[figures.Range, int]:
    """Return the ends of a metric's axis, the same for all labels, and how many values are beyond them.

    A single structure that is missed counts as the image's diagonal in HD95: an axis that held it would leave no
    room for the others.
    """
    values = [dot.value for strip in strips for dot in strip.dots]
    direction = better_direction(metric)
    if direction == "higher" and all(0 <= value <= 1 for value in values):
        return (0.0, 1.0), 0
    ok = [dot.value for strip in strips for dot in strip.dots if dot.status == "ok"] or values
    ends = [end for strip in strips for end in strip.interval or ()]
    low = 0.0 if direction == "lower" else min([0.0, *ok, *ends])
    high = max([0.0, *ok, *ends])
    if low == high:
        high = low + 1.0
    return (low, high), sum(not low <= value <= high for value in values)


def _told(metric: str, label: str, strips: Sequence[figures.Strip]) -> str:
    """Say what a figure shows, for those who do not see it."""
    means = [f"{strip.name} {wording.number(strip.mean, metric)}" for strip in strips]
    cases = wording.count(max(len(strip.dots) for strip in strips), "case")
    return f"{wording.metric_title(metric)} of {label}, {cases}; means: {', '.join(means)}"


def _metric_rows(evaluations: Sequence[Evaluation], metric: str, labels: Sequence[str]) -> Iterator[MetricRow]:
    for label in labels:
        best = _best(metric, [evaluation.summary["labels"][label][metric]["mean"] for evaluation in evaluations])
        for number, evaluation in enumerate(evaluations):
            of_label = evaluation.summary["labels"][label][metric]
            first, third = (wording.number(of_label[name], metric) for name in ("q1", "q3"))
            yield MetricRow(
                label=label,
                method=evaluation.name,
                n=str(of_label["n_units"]),
                mean=wording.interval(of_label, metric),
                median=wording.number(of_label["median"], metric),
                quartiles=f"{first} to {third}" if of_label["median"] is not None else wording.NONE,
                not_ok=wording.status_counts(of_label),
                best=number in best,
            )
    if len(labels) > 1:
        best = _best(metric, [evaluation.summary["macro"][metric]["mean"] for evaluation in evaluations])
        for number, evaluation in enumerate(evaluations):
            mean = wording.interval(evaluation.summary["macro"][metric], metric)
            yield MetricRow("mean over labels", evaluation.name, "", mean, "", "", "", number in best)


def _best(metric: str, means: Sequence[float | None]) -> set[int]:
    """Return the positions of the best mean, none where there is only one or the metric has no direction."""
    known = [mean for mean in means if mean is not None]
    direction = better_direction(metric)
    if len(known) < 2 or direction not in ("higher", "lower"):
        return set()
    best = max(known) if direction == "higher" else min(known)
    return {number for number, mean in enumerate(means) if mean == best}


def _visit_rows(evaluations: Sequence[Evaluation], metric: str, labels: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield (visit, label, a cell for each method), where there are several visits."""
    visits = list(evaluations[0].summary["visits"])
    if len(visits) < 2 or not is_main(metric):
        return
    for visit in visits:
        for label in labels:
            cells = []
            for evaluation in evaluations:
                of_visit = evaluation.summary["visits"].get(visit, {"labels": {}})
                of_label = of_visit["labels"].get(label, {}).get(metric)
                cells.append(wording.interval(of_label, metric) if of_label else wording.NONE)
            yield (visit, label, *cells)


def _definition(evaluations: Sequence[Evaluation], metric: str) -> str:
    """Return how a metric is defined, as the summary says: the longest of its keys that the name begins with."""
    known: dict[str, str] = evaluations[0].summary["definitions"]
    keys = sorted((key for key in known if metric.startswith(key)), key=len)
    return known[keys[-1]] if keys else ""


def _matches(metric: str, main: str) -> bool:
    return metric.startswith(main) if main.endswith("_") else metric == main


def _same_values(evaluation: Evaluation, metric: str, other: str) -> bool:
    values = [
        {(row.case, row.run, row.label): row.value for row in evaluation.rows if row.metric == name}
        for name in (metric, other)
    ]
    return values[0] == values[1]
