"""The signed-rank test against scipy, Holm by hand, ranks, and the coverage of the interval."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monai_ext.evaluation.statistics import (
    average_ranks,
    holm,
    percentile_intervals,
    resampled_means,
    signed_rank,
    smallest_p,
    sum_by_patient,
)

PATIENTS, DRAWS = 100, 1000


def p_of_all_signs(differences: np.ndarray) -> float:
    """Pratt's exact p-value: the share of all choices of signs whose statistic is as far from its mean."""
    ranks = stats.rankdata(np.abs(differences))[differences != 0]
    observed = ranks[differences[differences != 0] > 0].sum()
    centre = ranks.sum() / 2
    sums = [ranks[np.array(signs)].sum() for signs in product([False, True], repeat=len(ranks))]
    return float(np.mean([abs(s - centre) >= abs(observed - centre) - 1e-9 for s in sums]))


@pytest.mark.parametrize("n", [1, 5, 12, 50])
def test_exact_p_is_scipys(n):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.wilcoxon(differences, method="exact")
    assert signed_rank(differences).p == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_exact_p_with_ties_and_zeros_is_that_of_all_signs(seed):
    differences = np.random.default_rng(seed).integers(-2, 4, 10) / 10
    assert signed_rank(differences).p == pytest.approx(p_of_all_signs(differences), rel=1e-9)


@pytest.mark.parametrize("decimals", [8, 1])
def test_p_of_many_is_scipys_normal_one_with_pratts_zeros(decimals):
    differences = np.round(np.random.default_rng(0).normal(0.1, 1, 150), decimals)
    expected = stats.wilcoxon(differences, zero_method="pratt", method="approx", correction=False)
    assert signed_rank(differences).p == pytest.approx(expected.pvalue, rel=1e-9)


def test_the_exact_p_and_the_normal_one_meet():
    differences = np.random.default_rng(3).normal(0.15, 1, 101)
    assert signed_rank(differences).p == pytest.approx(signed_rank(differences[:100]).p, abs=0.02)


def test_effect_size_by_hand():
    """Ranks of 0, 1, -2, 3, 4 are 1 to 5: W+ = 2 + 4 + 5, W- = 3, of 15."""
    assert signed_rank([0, 1, -2, 3, 4]).rank_biserial == pytest.approx(8 / 15)
    assert signed_rank([0.1, 0.2]).rank_biserial == 1.0
    assert signed_rank([-0.1, -0.2]).rank_biserial == -1.0


def test_no_difference_is_no_evidence():
    found = signed_rank([0.0, 0.0, 0.0])
    assert (found.n, found.p, found.rank_biserial) == (3, 1.0, 0.0)


def test_rounding_does_not_break_ties():
    assert 0.3 - 0.2 != 0.1
    assert signed_rank([0.3 - 0.2, -0.1, 0.5]) == signed_rank([0.1, -0.1, 0.5])
    assert signed_rank([0.1 + 0.2 - 0.3, 1.0, 2.0]) == signed_rank([0.0, 1.0, 2.0])


@pytest.mark.parametrize("n", [1, 4, 8])
def test_smallest_p_is_that_of_one_sign(n):
    assert signed_rank(np.arange(1.0, n + 1)).p == pytest.approx(smallest_p(n))


@pytest.mark.parametrize("differences", [[], [np.nan], [1.0, np.inf]])
def test_a_test_of_nothing_is_refused(differences):
    with pytest.raises(ValueError, match="finite differences"):
        signed_rank(differences)


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, then 0.03 x 2 = 0.06, and 0.045 x 1, which may not fall below it."""
    assert holm([0.03, 0.01, 0.045, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_p_and_bonferroni_and_keeps_the_order(p):
    adjusted = np.array(holm(p))
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p))).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_ranks_are_scipys(scores):
    assert average_ranks(np.array(scores, dtype=float)).tolist() == stats.rankdata([-s for s in scores]).tolist()


def test_ranks_of_each_row_and_of_nearly_the_same():
    assert average_ranks(np.array([[0.1, 0.9], [0.1 + 0.2, 0.3]])).tolist() == [[2, 1], [1.5, 1.5]]


def test_sums_and_their_means_by_hand():
    sums, counts = sum_by_patient(np.array([[1.0], [2.0], [4.0]]), np.array([0, 0, 2]), 3)
    assert (sums.tolist(), counts.tolist()) == ([[3.0], [0.0], [4.0]], [[2.0], [0.0], [1.0]])
    means = resampled_means(sums, counts, draws=300)
    possible = {(3 * a + 4 * c) / (2 * a + c) for a in range(4) for c in range(4 - a) if a + c}
    assert {round(m, 9) for m in means[np.isfinite(means)]} == {round(p, 9) for p in possible}
    assert np.isnan(means).any()


def made_up_cohorts(cohorts: int) -> tuple[np.ndarray, np.ndarray]:
    """Skewed differences of visits, [n, cohorts], mean 0, alike within a patient; and each visit's patient."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(PATIENTS), rng.integers(1, 6, PATIENTS))
    of_patients = rng.gamma(4.0, 0.05, (PATIENTS, cohorts)) - 0.2
    return of_patients[patients] + rng.normal(0, 0.05, (len(patients), cohorts)), patients


def coverage(values: np.ndarray, patients: np.ndarray) -> float:
    sums, counts = sum_by_patient(values, patients, int(patients.max()) + 1)
    low, high = percentile_intervals(resampled_means(sums, counts, DRAWS))
    return float(np.mean((low <= 0) & (high >= 0)))


@pytest.mark.parametrize("cohorts", [200, 2000])
def test_intervals_cover_as_often_as_they_say(cohorts):
    """Nominal 95 %; the second number says that the first is not luck of the seed."""
    assert 0.92 <= coverage(*made_up_cohorts(cohorts)) <= 0.98


def test_intervals_over_visits_would_cover_too_seldom():
    values, _ = made_up_cohorts(200)
    assert coverage(values, np.arange(len(values))) < 0.88
