from __future__ import annotations

import dataclasses
import json

import pytest

from monai_ext.evaluation.case_metrics import VoxelCounts
from monai_ext.evaluation.case_record import (
    CaseRecord,
    add_metrics,
    read_case_record,
    table_rows,
    write_metrics,
)
from monai_ext.evaluation.outputs import write_outputs
from monai_ext.evaluation.table import Row

ROW = Row("acdc", "p2sam", "p1_es", "p1", "1", "p1_ed", "", "0", "LV", "dice", 1 / 3, "ok")
NUMBERS = [0.1 + 0.2, 1e-17, 5.0, None]


def record_of(case: str, values=NUMBERS) -> CaseRecord:
    record = CaseRecord(case, key="k")
    status = {True: "both_empty", False: "ok"}
    rows = [
        dataclasses.replace(ROW, case=case, label=f"l{n}", value=value, status=status[value is None])
        for n, value in enumerate(values)
    ]
    add_metrics(record, rows, {row.label: VoxelCounts(1, 2, 3, 4) for row in rows})
    return record


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = record_of("ä b")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_text("mask")
    record.add_file(tmp_path, tmp_path / "masks" / "a.png")
    record.write(tmp_path)
    assert read_case_record(tmp_path, "ä b") == record
    assert record.find_change(tmp_path) is None
    (tmp_path / "masks" / "a.png").write_text("other")
    assert record.find_change(tmp_path) == "masks/a.png"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"case": "other", "key": "", "tables": {}, "files": {}}'])
def test_what_is_no_record_of_the_case_is_none(tmp_path, text):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "a.json").write_text(text)
    assert read_case_record(tmp_path, "a") is None
    assert read_case_record(tmp_path, "b") is None


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd"])
def test_files_outside_of_the_folder_are_not_taken(tmp_path, name):
    CaseRecord("a", "k", files={name: "0"}).write(tmp_path)
    assert read_case_record(tmp_path, "a") is None


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [
        ("../t.csv", ["a"], [[1]]),
        ("t.csv", ["a"], [[1, 2]]),
        ("t.csv", ["a"], [5]),
        ("metrics.csv", ["a"], [[1]]),
        ("voxel counts", [], [[]]),
    ],
)
def test_tables_of_another_form_are_not_taken(tmp_path, name, columns, rows):
    record = {"case": "a", "key": "k", "tables": {name: {"columns": columns, "rows": rows}}, "files": {}}
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "a.json").write_text(json.dumps(record))
    assert read_case_record(tmp_path, "a") is None


def test_tables_from_records_have_the_bytes_of_those_from_rows(tmp_path):
    records = [record_of(case) for case in ("b", "a")]
    for record in records:
        record.write(tmp_path / "out")
    read = [read_case_record(tmp_path / "out", record.case) for record in records]
    write_metrics(read, tmp_path / "records", {"seed": 3})
    rows = [Row(*cells) for cells in table_rows(records, "metrics.csv")]
    write_outputs(rows, tmp_path / "rows", seed=3)
    for name in ("metrics.csv", "summary.json"):
        assert (tmp_path / "records" / name).read_bytes() == (tmp_path / "rows" / name).read_bytes()
    counts = json.loads((tmp_path / "records" / "nnunet_summary.json").read_text())["metric_per_case"][0]["metrics"]
    assert counts["1"]["FP"] == 2


def test_no_rows_write_nothing(tmp_path):
    assert write_metrics([CaseRecord("a", "k")], tmp_path, {}) is None
    assert not list(tmp_path.iterdir())
