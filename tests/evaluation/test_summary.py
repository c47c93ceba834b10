"""summary.json by hand, and the table of the terminal."""

from __future__ import annotations

import json

import numpy as np
import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation import summary as summary_module
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


def test_every_interval_is_of_the_same_cohorts(rows):
    """Patient p2 has no value of label b; cohorts of p2 alone have none to average, and do not count."""
    generator = np.random.default_rng(4)
    cohorts = [["p1p2"[2 * i : 2 * i + 2] for i in generator.integers(0, 2, size=2)] for _ in range(60)]
    values = {"a": {"p1": [1.0, 0.5], "p2": [0.0]}, "b": {"p1": [0.2], "p2": []}}
    means = {label: [] for label in "ab"}
    macro = []
    for cohort in cohorts:
        drawn = {label: [value for name in cohort for value in values[label][name]] for label in "ab"}
        for label in "ab":
            means[label] += [np.mean(drawn[label])] if drawn[label] else []
        macro.append(np.mean([np.mean(found) for found in drawn.values() if found]))
    found = summarise(rows, draws=60, seed=4)
    for label in "ab":
        of_label = found["labels"][label]["dice"]
        assert [of_label["ci_low"], of_label["ci_high"]] == pytest.approx(np.quantile(means[label], [0.025, 0.975]))
    ends = [found["macro"]["dice"]["ci_low"], found["macro"]["dice"]["ci_high"]]
    assert ends == pytest.approx(np.quantile(macro, [0.025, 0.975]))


def test_the_order_of_rows_changes_no_digit(make_row):
    rng = np.random.default_rng(0)
    rows = [
        make_row(f"c{number}", "a", rng.random(), patient=f"p{number // 3}", visit=str(number % 3), fold="1")
        for number in range(60)
    ]
    for levels in ("case", "visit,patient", "visit,patient,fold"):
        expected = summarise(rows, draws=50, mean_of=levels)
        assert summarise(rows[::-1], draws=50, mean_of=levels) == expected


def test_intervals_do_not_depend_on_how_many_are_calculated_at_once(rows, monkeypatch):
    expected = summarise(rows, draws=50)
    monkeypatch.setattr(summary_module, "COLUMNS_AT_A_TIME", 1)
    assert summarise(rows, draws=50) == expected


def test_one_patient_s_interval_is_the_mean(make_row):
    rows = [make_row(f"c{number}", "a", value, patient="p") for number, value in enumerate((0.1, 0.7, 1 / 3))]
    of_a = summarise(rows, draws=50)["labels"]["a"]["dice"]
    assert of_a["ci_low"] == of_a["mean"] == of_a["ci_high"]


def test_a_protocol_s_mean_is_of_its_own_levels(rows):
    summary = summarise(rows, draws=50, mean_of="patient")
    of_a = summary["labels"]["a"]["dice"]
    assert (of_a["n_defined"], of_a["n_units"]) == (3, 2)
    assert of_a["mean"] == pytest.approx((0.75 + 0.0) / 2)
    assert of_a["std"] == pytest.approx(np.std([0.75, 0.0], ddof=1))
    assert (summary["mean_of"], summary["mean_of_levels"]) == ("cases -> patients", ["case", "patient"])
    assert "mean over cases -> patients [95% CI" in format_table(rows, summary)


def test_classes_are_averaged_within_folds(make_row):
    """Few-shot: scan -> class -> fold; the macro mean takes the classes last."""
    values = [("0", "a", 0.2), ("0", "a", 0.4), ("0", "b", 0.8), ("1", "a", 0.1)]
    rows = [make_row(f"s{number}", label, value, fold=fold) for number, (fold, label, value) in enumerate(values)]
    summary = summarise(rows, draws=20, mean_of="label,fold")
    assert summary["micro"]["dice"]["mean"] == pytest.approx(((0.3 + 0.8) / 2 + 0.1) / 2)
    assert summary["macro"]["dice"]["mean"] == pytest.approx(((0.3 + 0.1) / 2 + 0.8) / 2)
    assert summary["labels"]["a"]["dice"]["mean"] == pytest.approx((0.3 + 0.1) / 2)


def test_a_level_that_the_table_lacks_is_refused(rows):
    with pytest.raises(UserError, match="no case has a fold"):
        summarise(rows, draws=10, mean_of="fold")


def test_cases_that_lack_a_level_are_told(make_row):
    rows = [make_row(f"c{number}", "a", 0.5, visit="1" if number else "") for number in range(3)]
    warnings = " ".join(summarise(rows, draws=10, mean_of="visit")["warnings"])
    assert "mean_of visit: 1 of 3 cases name no visit" in warnings
    assert "name no visit" not in " ".join(summarise(rows, draws=10)["warnings"])


def test_frames_of_a_video_are_no_visits(make_row):
    rows = [make_row(f"f{number}", "a", 0.5, patient="video", visit=str(number)) for number in range(11)]
    summary = summarise(rows, draws=10)
    assert summary["visits"] == {}
    assert any("11 different visits" in text for text in summary["warnings"])
    assert list(summarise(rows[:10], draws=10)["visits"]) == [str(number) for number in range(10)]


def test_remarks_are_taken_along(rows):
    summary = summarise(rows, draws=10, remarks={"spacing_source": "a ruler", "warnings": ["mind the gap"]})
    assert summary["spacing_source"] == "a ruler"
    assert summary["warnings"][0] == "mind the gap"
    assert any("2 patients" in text for text in summary["warnings"])


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
