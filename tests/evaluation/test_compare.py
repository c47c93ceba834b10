"""Paired differences by hand, and the refusal of different cases."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.bootstrap import patient_bootstrap_ci
from monai_ext.evaluation.compare import COLUMNS, compare, main
from monai_ext.evaluation.table import write_rows


@pytest.fixture
def tables(make_row, tmp_path):
    """Two tables: differences of label a are 0.1, 0.3 and -0.1, of label b 0.2 and (undefined)."""
    first = {("p1", "a"): 0.9, ("p2", "a"): 0.8, ("p3", "a"): 0.4, ("p1", "b"): 0.6, ("p2", "b"): 0.5}
    second = {("p1", "a"): 0.8, ("p2", "a"): 0.5, ("p3", "a"): 0.5, ("p1", "b"): 0.4, ("p2", "b"): None}
    paths = []
    for name, values in (("ours", first), ("base", second)):
        rows = [make_row(case, label, value, algorithm=name) for (case, label), value in values.items()]
        write_rows(tmp_path / name / "metrics.csv", rows)
        paths.append(tmp_path / name / "metrics.csv")
    return paths


def test_differences_by_hand(tables):
    of_a, of_b, macro = compare(tables)
    assert (of_a.first, of_a.second, of_a.metric, of_a.label, of_a.n) == ("ours", "base", "dice", "a", 3)
    assert (of_a.mean_first, of_a.mean_second) == pytest.approx((0.7, 0.6))
    assert of_a.difference == pytest.approx(0.1)
    expected = patient_bootstrap_ci([0.1, 0.3, -0.1], ["p1", "p2", "p3"])
    assert (of_a.ci_low, of_a.ci_high) == pytest.approx(expected)
    assert (of_b.n, of_b.difference) == (1, pytest.approx(0.2))
    assert (macro.label, macro.n) == ("macro", 3)
    assert macro.difference == pytest.approx(((0.1 + 0.2) / 2 + 0.3 - 0.1) / 3)


def test_a_table_does_not_differ_from_itself(tables):
    for row in compare([tables[0], tables[0]]):
        assert (row.difference, row.ci_low, row.ci_high) == (0.0, 0.0, 0.0)
        assert row.first == str(tables[0])


def test_order_of_rows_does_not_matter(tables, make_row, tmp_path):
    lines = tables[1].read_text().splitlines(keepends=True)
    (tmp_path / "turned.csv").write_text("".join([lines[0], *lines[:0:-1]]))
    assert compare([tables[0], tmp_path / "turned.csv"]) == compare(tables)


def test_different_cases_are_refused_by_name(make_row, tmp_path, tables):
    rows = [make_row(f"q{number}", "a", 0.5, algorithm="other") for number in range(5)]
    write_rows(tmp_path / "other.csv", rows)
    with pytest.raises(UserError, match=r"only in .*ours.*: p1, p2, p3; only in .*other.csv: q0, q1, q2, \.\.\."):
        compare([tables[0], tmp_path / "other.csv"])


def test_a_missing_label_is_named(make_row, tmp_path):
    for name, labels in (("one", "ab"), ("two", "a")):
        write_rows(tmp_path / name, [make_row("p1", label, 0.5, algorithm=name) for label in labels])
    with pytest.raises(UserError, match=r"p1 \(task toy, run 0, label b\)"):
        compare([tmp_path / "one", tmp_path / "two"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([("p1", "method", "dice"), ("p1", "method", "dice")], "several rows"),
        ([("p1", "method", "dice"), ("p2", "other", "dice")], "2 algorithms"),
        ([("p1", "method", "hd95_mm")], "no rows of the metric dice"),
        ([], "no rows of the metric dice"),
    ],
)
def test_tables_that_cannot_be_paired_are_refused(values, sentence, make_row, tmp_path):
    rows = [make_row(case, "a", 0.5, algorithm=name, metric=metric) for case, name, metric in values]
    write_rows(tmp_path / "metrics.csv", rows)
    with pytest.raises(UserError, match=sentence):
        compare([tmp_path / "metrics.csv"] * 2)


def test_command_writes_the_table(tables, tmp_path, capsys):
    main([*map(str, tables), "--output_dir", str(tmp_path / "out")])
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert [line[1] for line in lines] == ["a", "b", "macro"]
    assert float(lines[0][COLUMNS.index("difference")]) == pytest.approx(0.1)
    printed = capsys.readouterr().out
    assert "+0.1000" in printed
    assert "3 patients" in printed


def test_command_ends_with_one_sentence(tables):
    command = [
        sys.executable,
        "-m",
        "monai_ext.evaluation.compare",
        str(tables[0]),
        str(tables[0]),
        "--metric",
        "x",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
