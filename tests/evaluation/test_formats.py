"""What challengeR, nnU-Net and grand-challenge.org read, against the masks and by hand."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from monai_ext.evaluation.case_metrics import case_rows, voxel_counts
from monai_ext.evaluation.formats import (
    CaseDetail,
    challenger_lines,
    grand_challenge_metrics,
    nnunet_summary,
    write_challenger,
)
from monai_ext.evaluation.summary import summarise

LABELS = {"RV": 1, "left kidney": 12}


@pytest.fixture
def masks():
    """References and predictions of three cases; the kidney is in none of the third's."""
    rng = np.random.default_rng(0)
    pairs = {name: rng.choice([0, 1, 12], (2, 6, 5, 4)) for name in ("one", "two")}
    return pairs | {"three": rng.choice([0, 1], (2, 6, 5, 4))}


@pytest.fixture
def rows(masks, make_row):
    return [
        make_row(case, label, value, metric=metric, status=status)
        for case, (reference, prediction) in masks.items()
        for label, metric, value, status in case_rows(reference, prediction, LABELS, (1.0, 1.0, 2.0))
    ]


@pytest.fixture
def details(masks):
    return {
        (case, "0"): CaseDetail(f"out/{case}.nii.gz", f"data/{case}.nii.gz", voxel_counts(*pair, LABELS))
        for case, pair in masks.items()
    }


def slow_nnunet_metrics(reference, prediction, value):
    """Everything from four counts."""
    pairs = [(int(r == value), int(p == value)) for r, p in zip(reference.flat, prediction.flat, strict=True)]
    tp, fp, fn, tn = (pairs.count(pair) for pair in ((1, 1), (0, 1), (1, 0), (0, 0)))
    overlap = {"Dice": None, "IoU": None}
    if tp + fp + fn:
        overlap = {"Dice": 2 * tp / (2 * tp + fp + fn), "IoU": tp / (tp + fp + fn)}
    return overlap | {"TP": tp, "FP": fp, "FN": fn, "TN": tn, "n_pred": tp + fp, "n_ref": tp + fn}


def test_nnunet_s_metrics_are_those_of_the_masks(rows, details, masks):
    found = nnunet_summary(rows, LABELS, details)
    assert set(found) == {"metric_per_case", "mean", "foreground_mean"}
    for entry, (case, pair) in zip(found["metric_per_case"], masks.items(), strict=True):
        assert (entry["prediction_file"], entry["reference_file"]) == (f"out/{case}.nii.gz", f"data/{case}.nii.gz")
        assert set(entry["metrics"]) == {"1", "12"}
        for key, metrics in entry["metrics"].items():
            assert metrics == pytest.approx(slow_nnunet_metrics(*pair, int(key)))


def test_nnunet_s_means_leave_out_what_is_undefined(rows, details, masks):
    found = nnunet_summary(rows, LABELS, details)
    slow = {key: [slow_nnunet_metrics(*pair, key) for pair in masks.values()] for key in (1, 12)}
    for key, of_label in slow.items():
        expected = {name: np.mean([one[name] for one in of_label if one[name] is not None]) for name in of_label[0]}
        assert found["mean"][str(key)] == pytest.approx(expected)
    dice = [found["mean"][key]["Dice"] for key in ("1", "12")]
    assert found["foreground_mean"]["Dice"] == pytest.approx(np.mean(dice))
    assert found["metric_per_case"][2]["metrics"]["12"]["Dice"] is None
    json.dumps(found, allow_nan=False)


def test_nnunet_s_counts_are_null_without_the_masks(rows):
    found = nnunet_summary(rows)
    entry = found["metric_per_case"][0]
    assert entry["prediction_file"] == "one"
    assert set(entry["metrics"]) == {"1", "2"}  # labels numbered in their order
    assert entry["metrics"]["1"]["TP"] is None
    dice = entry["metrics"]["1"]["Dice"]
    assert entry["metrics"]["1"]["IoU"] == pytest.approx(dice / (2 - dice))
    assert found["foreground_mean"]["n_ref"] is None


def test_challenger_has_one_value_a_task_algorithm_and_case(rows, tmp_path):
    write_challenger(tmp_path, rows)
    with (tmp_path / "challenger.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["task", "algorithm", "case", "value"]
    assert len({tuple(line[:3]) for line in lines}) == len(lines) == 3 * 2
    dice = {(row.label, row.case): row.value for row in rows if row.metric == "dice"}
    for task, algorithm, case, value in lines:
        assert algorithm == "method"
        expected = dice[task.removeprefix("toy_"), case]
        assert value == "NA" if expected is None else float(value) == expected
    distances = (tmp_path / "challenger_hd95.csv").read_text().splitlines()
    assert distances[1] == f"toy_RV,method,one,{next(row.value for row in rows if row.metric == 'hd95_mm')!r}"
    assert (tmp_path / "challenger_nsd.csv").is_file()


def test_challenger_leaves_no_sibling_of_an_earlier_run(rows, tmp_path):
    write_challenger(tmp_path, rows)
    write_challenger(tmp_path, [row for row in rows if not row.metric.startswith("nsd")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["challenger.csv", "challenger_hd95.csv"]


def test_challenger_averages_runs(make_row):
    rows = [make_row("x", "RV", value, run=run) for run, value in (("0", 0.2), ("1", 0.6), ("2", None))]
    assert challenger_lines(rows, "dice") == [("toy_RV", "method", "x", pytest.approx(0.4))]


def test_challenger_holds_several_algorithms(make_row):
    rows = [make_row("x", "RV", 0.5, algorithm=name) for name in ("one", "two")]
    assert [line[1] for line in challenger_lines(rows, "dice")] == ["one", "two"]


def test_pixels_and_millimetres_are_different_tasks(make_row):
    rows = [make_row("x", "RV", 3.0, metric=metric) for metric in ("hd95_mm", "hd95_px")]
    assert [line[0] for line in challenger_lines(rows, "hd95")] == ["toy_RV_hd95_mm", "toy_RV_hd95_px"]


def test_grand_challenge_finds_cases_and_means(rows):
    summary = summarise(rows, draws=20)
    found = grand_challenge_metrics(rows, summary)
    assert found["case"]["case"] == {"0": "one", "1": "two", "2": "three"}
    column = found["case"]["dice_left_kidney"]
    dice = [row.value for row in rows if (row.label, row.metric) == ("left kidney", "dice")]
    assert list(column.values()) == dice
    aggregate = found["aggregates"]["dice_left_kidney"]
    assert (aggregate["count"], aggregate["max"]) == (2, max(dice[:2]))
    assert aggregate["mean"] == pytest.approx(np.mean(dice[:2]))
    assert found["aggregates"]["macro_hd95_mm"]["mean"] == summary["macro"]["hd95_mm"]["mean"]
    assert not [name for name in found["aggregates"] if "." in name or " " in name]
    json.dumps(found, allow_nan=False)


def test_columns_of_different_labels_keep_apart(make_row):
    rows = [make_row("x", label, value) for label, value in (("a b", 0.25), ("a_b", 0.75))]
    aggregates = grand_challenge_metrics(rows, summarise(rows, draws=5))["aggregates"]
    assert [aggregates[name]["mean"] for name in ("dice_a_b", "dice_a_b_")] == [0.25, 0.75]
