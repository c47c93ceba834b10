"""Curves of interactive and online methods, ``python -m monai_ext.evaluation.curves interaction.csv --output_dir OUT``.

``interaction.csv`` holds one row per case, label, metric and step. Of an interactive method the step is the number of
interactions (clicks) after which a case was measured, and each case has all steps. Of an online method it is the place
of a case in the stream, and each case has one step in a run. Written are ``curves.csv`` (mean and interval per step),
``auc.csv`` (area under the curve) and ``curves.png``.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.text import read_table
from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.bootstrap import DRAWS, cohort_warning
from monai_ext.evaluation.pairing import MACRO, better_direction
from monai_ext.evaluation.statistics import Floats, percentile_intervals, resampled_means, sum_by_patient
from monai_ext.evaluation.summary import layout
from monai_ext.evaluation.table import STATUSES, write_table
from monai_ext.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""One a method, repeated beyond seven (Okabe & Ito 2008)."""


@dataclass(frozen=True)
class StepRow:
    """One row of ``interaction.csv``, its fields in the order of the columns.

    As in ``metrics.csv``; ``step`` is a whole number, ``value`` is None where the metric is undefined (status
    ``both_empty``).
    """

    task: str
    algorithm: str
    case: str
    patient: str
    run: str
    label: str
    step: int
    metric: str
    value: float | None
    status: str

    @property
    def cluster(self) -> str:
        """What a bootstrap resamples: the patient, or the case where no patient is named."""
        return self.patient or self.case


@dataclass(frozen=True)
class CurvePoint:
    """One row of ``curves.csv``: the mean over cases at one step, with its 95 % interval (patients resampled).

    ``label`` is a name, or ``macro``: per case the mean over the labels that have values.
    """

    task: str
    algorithm: str
    metric: str
    label: str
    step: int
    n_cases: int
    n_patients: int
    mean: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Area:
    """One row of ``auc.csv``: the mean over cases of each case's area under its curve.

    The area of a case is that of the trapezoids between its steps, divided by the last step minus the first: a value on
    the metric's own scale, the metric's mean height between these steps. Methods are comparable where the steps are the
    same. Of a case with one step (online methods) it is the value there, so that the mean is that of the stream.

    Attributes:
        task: data set.
        algorithm: method.
        metric: name.
        label: name, or ``macro``.
        first_step: smallest step.
        last_step: largest step.
        n_cases: curves averaged (a case of another run is another curve).
        n_patients: patients of those.
        n_undefined: curves left out because a value on them is undefined.
        auc: mean area.
        ci_low: lower end of its 95 % interval, patients resampled.
        ci_high: upper end.
        threshold: asked for; the next two are empty without.
        steps_to_threshold: mean over cases of the first step at which the threshold is reached; of a case that never
            reaches it the last step ("number of clicks").
        n_not_reached: cases that never do.
    """

    task: str
    algorithm: str
    metric: str
    label: str
    first_step: int
    last_step: int
    n_cases: int
    n_patients: int
    n_undefined: int
    auc: float
    ci_low: float
    ci_high: float
    threshold: float | None = None
    steps_to_threshold: float | None = None
    n_not_reached: int | None = None


COLUMNS = tuple(field.name for field in fields(StepRow))


@dataclass(frozen=True)
class _Curves:
    """The curves of one label of a method.

    ``values`` is [n, S], NaN where a case has no such step; ``patients`` [n] are numbers below ``n_patients``.
    """

    names: tuple[str, str, str, str]
    steps: tuple[int, ...]
    values: Floats
    patients: NDArray[np.int64]
    n_patients: int
    n_undefined: int


def write_interaction(path: str | Path, rows: Iterable[StepRow]) -> None:
    """Write ``interaction.csv``: rows in the given order, floats with as many digits as read back exactly."""
    write_table(path, COLUMNS, map(astuple, rows))


