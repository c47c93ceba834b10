"""Paired differences by hand, what the test takes, and what is adjusted for what."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest
from scipy import stats

from monai_ext.errors import UserError
from monai_ext.evaluation.bootstrap import patient_bootstrap_ci
from monai_ext.evaluation.compare import COLUMNS, compare, comparison_text, count_wins, main


@pytest.fixture
def tables(make_row, write_tables):
    """Two tables: differences of label a are 0.1, 0.3 and -0.1, of label b 0.2 and undefined: ours invents it."""
    first = {("p1", "a"): 0.9, ("p2", "a"): 0.8, ("p3", "a"): 0.4, ("p1", "b"): 0.6, ("p2", "b"): 0.0}
    second = {("p1", "a"): 0.8, ("p2", "a"): 0.5, ("p3", "a"): 0.5, ("p1", "b"): 0.4, ("p2", "b"): None}
    return write_tables(
        {
            name: [
                make_row(case, label, value, algorithm=name, **({"status": "ref_empty"} if value == 0 else {}))
                for (case, label), value in values.items()
            ]
            for name, values in (("ours", first), ("base", second))
        }
    )


def test_differences_by_hand(tables):
    of_a, of_b, macro = compare(tables)
    assert (of_a.first, of_a.second, of_a.metric, of_a.label, of_a.better) == ("ours", "base", "dice", "a", "higher")
    assert (of_a.n_pairs, of_a.n_patients, of_a.n_undefined) == (3, 3, 0)
    assert (of_a.mean_first, of_a.mean_second) == pytest.approx((0.7, 0.6))
    assert of_a.difference == pytest.approx(0.1)
    assert of_a.favours == "ours"
    expected = patient_bootstrap_ci([0.1, 0.3, -0.1], ["p1", "p2", "p3"])
    assert (of_a.ci_low, of_a.ci_high) == pytest.approx(expected)
    assert (of_b.n_pairs, of_b.difference) == (1, pytest.approx(0.2))
    assert (of_b.n_undefined, of_b.n_one_sided) == (1, 1)
    assert (macro.label, macro.n_pairs) == ("macro", 3)
    assert macro.difference == pytest.approx(((0.1 + 0.2) / 2 + 0.3 - 0.1) / 3)


def test_the_test_takes_one_number_a_patient(make_row, write_tables):
    """p1 has three visits: their mean difference is 0.2, so the test sees 0.2, -0.1 and 0.4."""
    patients = {"c1": "p1", "c2": "p1", "c3": "p1", "c4": "p2", "c5": "p3"}
    first = {"c1": 0.5, "c2": 0.7, "c3": 0.6, "c4": 0.4, "c5": 0.9}
    second = {"c1": 0.4, "c2": 0.4, "c3": 0.4, "c4": 0.5, "c5": 0.5}
    tables = write_tables(
        {
            name: [make_row(case, "a", value, algorithm=name, patient=patients[case]) for case, value in values.items()]
            for name, values in (("one", first), ("two", second))
        }
    )
    (row,) = compare(tables)
    assert (row.n_pairs, row.n_patients) == (5, 3)
    assert row.difference == pytest.approx((0.1 + 0.3 + 0.2 - 0.1 + 0.4) / 5)
    assert row.p == pytest.approx(stats.wilcoxon([0.2, -0.1, 0.4]).pvalue)
    assert row.rank_biserial == pytest.approx((2 + 3 - 1) / 6)


def test_holm_over_all_labels_pairs_and_metrics(make_row, write_tables):
    tables = write_tables(
        {
            name: [
                make_row(f"p{i}", label, value + shift * i, algorithm=name, metric=metric)
                for i in range(1, 8)
                for label in "ab"
                for metric, value in (("dice", 0.2), ("hd95_mm", 20.0))
            ]
            for name, shift in (("one", 0.0), ("two", 0.01), ("three", -0.01))
        }
    )
    assert len(compare(tables, ["dice", "hd95_mm"])) == 2 * 2 * 3
    found = compare(tables, ["dice", "hd95_mm"], all_pairs=True)
    assert len(found) == 2 * 3 * 3
    assert {row.p for row in found} == {2.0**-6}
    assert {row.p_holm for row in found} == {18 * 2.0**-6}
    favoured = {(row.metric, row.first, row.second): row.favours for row in found}
    assert favoured["dice", "one", "two"] == "two"
    assert favoured["hd95_mm", "one", "two"] == "one"
    assert favoured["dice", "two", "three"] == "two"
    assert count_wins(found)["dice", "a", "two"] == 0
    alone = compare(tables, "dice", all_pairs=True)
    assert {row.p_holm for row in alone} == {9 * 2.0**-6}


def test_wins_count_the_significant_ones(make_row, write_tables):
    tables = write_tables(
        {
            name: [make_row(f"p{i}", "a", 0.5 + shift * i, algorithm=name) for i in range(1, 11)]
            for name, shift in (("low", -0.01), ("high", 0.01), ("twin", 0.01))
        }
    )
    wins = count_wins(compare(tables, all_pairs=True))
    assert wins == {("dice", "a", "low"): 0, ("dice", "a", "high"): 1, ("dice", "a", "twin"): 1}


def test_volume_errors_are_compared_by_size(make_row, write_tables):
    tables = write_tables(
        {
            name: [make_row("p1", "a", value, algorithm=name, metric="volume_error_ml")]
            for name, value in (("under", -3.0), ("over", 4.0))
        }
    )
    (row,) = compare(tables, "volume_error_ml")
    assert (row.mean_first, row.mean_second, row.difference, row.favours) == (3.0, 4.0, -1.0, "under")


def test_a_label_without_any_pair_is_an_empty_row(make_row, write_tables):
    tables = write_tables(
        {
            name: [make_row("p1", "a", 0.5, algorithm=name), make_row("p1", "b", None, algorithm=name)]
            for name in ("one", "two")
        }
    )
    of_b = compare(tables)[1]
    assert (of_b.label, of_b.n_pairs, of_b.n_undefined, of_b.n_one_sided) == ("b", 0, 1, 0)
    assert (of_b.difference, of_b.ci_low, of_b.p, of_b.p_holm, of_b.favours) == (None, None, None, None, "")
    assert "-" in comparison_text([of_b])


def test_a_table_does_not_differ_from_its_copy(tables, tmp_path):
    copy = tmp_path / "copy.csv"
    copy.write_bytes(tables[0].read_bytes())
    for row in compare([tables[0], copy]):
        assert (row.difference, row.ci_low, row.ci_high) == (0.0, 0.0, 0.0)
        assert row.first == str(tables[0])


def test_order_of_rows_does_not_matter(tables, make_row, tmp_path):
    lines = tables[1].read_text().splitlines(keepends=True)
    (tmp_path / "turned.csv").write_text("".join([lines[0], *lines[:0:-1]]))
    assert compare([tables[0], tmp_path / "turned.csv"]) == compare(tables)


def test_command_writes_the_tables(tables, tmp_path, capsys):
    main([*map(str, tables), "--output_dir", str(tmp_path / "out")])
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert [line[1] for line in lines] == ["a", "b", "macro"]
    assert float(lines[0][COLUMNS.index("difference")]) == pytest.approx(0.1)
    with (tmp_path / "out" / "ranking.csv").open(newline="") as file:
        ranking = list(csv.DictReader(file))
    assert {row["ranking"] for row in ranking} == {"mean_then_rank", "rank_then_mean", "test_based"}
    assert (tmp_path / "out" / "rank_frequencies.csv").is_file()
    printed = capsys.readouterr().out
    assert "+0.1000 [" in printed
    assert "3 patients: below 50" in printed
    assert "no p Holm can be below 0.75" in printed
    assert "b: " in printed
    assert "ours in 1 of 1 cases left out" in printed


def test_cases_without_a_patient_are_warned_of(make_row, write_tables, capsys):
    tables = write_tables({name: [make_row("c1", "a", 0.5, algorithm=name, patient="")] for name in ("one", "two")})
    main([*map(str, tables)])
    assert "cases without a patient count as patients of their own" in capsys.readouterr().out


def test_too_few_draws_are_refused(tables):
    with pytest.raises(UserError, match="--draws 5 are too few"):
        main([*map(str, tables), "--draws", "5"])


def test_a_negative_seed_is_refused(tables):
    with pytest.raises(UserError, match="--seed -1 is below 0"):
        main([*map(str, tables), "--seed", "-1"])


@pytest.mark.slow
def test_command_ends_with_one_sentence(tables):
    command = [
        sys.executable,
        "-m",
        "monai_ext.evaluation.compare",
        str(tables[0]),
        str(tables[1]),
        "--metric",
        "x",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
