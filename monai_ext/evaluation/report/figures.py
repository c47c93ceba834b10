"""Draws as inline SVG, whose colours and line widths stand in ``style.css``: no font, no script, no file beside it.

Lengths are in units of the drawing, which is 360 wide and scales with the page. Everything is a function of its
arguments, so that the same evaluation gives the same bytes. Texts are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH = 360.0
LEFT, RIGHT = 10.0, 350.0
ROW = 62.0
MOST_DOTS = 150


@dataclass(frozen=True)
class Dot:
    """One case: its name, its value, and whether its status is ok."""

    case: str
    value: float
    status: str = "ok"


@dataclass(frozen=True)
class Strip:
    """All cases of a method, with the statistics that are drawn beside them.

    Attributes:
        name: of the method.
        colour: as CSS writes it.
        dots: the cases.
        mean: of the values, as are the next five; all are None where there are none.
        interval: lower and upper end of the mean's confidence interval.
        median: half of the cases are below.
        quartiles: lower and upper one.
    """

    name: str
    colour: str
    dots: tuple[Dot, ...]
    mean: float | None
    interval: tuple[float, float] | None
    median: float | None
    quartiles: tuple[float, float] | None


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from ``low`` to ``high``; values beyond are drawn at its ends."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return the position of a value."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return LEFT + share * (RIGHT - LEFT)

    def holds(self, value: float) -> bool:
        """Whether a value is not beyond the ends."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Interval:
    """One line of a forest plot: a difference with its confidence interval, and the colour of whom it favours."""

    name: str
    value: float
    low: float
    high: float
    colour: str


@dataclass(frozen=True)
class Line:
    """One line of a diagram of steps: (step, value) in the order of the steps."""

    name: str
    colour: str
    points: tuple[tuple[float, float], ...]