def read_interaction(path: str | Path) -> list[StepRow]:
    """Read what :func:`write_interaction` wrote.

    Raises:
        UserError: where the file is absent or not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; name the interaction.csv of an evaluation")
    header, *lines = [tuple(line) for line in read_table(path, "name the interaction.csv of an evaluation")] or [()]
    if header != COLUMNS:
        raise UserError(f"{path}: not an interaction.csv, whose columns are {','.join(COLUMNS)}; name another file")
    return [_step_row(path, number, line) for number, line in enumerate(lines, start=2)]


def area_under_curve(steps: Sequence[float], values: Sequence[float]) -> float:
    """Area of the trapezoids between steps, divided by their range: see :class:`Area`.

    Args:
        steps: [S] ascending.
        values: [S] finite.
    """
    if len(steps) == 1:
        return float(values[0])
    widths, heights = np.diff(np.asarray(steps, dtype=np.float64)), np.asarray(values, dtype=np.float64)
    return float((widths * (heights[1:] + heights[:-1]) / 2).sum() / widths.sum())


def summarise_curves(
    rows: Sequence[StepRow],
    metric: str = "dice",
    threshold: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[list[CurvePoint], list[Area]]:
    """Average the curves of every task, algorithm and label, then of the mean over labels (``macro``).

    Args:
        rows: of one or several ``interaction.csv``.
        metric: what is averaged.
        threshold: value to reach, from below or above, as is better.
        draws: of the bootstrap over patients.
        seed: of the bootstrap.

    Raises:
        UserError: where there are no rows of the metric, a case has a step twice, or the cases of an interactive
            method do not have the same steps.
    """
    chosen = [row for row in rows if row.metric == metric]
    if not chosen:
        known = ", ".join(dict.fromkeys(row.metric for row in rows)) or "nothing"
        raise UserError(f"there are no rows of the metric {metric}; choose --metric from what there is ({known})")
    points: list[CurvePoint] = []
    areas: list[Area] = []
    for task, algorithm in dict.fromkeys((row.task, row.algorithm) for row in chosen):
        of_method = [row for row in chosen if (row.task, row.algorithm) == (task, algorithm)]
        for curves in _curves(of_method):
            if len(curves.values):
                points += _points(curves, draws, seed)
                areas.append(_area(curves, threshold, draws, seed))
    return points, areas


def draw_curves(points: Sequence[CurvePoint], areas: Sequence[Area], colours: Sequence[str] = COLOURS) -> Figure:
    """Draw a panel for every task and label: a line for each method, its interval as a band, its area in the corner.

    Args:
        points: of :func:`summarise_curves`.
        areas: those of all points.
        colours: one a method, in the order of ``points``; begun again where there are more methods.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = list(dict.fromkeys((point.task, point.label) for point in points))
    methods = list(dict.fromkeys(point.algorithm for point in points))
    tasks = {task for task, _ in panels}
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(5.0, 3.2 * columns), 3.1 * rows + 0.2 * len(methods)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    lines = {}
    for axis, panel in zip(axes, panels, strict=False):
        for number, algorithm in enumerate(methods):
            here = [point for point in points if (point.task, point.label, point.algorithm) == (*panel, algorithm)]
            if here:
                auc = next(a.auc for a in areas if (a.task, a.label, a.algorithm) == (*panel, algorithm))
                lines[algorithm] = _draw_line(axis, here, f"{auc:.3f}", colours[number % len(colours)])
        axis.set_title(": ".join(panel) if len(tasks) > 1 else panel[1], fontsize=10)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(title="area", title_fontsize=8, fontsize=8, frameon=False)
    for axis in axes[::columns]:
        axis.set_ylabel(f"{points[0].metric}, mean and 95% CI")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.legend([*lines.values()], [*lines], loc="outside lower left", fontsize=8, frameon=False)
    return figure


