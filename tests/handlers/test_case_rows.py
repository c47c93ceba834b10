"""Rows of a table, with and without records of the cases."""

from __future__ import annotations

import pytest

from monai_ext.handlers.case_rows import CaseRows
from monai_ext.handlers.finished_cases import FinishedCases

COLUMNS = ("case", "value")


@pytest.mark.parametrize("with_records", [False, True])
def test_the_table_has_the_rows_of_all_cases_in_the_order_of_the_list(tmp_path, with_records):
    (tmp_path / "image.png").write_text("x")
    cases = [{"case": name, "image": str(tmp_path / "image.png")} for name in "ab"]
    finished = FinishedCases(tmp_path / "out", cases, {}) if with_records else None
    rows = CaseRows(tmp_path / "out", "values.csv", COLUMNS, finished)
    for name in "ba" if with_records else "ab":
        rows.add(name, ([name, str(value)] for value in range(2)))
        if finished is not None:
            finished.record(name).write(tmp_path / "out")
    rows.write()
    lines = (tmp_path / "out" / "values.csv").read_text().splitlines()
    assert lines == ["case,value", "a,0", "a,1", "b,0", "b,1"]


def test_a_run_that_begins_forgets_the_one_before(tmp_path):
    rows = CaseRows(tmp_path, "values.csv", COLUMNS)
    rows.add("a", [["a", "0"]])
    rows.clear()
    assert rows.all() == []
