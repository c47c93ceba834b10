"""Figures: where things are drawn, and that they are well-formed whatever names they hold."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_ext.evaluation.report import figures
from monai_ext.evaluation.report.figures import Axis, Dot, Interval, Line, Strip

NASTY = "<b>&\"'</svg>"


def strip(values: list[float], name: str = "ours", status: str = "ok") -> Strip:
    first, median, third = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    mean = float(np.mean(values))
    dots = tuple(Dot(f"case{number}", value, status) for number, value in enumerate(values))
    return Strip(name, "#0072B2", dots, mean, (mean - 0.01, mean + 0.01), median, (first, third))


def drawn(svg: str) -> Element:
    return ElementTree.fromstring(svg)


def of_class(root: Element, name: str) -> list[Element]:
    return [element for element in root.iter() if element.get("class") == name]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_axis_holds_its_range_on_round_ticks(low, width):
    axis = figures.nice_axis(low, low + width)
    assert axis.low <= low + 1e-6 * width
    assert axis.high >= low + width - 1e-6 * width
    assert 2 <= len(axis.ticks) <= 9
    step = axis.ticks[1] - axis.ticks[0]
    power = 10.0 ** math.floor(math.log10(step * 1.000001))
    rounding = 4 * math.ulp(abs(low) + width)  # of a difference between two ticks
    assert min(abs(step - nice * power) for nice in (1, 2, 5, 10)) < 1e-3 * step + rounding


def test_axis_of_one_value():
    axis = figures.nice_axis(3.0, 3.0)
    assert axis.low < 3.0 < axis.high


def test_a_dot_stands_at_its_value_and_tells_its_case():
    axis = Axis(0.0, 1.0, (0.0, 0.5, 1.0))
    root = drawn(figures.strip_figure("t", [strip([0.0, 0.25, 1.0])], axis, "Dice"))
    dots = of_class(root, "dot")
    assert [float(dot.get("cx", "")) for dot in dots] == pytest.approx([10.0, 95.0, 350.0])
    assert [dot[0].text for dot in dots] == ["case0: 0", "case1: 0.25", "case2: 1"]


def test_box_is_from_quartile_to_quartile():
    axis = Axis(0.0, 1.0, (0.0, 1.0))
    root = drawn(figures.strip_figure("t", [strip([0.2, 0.4, 0.6, 0.8])], axis, "Dice"))
    (box,), (median,) = of_class(root, "box"), of_class(root, "median")
    assert float(box.get("x", "")) == pytest.approx(axis.at(0.35), abs=0.06)
    assert float(box.get("width", "")) == pytest.approx(axis.at(0.65) - axis.at(0.35), abs=0.06)
    assert float(median.get("x1", "")) == pytest.approx(axis.at(0.5), abs=0.06)


def test_what_is_not_ok_or_beyond_the_axis_is_a_cross():
    axis = Axis(0.0, 10.0, (0.0, 10.0))
    strips = [strip([1.0, 400.0]), strip([2.0], status="pred_empty")]
    root = drawn(figures.strip_figure("t", strips, axis, "mm"))
    assert [cross[0].text for cross in of_class(root, "not-ok")] == ["case1: 400", "case0: 2 (pred_empty)"]
    assert len(of_class(root, "dot")) == 1


def test_dots_of_one_value_do_not_hide_each_other():
    root = drawn(figures.strip_figure("t", [strip([0.5] * 5)], Axis(0.0, 1.0, (0.0, 1.0)), "Dice"))
    assert len({dot.get("cy") for dot in of_class(root, "dot")}) == 5


def test_lines_join_the_cases_that_both_methods_have():
    axis = Axis(0.0, 1.0, (0.0, 1.0))
    strips = [strip([0.1, 0.2, 0.3]), strip([0.5, 0.6])]
    assert not of_class(drawn(figures.strip_figure("t", strips, axis, "Dice")), "link")
    (links,) = of_class(drawn(figures.strip_figure("t", strips, axis, "Dice", linked=True)), "link")
    assert links.get("d", "").count("M") == 2


def test_of_many_cases_those_far_from_the_box_are_drawn():
    values = np.random.default_rng(0).normal(0.5, 0.05, 2000).clip(0, 1).tolist()
    values[7] = 0.01
    root = drawn(figures.strip_figure("t", [strip(values)], Axis(0.0, 1.0, (0.0, 1.0)), "Dice"))
    assert of_class(root, "whisker")
    assert 0 < len(of_class(root, "dot")) <= figures.MOST_DOTS
    assert "case7: 0.01" in [dot[0].text for dot in of_class(root, "dot")]


def test_a_label_without_values_leaves_an_empty_row():
    empty = Strip("ours", "#000", (), None, None, None, None)
    root = drawn(figures.strip_figure("t", [empty], Axis(0.0, 1.0, (0.0, 1.0)), "Dice"))
    assert not of_class(root, "box")
    assert [name.text for name in of_class(root, "name")] == ["ours"]


def test_forest_stands_at_its_differences():
    axis = Axis(-1.0, 1.0, (-1.0, 0.0, 1.0))
    root = drawn(figures.forest_figure("t", [Interval("liver", 0.5, 0.25, 0.75, "#000")], axis, "Dice"))
    (line,), (zero,) = of_class(root, "ci"), of_class(root, "zero")
    assert float(zero.get("x1", "")) == 180.0
    assert [float(line.get(end, "")) for end in ("x1", "x2")] == pytest.approx([222.5, 307.5])


def test_curve_goes_through_its_points():
    line = Line("ours", "#000", ((0.0, 0.0), (2.0, 1.0)))
    axes = Axis(0.0, 1.0, (0.0, 1.0)), Axis(0.0, 2.0, (0.0, 1.0, 2.0))
    root = drawn(figures.curve_figure("t", [line], *axes, "step"))
    (path,) = root.iter("polyline")
    assert path.get("points") == "40.0,192.0 350.0,12.0"


def test_names_cannot_break_out():
    one = strip([0.5, 0.6], name=NASTY * 5)
    one = Strip(one.name, one.colour, (Dot(NASTY, 0.5),), 0.5, (0.4, 0.6), 0.5, (0.5, 0.5))
    axis = Axis(0.0, 1.0, (0.0, 1.0))
    for svg in (
        figures.strip_figure(NASTY, [one], axis, NASTY),
        figures.forest_figure(NASTY, [Interval(NASTY, 0.5, 0.4, 0.6, "#000")], axis, NASTY),
        figures.curve_figure(NASTY, [Line(NASTY, "#000", ((0.0, 0.5),))], axis, axis, NASTY),
    ):
        assert drawn(svg).get("aria-label") == NASTY
        assert "<b>" not in svg