def areas_text(areas: Sequence[Area]) -> str:
    """Lay out the areas as plain text."""
    lines = [["task", "algorithm", "label", "steps", "n", "patients", "area [95% CI]", "steps to threshold"]]
    for area in areas:
        reached = "-"
        if area.steps_to_threshold is not None:
            reached = f"{area.steps_to_threshold:.2f} ({area.n_not_reached} never reach {area.threshold:g})"
        lines.append(
            [
                *(area.task, area.algorithm, area.label, f"{area.first_step}-{area.last_step}"),
                *(str(area.n_cases), str(area.n_patients)),
                f"{area.auc:.4f} [{area.ci_low:.4f}, {area.ci_high:.4f}]",
                reached,
            ]
        )
    return layout(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m monai_ext.evaluation.curves", description=__doc__)
    parser.add_argument("tables", nargs="+", metavar="interaction.csv", help="one or more, of the same data set")
    parser.add_argument("--output_dir", required=True, help="folder for curves.csv, auc.csv and curves.png")
    parser.add_argument("--metric", default="dice", help="name in the column metric (default: dice)")
    parser.add_argument("--threshold", type=float, help="value of the metric: count the steps until it is reached")
    options = parser.parse_args(arguments)

    rows = _read_all(options.tables)
    points, areas = summarise_curves(rows, options.metric, options.threshold)
    if not areas:
        raise UserError(f"no case has a value of {options.metric} at every step; there is no curve to draw")
    print(f"{options.metric}, area under the curve divided by its range of steps, mean over cases\n")
    print(areas_text(areas))
    for warning in _warnings(rows, areas):
        print(f"warning: {warning}")
    folder = Path(options.output_dir)
    write_table(folder / "curves.csv", (field.name for field in fields(CurvePoint)), map(astuple, points))
    write_table(folder / "auc.csv", (field.name for field in fields(Area)), map(astuple, areas))
    with atomic_path(folder / "curves.png") as path:
        draw_curves(points, areas).savefig(path, dpi=120, metadata={"Software": None})
    print(f"written to {folder}: curves.csv, auc.csv, curves.png")


def _read_all(paths: Sequence[str]) -> list[StepRow]:
    """Read all tables; an algorithm that two of them hold is called by its file."""
    tables = {path: read_interaction(path) for path in dict.fromkeys(paths)}
    owners: dict[tuple[str, str], set[str]] = {}
    for path, rows in tables.items():
        for row in rows:
            owners.setdefault((row.task, row.algorithm), set()).add(path)
    return [
        replace(row, algorithm=f"{row.algorithm} ({path})") if len(owners[row.task, row.algorithm]) > 1 else row
        for path, rows in tables.items()
        for row in rows
    ]


def _warnings(rows: Sequence[StepRow], areas: Sequence[Area]) -> Iterator[str]:
    few = cohort_warning(len({row.cluster for row in rows}))
    if few:
        yield few
    for task in dict.fromkeys(area.task for area in areas):
        ranges = {(area.first_step, area.last_step) for area in areas if area.task == task}
        if len(ranges) > 1:
            told = ", ".join(f"{first}-{last}" for first, last in sorted(ranges))
            yield f"{task}: areas over different steps ({told}) are not comparable"


def _step_row(path: Path, number: int, line: tuple[str, ...]) -> StepRow:
    if len(line) != len(COLUMNS):
        raise UserError(f"{path}: line {number} has {len(line)} cells instead of {len(COLUMNS)}; run it again")
    cells = dict(zip(COLUMNS, line, strict=True))
    problem, value = "", None
    if cells["status"] not in STATUSES:
        problem = f"the unknown status {cells['status']!r}"
    elif not re.fullmatch("[0-9]{1,9}", cells["step"]):
        problem = f"the step {cells['step'][:20]!r}, which is not a whole number below 10^9"
    elif cells["value"] and cells["status"] == "both_empty":
        problem = f"the value {cells['value']!r} at status both_empty, which has none"
    elif cells["value"] or cells["status"] != "both_empty":
        try:
            value = float(cells["value"])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            problem = f"the value {cells['value']!r}, which is not a number"
    if problem:
        raise UserError(f"{path}: line {number} has {problem}; run the evaluation again")
    texts = {name: cell for name, cell in cells.items() if name not in ("step", "value")}
    return StepRow(step=int(cells["step"]), value=value, **texts)


def _curves(rows: Sequence[StepRow]) -> Iterator[_Curves]:
    """Collect the curves of one method: of every label, then of the mean over labels."""
    steps = sorted({row.step for row in rows})
    labels = list(dict.fromkeys(row.label for row in rows))
    keys = list(dict.fromkeys((row.case, row.run) for row in rows))
    cluster = {(row.case, row.run): row.cluster for row in rows}
    names = sorted(set(cluster.values()))
    patients = np.array([names.index(cluster[key]) for key in keys], dtype=np.int64)
    values = np.full((len(keys), len(labels), len(steps)), np.nan)
    held = np.zeros(values.shape, dtype=bool)
    at = {key: number for number, key in enumerate(keys)}
    for row in rows:
        cell = at[row.case, row.run], labels.index(row.label), steps.index(row.step)
        if held[cell]:
            raise UserError(
                f"case {row.case} has several rows of label {row.label} at step {row.step}; number the runs"
            )
        held[cell] = True
        values[cell] = math.nan if row.value is None else row.value
    _refuse_different_steps(held, keys, labels, steps)
    whole = held.any(axis=2) & (np.isfinite(values) | ~held).all(axis=2)
    first = rows[0]
    for number, label in enumerate(labels):
        keep = whole[:, number]
        lost = int((held[:, number].any(axis=1) & ~keep).sum())
        titles = (first.task, first.algorithm, first.metric, label)
        yield _Curves(titles, tuple(steps), values[keep, number], patients[keep], len(names), lost)
    if len(labels) > 1:
        keep = whole.any(axis=1)
        counted = (whole[..., None] & held)[keep]
        totals = np.where(counted, values[keep], 0.0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            means = totals / counted.sum(axis=1)
        titles = (first.task, first.algorithm, first.metric, MACRO)
        yield _Curves(titles, tuple(steps), means, patients[keep], len(names), int((~keep).sum()))


def _refuse_different_steps(
    held: NDArray[np.bool_], keys: Sequence[tuple[str, str]], labels: Sequence[str], steps: Sequence[int]
) -> None:
    """Cases have one step each (online), or all of them the same steps (interactive)."""
    counts = held.sum(axis=2)
    if counts.max() == 1:
        return
    for number, label in np.argwhere((counts > 0) & (counts < len(steps))):
        absent = steps[int(np.flatnonzero(~held[number, label])[0])]
        raise UserError(
            f"case {keys[number][0]} has no step {absent} of label {labels[label]}, which other cases have; where an "
            "interaction ends early, write its last value for the steps that are left"
        )


def _points(curves: _Curves, draws: int, seed: int) -> list[CurvePoint]:
    counted = np.isfinite(curves.values)
    sums, _ = sum_by_patient(np.where(counted, curves.values, 0.0), curves.patients, curves.n_patients)
    counts, _ = sum_by_patient(counted.astype(np.float64), curves.patients, curves.n_patients)
    there = counts.any(axis=0)
    low, high = percentile_intervals(resampled_means(sums[:, there], counts[:, there], draws, seed))
    found = []
    for place, number in enumerate(np.flatnonzero(there)):
        n_cases, n_patients = int(counts[:, number].sum()), int((counts[:, number] > 0).sum())
        mean = float(sums[:, number].sum() / n_cases)
        size = (curves.steps[number], n_cases, n_patients)
        found.append(CurvePoint(*curves.names, *size, mean, float(low[place]), float(high[place])))
    return found


def _area(curves: _Curves, threshold: float | None, draws: int, seed: int) -> Area:
    held = np.isfinite(curves.values)
    steps = np.array(curves.steps)
    of_cases = np.array(
        [area_under_curve(steps[there], of_case[there]) for there, of_case in zip(held, curves.values, strict=True)]
    )
    sums, counts = sum_by_patient(of_cases[:, None], curves.patients, curves.n_patients)
    low, high = percentile_intervals(resampled_means(sums, counts, draws, seed))
    area = Area(
        *curves.names,
        first_step=curves.steps[0],
        last_step=curves.steps[-1],
        n_cases=len(of_cases),
        n_patients=int((counts > 0).sum()),
        n_undefined=curves.n_undefined,
        auc=float(of_cases.mean()),
        ci_low=float(low[0]),
        ci_high=float(high[0]),
    )
    if threshold is None or not held.all() or not (direction := better_direction(area.metric)):
        return area
    reached = curves.values >= threshold if direction == "higher" else np.abs(curves.values) <= threshold
    first = np.where(reached.any(axis=1), reached.argmax(axis=1), len(steps) - 1)
    never = int((~reached.any(axis=1)).sum())
    return replace(area, threshold=threshold, steps_to_threshold=float(steps[first].mean()), n_not_reached=never)


def _draw_line(axis: Axes, points: Sequence[CurvePoint], name: str, colour: str) -> Line2D:
    steps = [point.step for point in points]
    marker = "o" if len(steps) <= 30 else None
    (line,) = axis.plot(steps, [point.mean for point in points], color=colour, marker=marker, markersize=3, label=name)
    low, high = [point.ci_low for point in points], [point.ci_high for point in points]
    axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    return line


if __name__ == "__main__":
    report_user_errors()
    main()
