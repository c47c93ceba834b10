"""Rankings by hand, and rank frequencies where they are known."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from monai_ext.evaluation.pairing import read_methods
from monai_ext.evaluation.ranking import rank_methods, ranking_text, write_ranking

# Means 0.6, 0.475, 0.625. Ranks of the cases: 2 3 1, 1 2.5 2.5, 2 3 1, 1 2 3; their means 1.5, 2.625, 1.875.
VALUES = {"A": (0.8, 0.7, 0.6, 0.3), "B": (0.7, 0.5, 0.5, 0.2), "C": (0.95, 0.5, 0.95, 0.1)}


@pytest.fixture
def measured(make_row, write_tables):
    def make(values, metric="dice", patients=None):
        tables = {
            name: [
                make_row(
                    f"c{i}", "a", value, algorithm=name, metric=metric, patient=patients[i] if patients else f"p{i}"
                )
                for i, value in enumerate(of_name)
            ]
            for name, of_name in values.items()
        }
        return read_methods(write_tables(tables), [metric])

    return make


def by_ranking(ranks, ranking):
    return {row.algorithm: (row.score, row.rank) for row in ranks if row.ranking == ranking}


def test_rankings_by_hand(measured):
    ranks, _ = rank_methods(measured(VALUES), wins={("dice", "a", "A"): 1, ("dice", "a", "C"): 1})
    means = by_ranking(ranks, "mean_then_rank")
    assert means == {"A": (pytest.approx(0.6), 2), "B": (pytest.approx(0.475), 3), "C": (pytest.approx(0.625), 1)}
    assert by_ranking(ranks, "rank_then_mean") == {"A": (1.5, 1), "B": (2.625, 3), "C": (1.875, 2)}
    assert by_ranking(ranks, "test_based") == {"A": (1, 1.5), "B": (0, 3), "C": (1, 1.5)}
    assert {(row.n_cases, row.n_patients) for row in ranks} == {(4, 4)}


def test_small_distances_win(measured):
    ranks, _ = rank_methods(measured(VALUES, "hd95_mm"))
    assert [place for _, place in by_ranking(ranks, "mean_then_rank").values()] == [2, 1, 3]
    assert not by_ranking(ranks, "test_based")


def test_a_metric_without_direction_is_not_ranked(measured):
    assert rank_methods(measured(VALUES, "volume_ml")) == ([], [])


def test_frequencies_of_two_patients_by_hand(measured):
    """A wins p0 by 0.3, B wins p1 by 0.1: A is first unless p1 is drawn twice, a quarter of the time."""
    ranks, frequencies = rank_methods(measured({"A": (0.8, 0.4), "B": (0.5, 0.5)}))
    share = {(row.algorithm, row.rank): row.frequency for row in frequencies if row.ranking == "mean_then_rank"}
    assert share["A", 1.0] == share["B", 2.0] == pytest.approx(0.75, abs=0.02)
    assert share["A", 1.0] + share["A", 2.0] == 1.0
    first = ranks[0]
    assert (first.algorithm, first.rank, first.rank_median, first.rank_low, first.rank_high) == ("A", 1, 1, 1, 2)
    mean_ranks = {(row.algorithm, row.rank): row.frequency for row in frequencies if row.ranking == "rank_then_mean"}
    assert mean_ranks["A", 1.5] == mean_ranks["B", 1.5] == pytest.approx(0.5, abs=0.02)


def test_patients_are_resampled_not_cases(measured):
    """B wins nine cases of one patient, A one case of another: whole patients come and go."""
    values = {"A": (0.9, *[0.5] * 9), "B": (0.1, *[0.6] * 9)}
    _, frequencies = rank_methods(measured(values, patients=["p0", *["p1"] * 9]))
    share = {(row.algorithm, row.rank): row.frequency for row in frequencies if row.ranking == "mean_then_rank"}
    assert share["B", 1.0] == pytest.approx(0.75, abs=0.02)


def test_twins_share_their_rank_in_every_draw(measured):
    values = np.random.default_rng(0).random(30).round(3).tolist()
    _, frequencies = rank_methods(measured({"A": values, "B": values}), draws=500)
    assert {(row.algorithm, row.rank, row.frequency) for row in frequencies} == {("A", 1.5, 1.0), ("B", 1.5, 1.0)}


def test_frequencies_add_up_and_are_repeatable(measured):
    values = {name: np.random.default_rng(i).random(12).round(3).tolist() for i, name in enumerate("ABCD")}
    tables = measured(values)
    ranks, frequencies = rank_methods(tables, draws=400)
    assert rank_methods(tables, draws=400) == (ranks, frequencies)
    for name in "ABCD":
        assert sum(r.frequency for r in frequencies if r.algorithm == name) == pytest.approx(2)
    low = [row for row in ranks if row.rank_low is not None]
    assert all(row.rank_low <= row.rank_median <= row.rank_high for row in low)


def test_files_have_the_columns_of_the_documentation(measured, tmp_path):
    ranks, frequencies = rank_methods(measured(VALUES), draws=200)
    paths = write_ranking(tmp_path, ranks, frequencies)
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == [
        *("metric", "label", "ranking", "algorithm", "n_cases", "n_patients", "score", "rank"),
        *("rank_median", "rank_low", "rank_high"),
    ]
    assert len(rows) == 6
    assert paths[1].read_text().startswith("metric,label,ranking,algorithm,rank,frequency\n")
    assert "P(rank 1)" in ranking_text(ranks, frequencies)
