"""Rankings of several methods on the same cases, and how far they would hold for other patients.

Three rankings, because they can disagree (Maier-Hein et al. 2018; Wiesenfarth et al. 2021):

* ``mean_then_rank``: by the mean over cases.
* ``rank_then_mean``: each case ranks the methods; by the mean of these ranks. A few bad failures weigh less.
* ``test_based``: by how many others a method beats, better with a Holm-adjusted p below 0.05 (where all were tested).

Ties share the average of their ranks. Only cases in which every method has a value count. For the first two, patients
are resampled with all of their cases: how often a method gets each rank, its median rank and the middle 95 % of its
ranks. Metrics without a direction (``volume_ml``) are not ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from monai_ext.evaluation.bootstrap import DRAWS
from monai_ext.evaluation.pairing import Column, Measured
from monai_ext.evaluation.statistics import Floats, average_ranks, resampled_means, sum_by_patient
from monai_ext.evaluation.summary import layout
from monai_ext.evaluation.table import write_table

MEAN_THEN_RANK = "mean_then_rank"
RANK_THEN_MEAN = "rank_then_mean"
TEST_BASED = "test_based"

# (metric, label, method) -> number of others that it beats
Wins = Mapping[tuple[str, str, str], int]


@dataclass(frozen=True)
class Rank:
    """One row of ``ranking.csv``: the place of a method in one metric, label and ranking.

    Attributes:
        metric: name; of ``volume_error_*`` the absolute values are ranked.
        label: name, or ``macro``: per case the mean over the labels in which every method has a value.
        ranking: ``mean_then_rank``, ``rank_then_mean`` or ``test_based``.
        algorithm: method.
        n_cases: in which every method has a value.
        n_patients: patients of those.
        score: what is ranked: the mean, the mean rank, or the number of others beaten.
        rank: 1 is best.
        rank_median: over the resampled cohorts; empty for ``test_based``, as are the next two.
        rank_low: 2.5th percentile of the ranks.
        rank_high: 97.5th percentile.
    """

    metric: str
    label: str
    ranking: str
    algorithm: str
    n_cases: int
    n_patients: int
    score: float
    rank: float
    rank_median: float | None = None
    rank_low: float | None = None
    rank_high: float | None = None


@dataclass(frozen=True)
class RankFrequency:
    """One row of ``rank_frequencies.csv``: in which share of the resampled cohorts a method has a rank."""

    metric: str
    label: str
    ranking: str
    algorithm: str
    rank: float
    frequency: float


@dataclass(frozen=True)
class _Scored:
    """What one ranking averages over cases: values [n, A], better with ``sign`` * value."""

    measured: Measured
    column: Column
    ranking: str
    values: Floats
    sign: float

    def row(self, ranking: str, number: int, score: float, rank: float, spread: Sequence[float] = ()) -> Rank:
        """Return the row of a method; ``spread`` is the median, lower and upper end of its ranks."""
        column = self.column
        patients = len(set(column.patients.tolist()))
        names = self.measured.metric, column.label, ranking, self.measured.methods[number]
        return Rank(*names, len(column.values), patients, score, rank, *spread)


def rank_methods(
    measured: Sequence[Measured], draws: int = DRAWS, seed: int = 0, wins: Wins | None = None
) -> tuple[list[Rank], list[RankFrequency]]:
    """Rank the methods in every metric that has a direction, per label and over labels.

    Args:
        measured: the metrics, of the same methods.
        draws: cohorts of patients.
        seed: of the draws.
        wins: for the ranking ``test_based``, which is left out without.

    Returns:
        The ranks and the rank frequencies, methods in the order of the tables.
    """
    ranks: list[Rank] = []
    frequencies: list[RankFrequency] = []
    for of_metric in measured:
        scored = _scored(of_metric)
        for one, drawn in zip(scored, _drawn_ranks(scored, draws, seed), strict=True):
            ranks += _ranks(one, drawn)
            frequencies += _frequencies(one, drawn)
            if wins is not None and one.ranking == RANK_THEN_MEAN:
                ranks += _test_based(one, wins)
    return ranks, frequencies


def write_ranking(folder: str | Path, ranks: Sequence[Rank], frequencies: Sequence[RankFrequency]) -> tuple[Path, Path]:
    """Write ``ranking.csv`` and ``rank_frequencies.csv``; return their paths."""
    paths = Path(folder) / "ranking.csv", Path(folder) / "rank_frequencies.csv"
    write_table(paths[0], (field.name for field in fields(Rank)), map(astuple, ranks))
    write_table(paths[1], (field.name for field in fields(RankFrequency)), map(astuple, frequencies))
    return paths


def ranking_text(ranks: Sequence[Rank], frequencies: Sequence[RankFrequency]) -> str:
    """Lay out the ranks as plain text: of each metric the mean over labels, or the only label."""
    first = {
        (row.metric, row.label, row.ranking, row.algorithm): row.frequency for row in frequencies if row.rank == 1.0
    }
    lines = [["metric", "label", "algorithm", "mean", "rank [95%]", "P(rank 1)", "rank then mean", "beats"]]
    shown = {row.metric: row.label for row in ranks}  # macro is the last label of each metric
    for row in ranks:
        if row.ranking != MEAN_THEN_RANK or row.label != shown[row.metric]:
            continue
        key = (row.metric, row.label, row.algorithm)
        others = {r.ranking: r for r in ranks if (r.metric, r.label, r.algorithm) == key}
        beaten = others.get(TEST_BASED)
        lines.append(
            [
                *key,
                f"{row.score:.4f}",
                f"{row.rank:g} [{row.rank_low:g}, {row.rank_high:g}]",
                f"{first.get((row.metric, row.label, row.ranking, row.algorithm), 0.0):.2f}",
                f"{others[RANK_THEN_MEAN].rank:g}",
                f"{beaten.score:g}" if beaten else "-",
            ]
        )
    return layout(lines)


def _scored(measured: Measured) -> list[_Scored]:
    if not measured.better:
        return []
    sign = 1.0 if measured.better == "higher" else -1.0
    found = []
    for column in measured.columns():
        if len(column.values):
            found.append(_Scored(measured, column, MEAN_THEN_RANK, column.values, sign))
            found.append(_Scored(measured, column, RANK_THEN_MEAN, average_ranks(sign * column.values), -1.0))
    return found


def _drawn_ranks(scored: Sequence[_Scored], draws: int, seed: int) -> list[Floats]:
    """Ranks [d, A] of each in the same cohorts of patients; cohorts in which it has no value are left out."""
    if not scored:
        return []
    parts = [sum_by_patient(one.values, one.column.patients, len(one.measured.patients)) for one in scored]
    sums, counts = (np.hstack(part) for part in zip(*parts, strict=True))
    means = np.split(resampled_means(sums, counts, draws, seed), len(scored), axis=1)
    return [
        average_ranks(one.sign * of_one[np.isfinite(of_one).all(axis=1)])
        for one, of_one in zip(scored, means, strict=True)
    ]


def _ranks(one: _Scored, drawn: Floats) -> list[Rank]:
    scores = one.values.mean(axis=0)
    places = average_ranks(one.sign * scores)
    spread = np.quantile(drawn, [0.5, 0.025, 0.975], axis=0, method="inverted_cdf")
    return [
        one.row(one.ranking, number, float(scores[number]), float(places[number]), spread[:, number].tolist())
        for number in range(len(scores))
    ]


def _test_based(one: _Scored, wins: Wins) -> list[Rank]:
    names = one.measured.methods
    scores = np.array([wins.get((one.measured.metric, one.column.label, name), 0) for name in names], dtype=np.float64)
    places = average_ranks(scores)
    return [one.row(TEST_BASED, number, float(scores[number]), float(places[number])) for number in range(len(names))]


def _frequencies(one: _Scored, drawn: Floats) -> list[RankFrequency]:
    found = []
    for number, name in enumerate(one.measured.methods):
        for rank, count in zip(*np.unique(drawn[:, number], return_counts=True), strict=True):
            share = float(count) / len(drawn)
            found.append(RankFrequency(one.measured.metric, one.column.label, one.ranking, name, float(rank), share))
    return found
