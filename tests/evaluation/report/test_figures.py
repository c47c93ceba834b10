"""Figures: where things are drawn, and that they are well-formed whatever names they hold."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from monai_ext.evaluation.curves import Area, CurvePoint
from monai_ext.evaluation.report import figures
from monai_ext.evaluation.report.figures import Dot, Interval, Strip

NASTY = "<b>&\"'</svg>$\\frac$\n"
SVG = "{http://www.w3.org/2000/svg}"


def strip(values: list[float], name: str = "ours", status: str = "ok") -> Strip:
    mean = float(np.mean(values))
    dots = tuple(Dot(f"case{number}", value, status) for number, value in enumerate(values))
    return Strip(name, "#0072B2", dots, mean, (mean - 0.01, mean + 0.01))


def of_class(svg: str, name: str) -> list[Element]:
    return [group for group in ElementTree.fromstring(svg).iter(f"{SVG}g") if group.get("class") == name]


def markers(svg: str, name: str) -> list[tuple[float, float, str]]:
    """Place and tip of every marker of a class."""
    uses = [use for group in of_class(svg, name) for use in group.iter(f"{SVG}use")]
    return [(float(use.get("x", "")), float(use.get("y", "")), use.findtext(f"{SVG}title", "")) for use in uses]


def path(group: Element) -> list[float]:
    """Coordinates of the only path of a group: x, y, x, y, ..."""
    (line,) = group.iter(f"{SVG}path")
    return [float(number) for number in re.findall(r"-?[\d.]+", line.get("d", ""))]


def at(share: float) -> float:
    """Horizontal position of a share of the axis."""
    return 14 + share * 332


def test_a_dot_stands_at_its_value_and_tells_its_case():
    dots = markers(figures.strip_figure("t", [strip([0.0, 0.25, 1.0])], (0.0, 1.0), "Dice"), "dot")
    assert [x for x, _, _ in dots] == pytest.approx([at(0), at(0.25), at(1)], abs=1e-5)
    assert [tip for _, _, tip in dots] == ["case0: 0", "case1: 0.25", "case2: 1"]


def test_box_is_from_quartile_to_quartile_with_whiskers_to_the_last_values():
    values = [0.2, 0.4, 0.6, 0.8]
    svg = figures.strip_figure("t", [strip(values)], (0.0, 1.0), "Dice")
    (box,), (median,), whiskers = of_class(svg, "box"), of_class(svg, "median"), of_class(svg, "whisker")
    first, middle, third = np.quantile(values, [0.25, 0.5, 0.75])
    assert sorted(set(path(box)[::2])) == pytest.approx([at(first), at(third)], abs=1e-5)
    assert path(median)[::2] == pytest.approx([at(middle)] * 2, abs=1e-5)
    assert [path(one)[2] for one in whiskers] == pytest.approx([at(0.2), at(0.8)], abs=1e-5)


def test_mean_and_interval_stand_at_their_values():
    svg = figures.strip_figure("t", [strip([0.2, 0.6])], (0.0, 1.0), "Dice")
    ((x, _, _),) = markers(svg, "mean")
    (interval,) = of_class(svg, "ci")
    assert x == pytest.approx(at(0.4), abs=1e-5)
    assert path(interval)[::2] == pytest.approx([at(0.39), at(0.41)], abs=1e-5)


def test_what_is_not_ok_or_beyond_the_axis_is_a_cross():
    strips = [strip([1.0, 400.0]), strip([2.0], status="pred_empty")]
    svg = figures.strip_figure("t", strips, (0.0, 10.0), "mm")
    crosses = markers(svg, "cross")
    assert [tip for _, _, tip in crosses] == ["case1: 400", "case0: 2 (pred_empty)"]
    assert [x for x, _, _ in crosses] == pytest.approx([at(1), at(0.2)], abs=1e-5)
    assert [tip for _, _, tip in markers(svg, "dot")] == ["case0: 1"]


def test_dots_of_one_value_do_not_hide_each_other():
    dots = markers(figures.strip_figure("t", [strip([0.5] * 5)], (0.0, 1.0), "Dice"), "dot")
    assert len({y for _, y, _ in dots}) == 5


def test_lines_join_the_cases_that_both_methods_have():
    strips = [strip([0.1, 0.2, 0.3]), strip([0.6, 0.5])]
    assert not of_class(figures.strip_figure("t", strips, (0.0, 1.0), "Dice"), "link")
    links = of_class(figures.strip_figure("t", strips, (0.0, 1.0), "Dice", linked=True), "link")
    assert [path(link)[::2] for link in links] == [
        pytest.approx([at(0.1), at(0.6)], abs=1e-5),
        pytest.approx([at(0.2), at(0.5)], abs=1e-5),
    ]


def test_of_many_cases_those_far_from_the_box_are_drawn():
    values = np.random.default_rng(0).normal(0.5, 0.05, 2000).clip(0, 1).tolist()
    values[7] = 0.01
    dots = markers(figures.strip_figure("t", [strip(values)], (0.0, 1.0), "Dice"), "dot")
    assert 0 < len(dots) <= figures.MOST_DOTS
    assert dots[0] == (pytest.approx(at(0.01), abs=1e-5), 33.0, "case7: 0.01")
    first, third = np.quantile(values, [0.25, 0.75])
    reach = 1.5 * (third - first)
    assert len(dots) == sum(not first - reach <= value <= third + reach for value in values)


def test_a_label_without_values_leaves_an_empty_row():
    svg = figures.strip_figure("t", [Strip("ours", "#000", (), None, None)], (0.0, 1.0), "Dice")
    assert not of_class(svg, "box")
    assert ["".join(name.itertext()) for name in of_class(svg, "name")] == ["ours"]


def test_forest_stands_at_its_differences():
    svg = figures.forest_figure("t", [Interval("liver", 0.5, 0.25, 0.75, "#000")], (-1.0, 1.0), "Dice")
    ((x, _, _),), (interval,), (zero,) = markers(svg, "mean"), of_class(svg, "ci"), of_class(svg, "zero")
    assert x == pytest.approx(at(0.75), abs=1e-5)
    assert path(interval)[::2] == pytest.approx([at(0.625), at(0.875)], abs=1e-5)
    assert path(zero)[::2] == pytest.approx([at(0.5)] * 2)


def curve(name: str, values: list[float]) -> tuple[list[CurvePoint], Area]:
    points = [CurvePoint("toy", name, "dice", "liver", n, 3, 3, v, v - 0.1, v + 0.1) for n, v in enumerate(values)]
    return points, Area("toy", name, "dice", "liver", 0, len(values) - 1, 3, 3, 0, 0.5, 0.4, 0.6)


def test_curves_go_through_their_points_in_their_colours():
    ours, other = curve("ours", [0.2, 0.4, 0.6]), curve("other", [0.2, 0.6, 0.2])
    svg = figures.curve_figure("t", [*ours[0], *other[0]], [ours[1], other[1]], ["#112233", "#445566"])
    for colour, shares in (("#112233", [0, 0.5, 1]), ("#445566", [0, 1, 0])):
        (line,) = [
            use
            for group in ElementTree.fromstring(svg).iter(f"{SVG}g")
            if len(use := [u for u in group.findall(f"{SVG}use") if colour in u.get("style", "")]) == 3
        ]
        x, y = ([float(mark.get(name, "")) for mark in line] for name in "xy")
        assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=1e-4)
        assert x[0] < x[1]
        assert [y[0] - height for height in y] == pytest.approx([share * (y[0] - min(y)) for share in shares], abs=1e-4)


def test_same_input_same_bytes_and_no_identifier_is_in_two_figures():
    first, again, other = (figures.strip_figure(title, [strip([0.1])], (0, 1), "Dice") for title in "aab")
    identifiers = [set(re.findall(r'\bid="(\w+)"', svg)) for svg in (first, other)]
    assert first == again
    assert identifiers[0]
    assert not identifiers[0] & identifiers[1]


def test_names_cannot_break_out():
    one = Strip(NASTY * 5, "#000000", (Dot(NASTY, 0.5),), 0.5, (0.4, 0.6))
    points, area = curve(NASTY, [0.1, 0.2])
    for svg in (
        figures.strip_figure(NASTY, [one], (0, 1), NASTY),
        figures.forest_figure(NASTY, [Interval(NASTY, 0.5, 0.4, 0.6, "#000")], (0, 1), NASTY),
        figures.curve_figure(NASTY, points, [area], ["#000"]),
    ):
        assert ElementTree.fromstring(svg).get("aria-label") == NASTY
        assert "<b>" not in svg


@pytest.mark.slow
def test_control_characters_are_left_out():
    svg = figures.strip_figure("t", [strip([0.5], name="a\x01\nb")], (0, 1), "D\x02ice")
    assert ["".join(name.itertext()) for name in of_class(svg, "name")] == ["a b"]
    assert ">Dice<" in svg


def test_names_in_any_script_are_texts_and_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = figures.strip_figure("肝臓", [strip([0.5], name="کبد 肝臓 $a$")], (0, 1), "Dice")
    (name,) = of_class(svg, "name")
    assert "".join(name.itertext()) == "کبد 肝臓 $a$"
