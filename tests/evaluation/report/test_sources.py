"""What is read from output folders, what methods are called, and which folders are refused."""

from __future__ import annotations

import json

import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.curves import StepRow, write_interaction
from monai_ext.evaluation.report.sources import read_evaluations


def test_a_folder_is_read_whole(outputs):
    folder = outputs("ours")
    write_interaction(folder / "interaction.csv", [StepRow("toy", "x", "a", "p", "0", "liver", 0, "dice", 0.5, "ok")])
    (found,) = read_evaluations([folder])
    assert found.name == "ours"
    assert found.summary["confidence_interval"]["draws"] == 200  # as summary.json says
    assert found.record is not None
    assert found.record["seed"] == 3
    assert found.overlay("a") == folder / "overlays" / "a.png"
    assert [row.algorithm for row in found.curve] == ["ours"]
    assert read_evaluations([folder / "metrics.csv"])[0].sha256 == found.sha256


def test_only_the_table_is_needed(outputs):
    folder = outputs("ours", record=False, overlays=False)
    (folder / "summary.json").unlink()
    (found,) = read_evaluations([folder])
    assert (found.record, found.overlay("a"), found.curve) == (None, None, ())
    assert found.summary["confidence_interval"]["draws"] == 10_000


@pytest.mark.parametrize("case", ["../overlays/a", "sub/a", "", "..", "a\0"])
def test_no_case_name_leads_out_of_the_overlays(outputs, case):
    (found,) = read_evaluations([outputs("ours")])
    assert found.overlay(case) is None


@pytest.mark.slow
def test_methods_are_called_by_what_tells_them_apart(outputs, tmp_path):
    ours, other = outputs("ours"), outputs("other")
    assert [e.name for e in read_evaluations([ours, other])] == ["ours", "other"]
    again = outputs("ours", folder="chaos/ours")
    assert [e.name for e in read_evaluations([ours, again])] == [f"ours ({tmp_path.name})", "ours (chaos)"]
    for folder, name in ((ours, "compact_acdc"), (again, "compact_chaos")):
        record = json.loads((folder / "run.json").read_text())
        record["checkpoint"] = {"path": f"models/{name}.pt", "sha256": "", "bytes": 1}
        (folder / "run.json").write_text(json.dumps(record))
    assert [e.name for e in read_evaluations([ours, again])] == ["ours (compact_acdc)", "ours (compact_chaos)"]
    assert [e.name for e in read_evaluations([ours, again], ["A", "B"])] == ["A", "B"]


def test_names_have_to_be_different(outputs):
    folders = [outputs("ours"), outputs("other")]
    for names in (["A"], ["A", "A"], ["A", "B", "C"]):
        with pytest.raises(UserError, match="give each one"):
            read_evaluations(folders, names)


def test_a_folder_without_table_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no metrics\.csv in it; name the output folder"):
        read_evaluations([tmp_path])


def test_a_folder_given_twice_is_refused(outputs):
    folder = outputs("ours")
    with pytest.raises(UserError, match="given twice"):
        read_evaluations([folder, folder / "metrics.csv"])


def test_an_empty_table_is_refused(outputs):
    folder = outputs("ours")
    table = folder / "metrics.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="no rows"):
        read_evaluations([folder])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{}", "not the summary of an evaluation"),
        ("[", "not the summary"),
        ({"n_cases": 5}, "not of the metrics.csv"),
        ({"labels": {}}, "not of the metrics.csv"),
    ],
)
def test_a_summary_of_other_rows_is_refused(outputs, content, match):
    folder = outputs("ours")
    path = folder / "summary.json"
    changed = content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content)
    path.write_text(changed)
    with pytest.raises(UserError, match=match):
        read_evaluations([folder])


def test_warnings_of_the_summary_are_kept(outputs):
    folder = outputs("ours")
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"warnings": ["two masks were resampled"]}))
    (found,) = read_evaluations([folder])
    assert found.summary["warnings"][0] == "two masks were resampled"
    assert any("below 50" in text or "1 pred_empty" in text for text in found.summary["warnings"][1:])
