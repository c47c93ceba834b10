"""Charts by matplotlib as inline SVG: no font file, no script, no file beside it; the same input gives the same bytes.

Lengths are in points. A chart is 360 points wide and scales with the page, whose ``style.css`` sets the font.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monai_ext.evaluation.curves import Area, CurvePoint, draw_curves

MOST_DOTS = 150
Range = tuple[float, float]

_WIDTH, _MARGIN, _FOOT = 360, 14, 34
_LEVELS = (0, 5, -5, 10, -10)
"""Offsets of dots that follow each other along the axis, so that near ones do not hide each other."""
_DOT: dict[str, Any] = {"marker": "o", "markersize": 5.6, "mec": "white", "mew": 0.6, "alpha": 0.75}
_CROSS: dict[str, Any] = {"marker": "x", "markersize": 6.4, "mew": 1.6}

plain_text = rc_context({"svg.fonttype": "none", "text.parse_math": False, "font.sans-serif": ["DejaVu Sans"]})
"""Decorates what draws: texts stay texts in the SVG, and names with dollar signs are no formulas."""

_NOT_XML = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Dot:
    """One case: its name, its value, and whether its status is ok."""

    case: str
    value: float
    status: str = "ok"


@dataclass(frozen=True)
class Strip:
    """All cases of a method, with their mean and its confidence interval (None where no case has a value)."""

    name: str
    colour: str
    dots: tuple[Dot, ...]
    mean: float | None
    interval: Range | None


@dataclass(frozen=True)
class Interval:
    """One line of a forest plot: a difference with its confidence interval, and the colour of whom it favours."""

    name: str
    value: float
    low: float
    high: float
    colour: str


@plain_text
def strip_figure(title: str, strips: Sequence[Strip], limits: Range, unit: str, linked: bool = False) -> str:
    """Draw a row for each method: a dot a case over a box plot, the mean and its interval below.

    Args:
        title: what it shows, for those who do not see it.
        strips: one a method.
        limits: of the axis; a value beyond is drawn as a cross at its end.
        unit: below the axis.
        linked: join the dots of a case from row to row.
    """
    figure, axes = _panel(62 * len(strips), limits, unit)
    tips: dict[str, list[str]] = {}
    rows = [_strip(axes, strip, 62 * number + 33, tips) for number, strip in enumerate(strips)]
    for one, other in pairwise(rows if linked else ()):
        for case in one:
            if case in other:
                x, y = zip(one[case], other[case], strict=True)
                axes.plot(x, y, color="#9aa3b2", linewidth=0.7, alpha=0.6, zorder=1, gid="link")
    return to_svg(figure, title, tips)


@plain_text
def forest_figure(title: str, intervals: Sequence[Interval], limits: Range, unit: str) -> str:
    """Draw a row for each difference: its value and confidence interval, with a line at zero."""
    figure, axes = _panel(36 * len(intervals) + 4, limits, unit)
    axes.axvline(0, color="black", linewidth=1, gid="zero")
    for number, row in enumerate(intervals):
        _name(axes, row.name, 36 * number + 14)
        _mean(axes, row.value, (row.low, row.high), 36 * number + 28, row.colour)
    return to_svg(figure, title)


@plain_text
def curve_figure(title: str, points: Sequence[CurvePoint], areas: Sequence[Area], colours: Sequence[str]) -> str:
    """Draw what :func:`~monai_ext.evaluation.curves.draw_curves` does."""
    return to_svg(draw_curves(points, areas, colours), title)


def to_svg(figure: Figure, title: str, tips: Mapping[str, Sequence[str]] = {}) -> str:
    """Return a figure as ``<svg>``, as wide as what holds it on the page.

    Args:
        figure: what was drawn, its artists' gids in the form "class number".
        title: for those who do not see it; no other figure of the page has the same.
        tips: by gid, a text for each marker, which browsers show under the mouse.
    """
    file = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser finds other fonts
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(_NOT_XML.sub(b"", file.getvalue()))
    root.remove(root[0])  # a style sheet, which would hold for the whole page
    del root.attrib["width"], root.attrib["height"]
    root.attrib.update({"role": "img", "aria-label": title})
    for element in root.iter():
        if element.tag != f"{_SVG}text":
            element.text = None
        element.tail = None
    for group in root.iter(f"{_SVG}g"):
        gid = group.attrib.pop("id", "")  # other figures of the page have the same
        if gid and "_" not in gid:
            group.set("class", gid.split(" ")[0])
        for marker, tip in zip(group.iter(f"{_SVG}use"), tips.get(gid, ()), strict=False):
            group.set("style", marker.attrib.pop("style"))
            ElementTree.SubElement(marker, f"{_SVG}title").text = tip
    return ElementTree.tostring(root, encoding="unicode")


def _panel(height: float, limits: Range, unit: str) -> tuple[Figure, Axes]:
    """Return a figure and its axes, whose vertical positions are points from the top."""
    total = height + _FOOT
    figure = Figure(figsize=(_WIDTH / 72, total / 72))
    inner = (_MARGIN / _WIDTH, _FOOT / total, 1 - 2 * _MARGIN / _WIDTH, height / total)
    axes = figure.add_axes(inner, frameon=False, xlim=limits, ylim=(height, 0), yticks=(), axisbelow=True)
    axes.set_xlabel(unit, fontsize=11, color="#586174")
    axes.tick_params(length=0, labelsize=11, labelcolor="#586174")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color="#e6eaf0")
    return figure, axes


def _strip(axes: Axes, strip: Strip, middle: float, tips: dict[str, list[str]]) -> dict[str, tuple[float, float]]:
    """Draw a row, add the texts of its dots to ``tips``, and return the place of each case."""
    _name(axes, strip.name, middle - 19)
    if not strip.dots:
        return {}
    if strip.mean is not None and strip.interval is not None:
        _mean(axes, strip.mean, strip.interval, middle + 19, strip.colour)
    (box,) = boxplot_stats([dot.value for dot in strip.dots])
    line = {"color": strip.colour}
    axes.bxp(
        [box],
        positions=[middle],
        widths=24,
        orientation="horizontal",
        manage_ticks=False,
        patch_artist=True,
        showcaps=False,
        showfliers=False,
        boxprops={"facecolor": (strip.colour, 0.13), "edgecolor": (strip.colour, 0.55), "gid": "box"},
        medianprops=line | {"linewidth": 2, "gid": "median"},
        whiskerprops=line | {"gid": "whisker"},
    )
    low, high = axes.get_xlim()
    dots = _shown(strip.dots, box["med"], (box["whislo"], box["whishi"]))
    places = [(min(max(d.value, low), high), middle + _LEVELS[n % len(_LEVELS)]) for n, d in enumerate(dots)]
    plain = [dot.status == "ok" and low <= dot.value <= high for dot in dots]
    for name, wanted, style in (("dot", True, _DOT), ("cross", False, _CROSS)):
        gid, chosen = f"{name} {middle:g}", [n for n, is_plain in enumerate(plain) if is_plain == wanted]
        x, y = [places[n][0] for n in chosen], [places[n][1] for n in chosen]
        axes.plot(x, y, linestyle="", color=strip.colour, clip_on=False, gid=gid, **style)
        tips[gid] = [_tip(dots[n]) for n in chosen]
    return {dot.case: place for dot, place in zip(dots, places, strict=True)}


def _tip(dot: Dot) -> str:
    return f"{dot.case}: {dot.value:.4g}" + ("" if dot.status == "ok" else f" ({dot.status})")


def _shown(dots: Sequence[Dot], median: float, whiskers: Range) -> list[Dot]:
    """Return all cases by value, or of many those that are not ok or beyond the whiskers, the farthest."""
    if len(dots) > MOST_DOTS:
        far = [dot for dot in dots if dot.status != "ok" or not whiskers[0] <= dot.value <= whiskers[1]]
        dots = sorted(far, key=lambda dot: (-abs(dot.value - median), dot.case))[:MOST_DOTS]
    return sorted(dots, key=lambda dot: (dot.value, dot.case))


def _mean(axes: Axes, mean: float, interval: Range, y: float, colour: str) -> None:
    axes.hlines(y, *interval, color=colour, linewidth=2.2, gid="ci")
    axes.plot(mean, y, "D", ms=6, color=colour, mec="white", mew=0.8, clip_on=False, gid="mean")


def _name(axes: Axes, name: str, y: float, most: int = 46) -> None:
    """Write a name, its middle left out where it is too long for the width of the figure."""
    if len(name) > most:
        name = f"{name[: most * 2 // 3]}…{name[-(most // 3) + 1 :]}"
    axes.text(0, y, " ".join(name.split()), fontsize=12, transform=axes.get_yaxis_transform(), gid="name")
