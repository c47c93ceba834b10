"""The ablation command on the bundle itself."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from monai_ext.errors import find_user_error
from monai_ext.evaluation.ablation import main, read_tables
from monai_ext.prompts.ranges import RANGES, parse_counts

BUNDLE = Path(__file__).parents[2] / "bundles" / "p2sam"


@pytest.fixture
def words(tiny_options, patient, write_list, tmp_path) -> list[str]:
    options = {**tiny_options, "labels": ["disc"]}
    given = ["--bundle_root", str(BUNDLE), "--datalist", write_list(patient), "--options", str(options)]
    return [*given, "--output_dir", str(tmp_path / "out")]


def test_the_tables_are_the_papers():
    """Table 6 with and without retrieval, Table 7, and every row of Tables 9 and 10."""
    tables = {name: {row.name: row.options for row in table} for name, table in read_tables(BUNDLE).items()}
    assert tables["parts"]["n4"] == {"n_pos": [4, 4], "n_neg": [4, 4]}
    assert tables["parts"]["n1-5"] == {"n_pos": [1, 5], "n_neg": [1, 5]}
    assert [row.get("distance", "") for row in tables["distance"].values()] == ["", "", "hungarian", "jensen_shannon"]
    assert list(tables["ranges"]) == list(RANGES)
    for name, row in tables["ranges"].items():
        assert [parse_counts(row["n_pos"]), parse_counts(row["n_neg"])] == [parse_counts(text) for text in RANGES[name]]


def test_a_second_call_runs_no_case_again(words, tmp_path, capsys):
    main([*words, "--table", "references"])
    masks = sorted((tmp_path / "out").rglob("masks/*"))
    assert [path.parts[-3] for path in masks] == ["p2sam", "p2sam_all", "p2sam_nearest"]
    before, table = [path.stat().st_mtime_ns for path in masks], (tmp_path / "out" / "ablation.csv").read_bytes()
    masks[1].unlink()
    capsys.readouterr()
    main([*words, "--table", "references"])
    assert capsys.readouterr().out.count("1 of 1 cases are finished") == 2
    after = [path.stat().st_mtime_ns for path in masks]
    assert (after[0], after[2]) == (before[0], before[2])
    assert (tmp_path / "out" / "ablation.csv").read_bytes() == table
    with open(tmp_path / "out" / "ablation.csv", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"disc"}


def test_what_a_run_refuses_is_a_sentence(words):
    words[words.index("--options") + 1] = "{'labels': ['heart']}"
    with pytest.raises(RuntimeError) as raised:
        main([*words, "--table", "references"])
    assert "label 'heart' is not in the data list" in str(find_user_error(raised.value))