def nice_axis(low: float, high: float, ends_on_ticks: bool = True, ticks: int = 5) -> Axis:
    """Return an axis that holds [low, high], with about as many ticks as asked for at 1, 2 or 5 times 10^n."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = _nice_step((high - low) / ticks)
    first = math.floor(low / step + 1e-9) if ends_on_ticks else math.ceil(low / step - 1e-9)
    last = math.ceil(high / step - 1e-9) if ends_on_ticks else math.floor(high / step + 1e-9)
    marks = tuple(round(number * step, 10) for number in range(first, last + 1))
    return Axis(marks[0], marks[-1], marks) if ends_on_ticks else Axis(low, high, marks)


def strip_figure(title: str, strips: Sequence[Strip], axis: Axis, unit: str, linked: bool = False) -> str:
    """Draw a row for each method: a dot a case over the box of the quartiles, mean and its interval below.

    Args:
        title: what it shows, for those who do not see it.
        strips: one a method.
        axis: of the values.
        unit: below the axis.
        linked: join the dots of a case from row to row.
    """
    rows = [_placed(strip, axis, number) for number, strip in enumerate(strips)]
    height = ROW * len(strips) + 34.0
    parts = [_grid(axis, height - 34.0, unit)]
    if linked:
        parts += [_links(one, other) for one, other in pairwise(rows)]
    parts += [_strip(strip, axis, number, rows[number]) for number, strip in enumerate(strips)]
    return _svg(title, height, parts)


def forest_figure(title: str, intervals: Sequence[Interval], axis: Axis, unit: str) -> str:
    """Draw a row for each difference: its value and confidence interval, with a line at zero."""
    height = 36.0 * len(intervals) + 38.0
    zero = axis.at(0.0)
    parts = [
        _grid(axis, height - 34.0, unit),
        f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="2" y2="{height - 34:.1f}"/>',
    ]
    for number, row in enumerate(intervals):
        top = 36.0 * number
        low, high, middle, y = axis.at(row.low), axis.at(row.high), axis.at(row.value), top + 28.0
        parts.append(
            f'<g style="--c:{row.colour}"><text class="name" x="{LEFT}" y="{top + 14:.1f}">{_short(row.name)}</text>'
            f'<line class="ci" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>{_diamond(middle, y)}</g>'
        )
    return _svg(title, height, parts)


def curve_figure(title: str, lines: Sequence[Line], axis: Axis, steps: Axis, unit: str) -> str:
    """Draw value against step, a line a method; values on the vertical axis, steps on the horizontal one."""
    top, bottom, left = 12.0, 192.0, 40.0

    def x(step: float) -> float:
        return left + (RIGHT - left) * (step - steps.low) / (steps.high - steps.low)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low)

    parts = [
        f'<line class="grid" x1="{left}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick end" x="{left - 5}" y="{y(tick) + 4:.1f}">{tick:g}</text>'
        for tick in axis.ticks
    ]
    parts += [f'<text class="tick" x="{x(t):.1f}" y="{bottom + 15}">{t:g}</text>' for t in steps.ticks]
    parts.append(f'<text class="unit" x="{(left + RIGHT) / 2}" y="{bottom + 29}">{escape(unit)}</text>')
    height = bottom + 36.0
    for line in lines:
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line.points)
        marks = "".join(f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.6"/>' for s, v in line.points)
        parts.append(f'<g class="curve" style="--c:{line.colour}"><polyline points="{path}"/>{marks}')
        parts.append(f'<text class="name" x="{left}" y="{height + 12:.1f}">{_short(line.name, 48)}</text>')
        parts.append(f'<line class="ci" x1="{LEFT}" x2="{left - 8}" y1="{height + 8:.1f}" y2="{height + 8:.1f}"/></g>')
        height += 17.0
    return _svg(title, height + 2.0, parts)


# Pieces


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    box = f"0 0 {WIDTH:.0f} {height:.0f}"
    return f'<svg role="img" viewBox="{box}" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _grid(axis: Axis, bottom: float, unit: str) -> str:
    parts = []
    for tick in axis.ticks:
        x = axis.at(tick)
        anchor = " start" if x < LEFT + 8 else " end" if x > RIGHT - 8 else ""
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{bottom:.1f}"/>')
        parts.append(f'<text class="tick{anchor}" x="{x:.1f}" y="{bottom + 14:.1f}">{_tick(tick)}</text>')
    parts.append(f'<text class="unit" x="{WIDTH / 2:.0f}" y="{bottom + 29:.1f}">{escape(unit)}</text>')
    return "".join(parts)


def _placed(strip: Strip, axis: Axis, number: int) -> dict[tuple[str, int], tuple[float, float, Dot]]:
    """Place the dots of a row so that few hide each other; keyed by case and how often it came before."""
    middle = ROW * number + 33.0
    placed: dict[tuple[str, int], tuple[float, float, Dot]] = {}
    near: list[tuple[float, int]] = []
    for dot in sorted(_shown(strip), key=lambda dot: (dot.value, dot.case)):
        x = axis.at(dot.value)
        near = [(other, level) for other, level in near if x - other < 6.5]
        taken = {level for _, level in near}
        level = next((free for free in range(5) if free not in taken), len(placed) % 5)
        near.append((x, level))
        shift = (level + 1) // 2 * 5.0 * (1 if level % 2 else -1)
        times = sum(case == dot.case for case, _ in placed) if len(placed) <= MOST_DOTS else 0
        placed[dot.case, times] = (x, middle + shift, dot)
    return placed


def _shown(strip: Strip) -> list[Dot]:
    """Return all cases, or of many those that are not ok or beyond 1.5 times the range of the quartiles."""
    if len(strip.dots) <= MOST_DOTS or strip.quartiles is None or strip.median is None:
        return list(strip.dots[:MOST_DOTS])
    low, high = _whiskers(strip)
    beyond = [dot for dot in strip.dots if dot.status != "ok" or not low <= dot.value <= high]
    median = strip.median
    return sorted(beyond, key=lambda dot: (-abs(dot.value - median), dot.case))[:MOST_DOTS]


def _whiskers(strip: Strip) -> tuple[float, float]:
    """Return the lowest and the highest value within 1.5 times the range of the quartiles beyond these."""
    first, third = strip.quartiles or (0.0, 0.0)
    reach = 1.5 * (third - first)
    inside = [dot.value for dot in strip.dots if first - reach <= dot.value <= third + reach]
    return min(inside, default=first), max(inside, default=third)


def _strip(strip: Strip, axis: Axis, number: int, placed: dict[tuple[str, int], tuple[float, float, Dot]]) -> str:
    top = ROW * number
    parts = [
        f'<g style="--c:{strip.colour}"><text class="name" x="{LEFT}" y="{top + 14:.1f}">{_short(strip.name)}</text>'
    ]
    if strip.quartiles is not None and strip.median is not None:
        first, third, median = (axis.at(value) for value in (*strip.quartiles, strip.median))
        parts.append(
            f'<rect class="box" x="{first:.1f}" y="{top + 21:.1f}" width="{third - first:.1f}" height="24"/>'
            f'<line class="median" x1="{median:.1f}" x2="{median:.1f}" y1="{top + 21:.1f}" y2="{top + 45:.1f}"/>'
        )
        if len(strip.dots) > MOST_DOTS:
            low, high = (axis.at(value) for value in _whiskers(strip))
            y = top + 33.0
            parts.append(f'<path class="whisker" d="M{low:.1f} {y:.1f}H{first:.1f}M{third:.1f} {y:.1f}H{high:.1f}"/>')
    parts += [_dot(x, y, dot, axis) for x, y, dot in placed.values()]
    if strip.mean is not None and strip.interval is not None:
        low, high, y = axis.at(strip.interval[0]), axis.at(strip.interval[1]), top + 52.0
        parts.append(f'<line class="ci" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_diamond(axis.at(strip.mean), y))
    return "".join([*parts, "</g>"])


def _dot(x: float, y: float, dot: Dot, axis: Axis) -> str:
    told = f"{dot.case}: {dot.value:.4g}" + ("" if dot.status == "ok" else f" ({dot.status})")
    title = f"<title>{escape(told)}</title>"
    if dot.status != "ok" or not axis.holds(dot.value):
        shape = f"M{x - 3.2:.1f} {y - 3.2:.1f}l6.4 6.4m0 -6.4l-6.4 6.4"
        return f'<path class="not-ok" d="{shape}">{title}</path>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.8">{title}</circle>'


def _links(
    one: dict[tuple[str, int], tuple[float, float, Dot]], other: dict[tuple[str, int], tuple[float, float, Dot]]
) -> str:
    lines = "".join(
        f"M{x:.1f} {y:.1f}L{other[case][0]:.1f} {other[case][1]:.1f}"
        for case, (x, y, _) in one.items()
        if case in other
    )
    return f'<path class="link" d="{lines}"/>' if lines else ""


def _diamond(x: float, y: float) -> str:
    return f'<path class="mean" d="M{x - 4.5:.1f} {y:.1f}l4.5 -4.5l4.5 4.5l-4.5 4.5z"/>'


def _short(name: str, most: int = 46) -> str:
    """Escape a name, its middle left out where it is too long for a line."""
    if len(name) > most:
        head = most * 2 // 3
        name = f"{name[:head]}…{name[len(name) - (most - head - 1) :]}"
    return escape(name)


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
