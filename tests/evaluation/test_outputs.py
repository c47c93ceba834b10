"""The files of an evaluation: all of them, the same bytes each time, one algorithm in a folder."""

from __future__ import annotations

import json

import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.outputs import OUTPUT_FILES, write_outputs
from monai_ext.evaluation.table import read_rows


@pytest.fixture
def rows(make_row):
    metrics = ("dice", "hd95_mm", "nsd_2mm")
    return [
        make_row(case, "organ", None if case == "c" else 0.1 + 0.2 * number, metric=metric)
        for case in "abc"
        for number, metric in enumerate(metrics)
    ]


def test_all_files_are_written(rows, tmp_path):
    summary = write_outputs(rows, tmp_path / "out", draws=20, seed=3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(OUTPUT_FILES)
    assert read_rows(tmp_path / "out" / "metrics.csv") == rows
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert summary["confidence_interval"]["seed"] == 3


def test_the_same_rows_give_the_same_bytes(rows, tmp_path):
    for name in ("one", "two"):
        write_outputs(rows, tmp_path / name, draws=20)
    for name in OUTPUT_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_table_of_an_earlier_run_does_not_stand_beside_half_of_the_files(rows, tmp_path):
    write_outputs(rows, tmp_path, draws=20)
    (tmp_path / "challenger.csv").unlink()
    (tmp_path / "challenger.csv").mkdir()  # cannot be written
    with pytest.raises(Exception, match="challenger"):
        write_outputs(rows, tmp_path, draws=20)
    assert not (tmp_path / "metrics.csv").exists()


def test_json_holds_no_nan(rows, tmp_path):
    write_outputs(rows, tmp_path, draws=20)
    for path in tmp_path.glob("*.json"):
        assert "NaN" not in path.read_text()


def test_formats_can_be_left_out(rows, tmp_path):
    write_outputs(rows, tmp_path, draws=20, formats=["nnunet"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.csv", "summary.json", "nnunet_summary.json"}
    with pytest.raises(ValueError, match="excel"):
        write_outputs(rows, tmp_path, formats=["excel"])


def test_options_reach_the_files(rows, tmp_path):
    remarks = {"spacing_source": "a ruler"}
    write_outputs(rows, tmp_path, draws=20, mean_of="patient", label_values={"organ": 7}, remarks=remarks)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["mean_of"], summary["spacing_source"]) == ("cases -> patients", "a ruler")
    assert list(json.loads((tmp_path / "nnunet_summary.json").read_text())["mean"]) == ["7"]


@pytest.mark.parametrize("what", ["algorithm", "task"])
def test_two_methods_or_tasks_need_two_folders(what, make_row, tmp_path):
    rows = [make_row("a", "organ", 0.5, **{what: name}) for name in ("one", "two")]
    with pytest.raises(UserError, match=f"2 different values of {what}.*one, two"):
        write_outputs(rows, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_case_is_said(tmp_path):
    with pytest.raises(UserError, match="no case was evaluated"):
        write_outputs([], tmp_path)
