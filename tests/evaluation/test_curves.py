"""Curves by hand: areas, means per step, thresholds, and what is refused."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
from PIL import Image

from monai_ext.errors import UserError
from monai_ext.evaluation.bootstrap import patient_bootstrap_ci
from monai_ext.evaluation.curves import (
    StepRow,
    area_under_curve,
    draw_curves,
    main,
    read_interaction,
    summarise_curves,
    write_interaction,
)


def curve(case, values, label="a", first=1, **fields):
    row = StepRow("toy", "method", case, case, "0", label, 1, "dice", None, "both_empty")
    return [
        replace(row, step=step, value=value, status="both_empty" if value is None else "ok", **fields)
        for step, value in enumerate(values, start=first)
    ]


def test_area_by_hand():
    assert area_under_curve([1, 2, 4], [0.5, 0.7, 0.9]) == pytest.approx((0.6 + 2 * 0.8) / 3)
    assert area_under_curve([3], [0.4]) == 0.4


def test_area_of_a_constant_is_the_constant():
    assert area_under_curve([1, 5, 6, 20], [0.3] * 4) == pytest.approx(0.3)


def test_interactive_curves_by_hand():
    rows = [*curve("p1", [0.2, 0.6, 0.8]), *curve("p2", [0.4, 0.8, 0.8]), *curve("p3", [None] * 3)]
    points, (area,) = summarise_curves(rows)
    assert [(p.step, p.n_cases, p.mean) for p in points] == [(1, 2, pytest.approx(0.3)), (2, 2, 0.7), (3, 2, 0.8)]
    assert (area.first_step, area.last_step, area.n_cases, area.n_undefined) == (1, 3, 2, 1)
    assert area.auc == pytest.approx((0.55 + 0.7) / 2)
    assert area.auc == pytest.approx(area_under_curve([1, 2, 3], [p.mean for p in points]))
    assert (area.ci_low, area.ci_high) == pytest.approx(patient_bootstrap_ci([0.55, 0.7], ["p1", "p2"]))


def test_a_curve_with_a_gap_is_left_out_and_counted():
    """The value of a step may be undefined where the structure is absent: such curves would end in nothing."""
    _, (area,) = summarise_curves([*curve("p1", [0.2, 0.6]), *curve("p2", [0.0, None])])
    assert (area.n_cases, area.n_undefined, area.auc) == (1, 1, pytest.approx(0.4))


def test_macro_is_the_mean_over_the_labels_of_a_case():
    rows = [
        *curve("p1", [0.2, 0.6]),
        *curve("p1", [0.4, 0.8], "b"),
        *curve("p2", [0.5, 0.5]),
        *curve("p2", [None] * 2, "b"),
    ]
    points, areas = summarise_curves(rows)
    macro = [p.mean for p in points if p.label == "macro"]
    assert macro == pytest.approx([(0.3 + 0.5) / 2, (0.7 + 0.5) / 2])
    assert [a.label for a in areas] == ["a", "b", "macro"]


def test_steps_to_a_threshold_by_hand():
    rows = [*curve("p1", [0.2, 0.6, 0.8]), *curve("p2", [0.7, 0.8, 0.8]), *curve("p3", [0.1, 0.2, 0.3])]
    (area,) = summarise_curves(rows, threshold=0.6)[1]
    assert (area.steps_to_threshold, area.n_not_reached) == (2.0, 1)
    assert summarise_curves(rows)[1][0].steps_to_threshold is None


def test_low_distances_reach_a_threshold():
    rows = [replace(row, metric="hd95_mm") for row in curve("p1", [9.0, 4.0, 2.0])]
    assert summarise_curves(rows, "hd95_mm", 5.0)[1][0].steps_to_threshold == 2
    assert summarise_curves(rows, "hd95_mm", 4.0)[1][0].steps_to_threshold == 2


def test_online_methods_have_one_step_a_case():
    """Two orders of the same three cases: a mean per place in the stream, and the mean of the stream."""
    rows = [
        *(row for i, case in enumerate("abc") for row in curve(case, [0.1 * (i + 1)], first=i, run="0")),
        *(row for i, case in enumerate("cab") for row in curve(case, [0.4], first=i, run="1")),
    ]
    points, (area,) = summarise_curves(rows, threshold=0.3)
    assert [p.mean for p in points] == pytest.approx([0.25, 0.3, 0.35])
    assert (area.n_cases, area.n_patients, area.auc) == (6, 3, pytest.approx((0.6 + 1.2) / 6))
    assert area.steps_to_threshold is None


def test_different_steps_are_refused():
    with pytest.raises(UserError, match="case p2 has no step 3 of label a"):
        summarise_curves([*curve("p1", [0.2, 0.6, 0.7]), *curve("p2", [0.2, 0.6])])


def test_a_step_given_twice_is_refused():
    with pytest.raises(UserError, match="case p1 has several rows of label a at step 1"):
        summarise_curves([*curve("p1", [0.2]), *curve("p1", [0.2])])


def test_a_metric_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"no rows of the metric nsd_2mm.*\(dice\)"):
        summarise_curves(curve("p1", [0.2]), "nsd_2mm")


def test_what_is_written_is_read(tmp_path):
    rows = [*curve("p, 1", [0.1 + 0.2, None])]
    write_interaction(tmp_path / "interaction.csv", rows)
    assert read_interaction(tmp_path / "interaction.csv") == rows


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("task,", "set,", "not an interaction.csv"),
        (",0.5,ok", ",0.5,fine", "line 2 has the unknown status 'fine'"),
        (",0.5,ok", ",,ok", "line 2 has the value ''"),
        (",0.5,ok", ",inf,ok", "line 2 has the value 'inf'"),
        (",1,dice", ",first,dice", "line 2 has the step 'first'"),
        (",1,dice", f",{'9' * 5000},dice", "not a whole number below"),
        (",0.5,ok", ",0.5,both_empty", "at status both_empty, which has none"),
        (",ok", "", "line 2 has 9 cells instead of 10"),
    ],
)
def test_other_tables_are_refused(old, new, sentence, tmp_path):
    path = tmp_path / "interaction.csv"
    write_interaction(path, curve("p1", [0.5]))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=sentence):
        read_interaction(path)


def test_no_table_at_all(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_interaction(tmp_path / "interaction.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="not an interaction"):
        read_interaction(tmp_path / "empty.csv")


@pytest.mark.slow
def test_command_writes_tables_and_plot(tmp_path, capsys):
    for name, values in (("one", [0.2, 0.6]), ("two", [0.4, 0.5])):
        write_interaction(tmp_path / name / "interaction.csv", [*curve("p1", values), *curve("p2", values, "b")])
    paths = [str(tmp_path / name / "interaction.csv") for name in ("one", "two")]
    main([*paths, "--output_dir", str(tmp_path / "out"), "--threshold", "0.5"])
    with (tmp_path / "out" / "auc.csv").open(newline="") as file:
        areas = list(csv.DictReader(file))
    assert {(row["algorithm"], row["label"]) for row in areas} == {
        (f"method ({path})", label) for path in paths for label in ("a", "b", "macro")
    }
    assert [float(row["auc"]) for row in areas[:1]] == [pytest.approx(0.4)]
    assert (tmp_path / "out" / "curves.csv").read_text().count("\n") == 1 + 2 * 3 * 2
    assert Image.open(tmp_path / "out" / "curves.png").size[0] > 600
    assert "2 patients: below 50" in capsys.readouterr().out


def test_areas_over_different_steps_are_warned_of(tmp_path, capsys):
    for name, values in (("one", [0.2, 0.6]), ("two", [0.4, 0.5, 0.6])):
        write_interaction(tmp_path / f"{name}.csv", curve("p1", values, algorithm=name))
    main([str(tmp_path / "one.csv"), str(tmp_path / "two.csv"), "--output_dir", str(tmp_path)])
    assert "areas over different steps (1-2, 1-3) are not comparable" in capsys.readouterr().out


def test_the_plot_has_a_panel_a_label_and_a_line_a_method():
    rows = [*curve("p1", [0.2, 0.6]), *curve("p1", [0.3, 0.6], "b"), *curve("p1", [0.5, 0.6], algorithm="other")]
    figure = draw_curves(*summarise_curves(rows))
    drawn = {axis.get_title(): len(axis.lines) for axis in figure.axes if axis.get_title()}
    assert drawn == {"a": 2, "b": 1, "macro": 1}
