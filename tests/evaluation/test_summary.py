"""summary.json by hand, and the table of the terminal."""

from __future__ import annotations

import json

import pytest

from monai_ext.evaluation.bootstrap import patient_bootstrap_ci
from monai_ext.evaluation.summary import format_table, summarise, write_summary


@pytest.fixture
def rows(make_row):
    """Label a: 1.0, 0.5, 0 (missed), none. Label b: 0.2."""
    return [
        make_row("p1v1", "a", 1.0, patient="p1"),
        make_row("p1v2", "a", 0.5, patient="p1", visit="2"),
        make_row("p2v1", "a", 0.0, patient="p2", status="pred_empty"),
        make_row("p2v10", "a", None, patient="p2", visit="10"),
        make_row("p1v1", "b", 0.2, patient="p1"),
    ]


def test_statistics_by_hand(rows):
    of_a = summarise(rows, draws=200)["labels"]["a"]["dice"]
    assert (of_a["n"], of_a["n_defined"], of_a["n_patients"]) == (4, 3, 2)
    assert of_a["n_by_status"] == {
        "ok": 2, "pred_empty": 1, "ref_empty": 0, "both_empty": 1, "missing": 0, "failed": 0
    }  # fmt: skip
    assert of_a["mean"] == pytest.approx(0.5)
    assert of_a["std"] == pytest.approx(0.5)
    assert (of_a["q1"], of_a["median"], of_a["q3"]) == pytest.approx((0.25, 0.5, 0.75))
    interval = patient_bootstrap_ci([1.0, 0.5, 0.0], ["p1", "p1", "p2"], draws=200)
    assert (of_a["ci_low"], of_a["ci_high"]) == pytest.approx(interval)


def test_macro_weighs_labels_and_micro_rows(rows):
    summary = summarise(rows, draws=50)
    assert summary["macro"]["dice"]["mean"] == pytest.approx((0.5 + 0.2) / 2)
    assert summary["micro"]["dice"]["mean"] == pytest.approx((1.0 + 0.5 + 0.0 + 0.2) / 4)


def test_visits_are_in_order_of_number(rows):
    visits = summarise(rows, draws=50)["visits"]
    assert list(visits) == ["1", "2", "10"]
    assert visits["1"]["labels"]["a"]["dice"]["mean"] == pytest.approx(0.5)
    assert visits["10"]["labels"]["a"]["dice"]["mean"] is None


def test_one_value_has_no_spread(rows):
    assert summarise(rows, draws=50)["labels"]["b"]["dice"]["std"] is None


def test_definitions_stand_in_the_file(rows, tmp_path):
    write_summary(tmp_path / "summary.json", summarise(rows, draws=50, seed=3))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["undefined_values"]["policy"] == "worst_value"
    assert "larger" in summary["definitions"]["hd95"]
    interval = summary["confidence_interval"]
    assert (interval["unit"], interval["draws"], interval["seed"]) == ("patient", 50, 3)
    assert any("2 patients" in text for text in summary["warnings"])
    assert "a: 1 pred_empty, 1 both_empty of 4 cases" in summary["warnings"]


def test_cases_without_patient_are_told(make_row):
    warnings = summarise([make_row("p1", "a", 1.0, patient="")], draws=10)["warnings"]
    assert any("without a patient" in text for text in warnings)


def test_two_algorithms_are_not_one_mean(make_row):
    with pytest.raises(ValueError, match="one algorithm"):
        summarise([make_row("p1", "a", 1.0), make_row("p1", "a", 0.5, algorithm="other")])


def test_table_has_a_line_per_visit_and_label(rows):
    lines = format_table(rows, summarise(rows, draws=50)).splitlines()
    cells = [line.split() for line in lines]
    assert ["1", "a", "2", "0.500", "[0.000,", "1.000]", "1", "pred_empty"] in cells
    assert ["10", "a", "0", "-", "1", "both_empty"] in cells
    assert [line[:2] for line in cells if line and line[0] == "all"] == [
        ["all", "a"],
        ["all", "b"],
        ["all", "macro"],
    ]
    assert any(line.startswith("hd95: 95th percentile") for line in lines)
