"""Sections of a report that set methods against each other: paired differences, ranks, curves over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from monai_ext.evaluation.bootstrap import cohort_warning
from monai_ext.evaluation.compare import Difference, compare_methods, comparison_notes, count_wins
from monai_ext.evaluation.curves import Area, CurvePoint, summarise_curves
from monai_ext.evaluation.pairing import MACRO, read_methods
from monai_ext.evaluation.ranking import MEAN_THEN_RANK, RANK_THEN_MEAN, Rank, RankFrequency, rank_methods
from monai_ext.evaluation.report import figures, wording
from monai_ext.evaluation.report.metrics import colour_of
from monai_ext.evaluation.report.sources import Evaluation

GREY = "#6b7280"


@dataclass(frozen=True)
class DifferenceRow:
    """One line of a table of differences."""

    second: str
    label: str
    pairs: str
    left_out: str
    difference: str
    effect: str
    p: str
    p_holm: str
    favours: str


@dataclass(frozen=True)
class DifferenceBlock:
    """All differences in one metric: a figure for each other method, and the table."""

    title: str
    note: str
    panels: tuple[tuple[str, Markup], ...]
    rows: tuple[DifferenceRow, ...]


@dataclass(frozen=True)
class RankRow:
    """One line of the ranking."""

    metric: str
    method: str
    rank: str
    range: str
    first: str
    by_case: str


@dataclass(frozen=True)
class Comparison:
    """The first method against the others, the ranks of all, and how they were made."""

    first: str
    blocks: tuple[DifferenceBlock, ...]
    ranks: tuple[RankRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CurveSection:
    """A figure of all curves; areas as (method, label, steps, n, area)."""

    title: str
    metric: str
    figure: Markup
    areas: tuple[tuple[str, ...], ...]


def comparison(evaluations: Sequence[Evaluation], metrics: Sequence[str]) -> Comparison | None:
    """Compare the first method with the others as :mod:`~monai_ext.evaluation.compare` does; None where there is one.

    Draws and seed of the bootstrap are those of the first method's summary.

    Raises:
        UserError: where a metric is not in all tables.
    """
    if len(evaluations) < 2:
        return None
    names = tuple(evaluation.name for evaluation in evaluations)
    measured = [replace(one, methods=names) for one in read_methods([e.table for e in evaluations], metrics)]
    interval = evaluations[0].summary["confidence_interval"]
    draws, seed = interval["draws"], interval["seed"]
    differences = compare_methods(measured, draws, seed)
    wins = count_wins(differences) if len(evaluations) == 2 else None
    ranks, frequencies = rank_methods(measured, draws, seed, wins)
    few = cohort_warning(evaluations[0].summary["n_patients"])  # stands on top of the page
    return Comparison(
        first=names[0],
        blocks=tuple(_block(metric, differences, names) for metric in metrics),
        ranks=tuple(_rank_rows(ranks, frequencies)),
        notes=tuple(n for n in comparison_notes(differences, measured, draws) if n != f"warning: {few}"),
    )


def curves(evaluations: Sequence[Evaluation]) -> CurveSection | None:
    """Draw Dice, or the first metric there is, against the step of interactive and online methods; None without any.

    The figure shows the mean over labels, or the only label; its areas are given for all.
    """
    colours: list[str] = []
    areas: list[Area] = []
    shown: list[CurvePoint] = []
    for number, evaluation in enumerate(evaluations):
        metrics = list(dict.fromkeys(row.metric for row in evaluation.curve))
        if not metrics:
            continue
        points, of_method = summarise_curves(evaluation.curve, "dice" if "dice" in metrics else metrics[0])
        areas += [replace(area, label=_label(area.label)) for area in of_method]
        if points:
            last = points[-1].label  # macro, where there are several
            shown += [replace(point, label=_label(last)) for point in points if point.label == last]
            colours.append(colour_of(number))
    if not shown:
        return None
    metric, label = shown[0].metric, shown[0].label
    title = f"{wording.metric_title(metric)} of {label} against the step"
    return CurveSection(
        title=title,
        metric=wording.metric_title(metric),
        figure=Markup(figures.curve_figure(title, shown, areas, colours)),
        areas=tuple(map(_area_cells, areas)),
    )


def _block(metric: str, differences: Sequence[Difference], names: Sequence[str]) -> DifferenceBlock:
    rows = [row for row in differences if row.metric == metric]
    reach = max((abs(end) for row in rows for end in (row.ci_low, row.ci_high) if end is not None), default=1.0)
    limits = (-reach, reach) if reach else (-1.0, 1.0)
    title = wording.metric_title(metric)
    panels = []
    for second in names[1:]:
        lines = [line for row in rows if row.second == second for line in _intervals(row, names)]
        if lines:
            told = f"{title}: {names[0]} minus {second}, 95% confidence intervals"
            panels.append((second, Markup(figures.forest_figure(told, lines, limits, f"difference in {title}"))))
    return DifferenceBlock(title, wording.metric_note(metric), tuple(panels), tuple(map(_difference_row, rows)))


def _intervals(row: Difference, names: Sequence[str]) -> list[figures.Interval]:
    """Return the line of a difference, in the colour of the better method, grey where the interval holds zero."""
    if row.difference is None or row.ci_low is None or row.ci_high is None:
        return []
    apart = row.favours and (row.ci_low > 0 or row.ci_high < 0)
    colour = colour_of(names.index(row.favours)) if apart else GREY
    return [figures.Interval(_label(row.label), row.difference, row.ci_low, row.ci_high, colour)]


def _difference_row(row: Difference) -> DifferenceRow:
    mean, low, high = (
        wording.number(value, row.metric, signed=True) for value in (row.difference, row.ci_low, row.ci_high)
    )
    return DifferenceRow(
        second=row.second,
        label=_label(row.label),
        pairs=f"{row.n_pairs} ({wording.count(row.n_patients, 'patient')})",
        left_out=f"{row.n_undefined} left out" if row.n_undefined else "",
        difference=wording.NONE if row.difference is None else f"{mean} [{low}, {high}]",
        effect=wording.effect_size(row.rank_biserial),
        p=wording.p_value(row.p),
        p_holm=wording.p_value(row.p_holm),
        favours=row.favours or wording.NONE,
    )


def _rank_rows(ranks: Sequence[Rank], frequencies: Sequence[RankFrequency]) -> list[RankRow]:
    """Return a line for each metric and method, best first: the mean over labels, or the only label."""
    first: Mapping[tuple[str, str, str], float] = {
        (row.metric, row.label, row.algorithm): row.frequency
        for row in frequencies
        if row.ranking == MEAN_THEN_RANK and row.rank == 1.0
    }
    by_case = {(row.metric, row.label, row.algorithm): row for row in ranks if row.ranking == RANK_THEN_MEAN}
    last = {row.metric: row.label for row in ranks}  # macro is the last label of each metric
    metrics = list(last)
    chosen = [row for row in ranks if row.ranking == MEAN_THEN_RANK and row.label == last[row.metric]]
    found = []
    for row in sorted(chosen, key=lambda row: (metrics.index(row.metric), row.rank)):
        key = (row.metric, row.label, row.algorithm)
        found.append(
            RankRow(
                metric=wording.metric_title(row.metric),
                method=row.algorithm,
                rank=f"{row.rank:g}",
                range=f"{row.rank_low:g} to {row.rank_high:g}",
                first=f"{100 * first.get(key, 0.0):.0f} %",
                by_case=f"{by_case[key].score:.2f}",
            )
        )
    return found


def _area_cells(area: Area) -> tuple[str, ...]:
    told = f"{area.auc:.3f} [{area.ci_low:.3f}, {area.ci_high:.3f}]"
    return area.algorithm, area.label, f"{area.first_step} to {area.last_step}", str(area.n_cases), told


def _label(label: str) -> str:
    return "mean over labels" if label == MACRO else label
