"""Tables and figures of studies on frozen episodes: ``study.csv``, ``means.csv`` and ``study.png``.

A row has a ``panel``, a ``series`` (a method), ``x`` (a number or a name), the episode's ``class`` and ``patient``, and
a ``value``. Means over the episodes have 95 % intervals over patients (cluster bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from monai_ext.evaluation.bootstrap import patient_bootstrap_ci
from monai_ext.evaluation.curves import COLOURS
from monai_ext.evaluation.summary import layout
from monai_ext.evaluation.table import write_table
from monai_ext.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("panel", "series", "x", "class", "patient", "episode", "value")
MEANS = ("panel", "series", "x", "n", "patients", "mean", "ci_low", "ci_high")
DRAWS = 2000

Rows = Sequence[Mapping[str, Any]]
Point = tuple[str, str, Any, int, int, float, float, float]
"""A row of ``means.csv``."""


def study_means(rows: Rows, draws: int = DRAWS) -> list[Point]:
    """Average the episodes of each panel, series and x, in the order in which they come."""
    groups: dict[tuple[str, str, Any], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["panel"], row["series"], row["x"]), []).append(row)
    points = []
    for (panel, series, x), own in groups.items():
        values, patients = [float(row["value"]) for row in own], [str(row["patient"]) for row in own]
        low, high = patient_bootstrap_ci(values, patients, draws)
        points.append((panel, series, x, len(own), len(set(patients)), float(np.mean(values)), low, high))
    return points


def report_study(folder: str | Path, rows: Rows, kind: str, x_name: str, y_name: str = "IoU") -> None:
    """Write the tables and the figure, and print the means.

    Args:
        folder: of the study.
        rows: of its episodes.
        kind: of figure: ``lines`` (means over a number), ``groups`` (means of named conditions), ``scatter`` (a dot an
            episode, with Spearman's correlation) or ``boxes`` (the spread of each x).
        x_name: of the axis.
        y_name: of the axis; panels that have a name are named so instead.
    """
    write_table(Path(folder) / "study.csv", COLUMNS, ([row[name] for name in COLUMNS] for row in rows))
    points = [] if kind == "scatter" else study_means(rows)
    if points:
        write_table(Path(folder) / "means.csv", MEANS, points)
    with atomic_path(Path(folder) / "study.png") as temporary:
        draw_study(rows, points, kind, x_name, y_name).savefig(temporary, dpi=120)
    print(_correlations(rows) if kind == "scatter" else _means_text(points))


def draw_study(rows: Rows, points: Sequence[Point], kind: str, x_name: str, y_name: str) -> Figure:
    """Draw a panel beside the other, one colour a series."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels, series = (list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("panel", "series"))
    figure = Figure(figsize=(4.4 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, name in enumerate(series):
            own = [row for row in rows if (row["panel"], row["series"]) == (panel, name)]
            means = [point for point in points if point[:2] == (panel, name)]
            place = (number - (len(series) - 1) / 2) / (len(series) + 1)
            DRAWINGS[kind](axis, own, means, name, COLOURS[number % len(COLOURS)], place)
        axis.set_title(panel, fontsize=10)
        axis.set_xlabel(x_name)
        axis.set_ylabel(panel if kind == "boxes" and panel else y_name)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    return figure


def _lines(axis: Axes, own: Rows, means: Sequence[Point], name: str, colour: str, place: float) -> None:
    x, middle, low, high = ([point[k] for point in means] for k in (2, 5, 6, 7))
    axis.plot(x, middle, marker="o", markersize=3, color=colour, label=name)
    axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _groups(axis: Axes, own: Rows, means: Sequence[Point], name: str, colour: str, place: float) -> None:
    x = np.arange(len(means)) + place
    middle, low, high = (np.array([point[k] for point in means]) for k in (5, 6, 7))
    axis.errorbar(x, middle, [middle - low, high - middle], fmt="o", capsize=3, color=colour, label=name)
    axis.set_xticks(range(len(means)), [str(point[2]) for point in means], rotation=30 if len(means) > 4 else 0)


def _scatter(axis: Axes, own: Rows, means: Sequence[Point], name: str, colour: str, place: float) -> None:
    x, y = ([float(row[key]) for row in own] for key in ("x", "value"))
    axis.scatter(x, y, s=10, alpha=0.6, color=colour, label=f"{name}, Spearman {_spearman(own):.2f}")


def _boxes(axis: Axes, own: Rows, means: Sequence[Point], name: str, colour: str, place: float) -> None:
    groups = [[float(row["value"]) for row in own if row["x"] == x] for x in dict.fromkeys(row["x"] for row in own)]
    drawn = axis.boxplot(groups, positions=np.arange(len(groups)) + place, widths=0.25, patch_artist=True)
    for box in drawn["boxes"]:
        box.set(facecolor=colour, alpha=0.5)
    drawn["boxes"][0].set_label(name)
    axis.set_xticks(range(len(groups)), [str(x) for x in dict.fromkeys(row["x"] for row in own)])


DRAWINGS: dict[str, Callable[[Any, Rows, Sequence[Point], str, str, float], None]] = {
    "lines": _lines,
    "groups": _groups,
    "scatter": _scatter,
    "boxes": _boxes,
}
"""Kinds of figures."""


def _spearman(own: Rows) -> float:
    x, y = ([float(row[key]) for row in own] for key in ("x", "value"))
    return float(stats.spearmanr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else float("nan")


def _correlations(rows: Rows) -> str:
    lines = [("", "mean x", "Spearman of x and value", "n")]
    for name in dict.fromkeys(row["series"] for row in rows):
        own = [row for row in rows if row["series"] == name]
        mean = np.mean([float(row["x"]) for row in own])
        lines.append((name, f"{mean:.3f}", f"{_spearman(own):.3f}", str(len(own))))
    return layout(lines)


def _means_text(points: Sequence[Point]) -> str:
    lines = [("panel", "series", "x", "mean", "n", "patients")]
    for panel, series, x, n, patients, mean, low, high in points:
        lines.append((panel or "-", series, str(x), f"{mean:.3f} [{low:.3f}, {high:.3f}]", str(n), str(patients)))
    return layout(lines)
