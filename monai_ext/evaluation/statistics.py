"""Paired tests and bootstrap means whose unit is the patient: visits, slices and labels of one are not independent.

Here stands what ``compare`` and ``ranking`` calculate with: the signed-rank test, Holm's adjustment, average ranks,
and the means of resampled cohorts. Only numpy is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_ext.evaluation.bootstrap import DRAWS, group_means, percentile_interval

EXACT_UP_TO = 100
SAME = 1e-12
"""Values that differ by less than this share of the largest are equal: what rounding leaves must not break a tie."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test of paired differences.

    Attributes:
        n: differences, zeros included.
        p: two-sided.
        rank_biserial: matched-pairs rank-biserial correlation, the effect size that belongs to the test: (W+ - W-) /
            (n (n + 1) / 2), where W+ and W- are the sums of the ranks of the positive and the negative differences
            (Kerby 2014). 1: every difference is positive, -1: every one is negative. Zeros pull it towards 0.
    """

    n: int
    p: float
    rank_biserial: float


def signed_rank(differences: ArrayLike) -> SignedRank:
    """Test whether independent paired differences are symmetric about zero (Wilcoxon 1945).

    Zeros are treated as by Pratt (1959; scipy's ``zero_method="pratt"``): they are ranked with the others and their
    ranks are then dropped, so that many ties between two methods weaken the evidence instead of vanishing from n. Up to
    100 differences the p-value is exact, also with ties and zeros (all signs of the ranks at hand, equally likely);
    beyond it is that of the normal distribution, with the variance of these ranks and no continuity correction.

    Args:
        differences: [n] finite, one a patient.

    Raises:
        ValueError: where there are none, or one is not finite.
    """
    numbers = np.asarray(differences, dtype=np.float64)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError("a signed-rank test needs finite differences, at least one")
    n, largest = len(numbers), float(np.abs(numbers).max())
    if largest == 0:
        return SignedRank(n, 1.0, 0.0)
    numbers = np.round(numbers / largest / SAME) * SAME
    ranks = _ranks(np.abs(numbers))
    plus, minus = float(ranks[numbers > 0].sum()), float(ranks[numbers < 0].sum())
    kept = ranks[numbers != 0]
    if n <= EXACT_UP_TO:
        p = 2 * _share_up_to(kept, min(plus, minus))
    else:
        p = math.erfc(abs(plus - minus) / math.sqrt(2 * float((kept**2).sum())))
    return SignedRank(n, min(1.0, p), (plus - minus) / (n * (n + 1) / 2))


def smallest_p(n: int) -> float:
    """Return the smallest two-sided p-value that the signed-rank test of ``n`` differences can give."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests, in the given order (Holm 1979): the family-wise error is kept.

    The k-th smallest of m is multiplied by m - k + 1; none falls below a smaller one's, none exceeds 1.
    """
    numbers = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(numbers, kind="stable")
    raised = np.maximum.accumulate(numbers[order] * np.arange(len(numbers), 0, -1))
    adjusted = np.empty_like(numbers)
    adjusted[order] = np.minimum(raised, 1.0)
    return [float(p) for p in adjusted]


def average_ranks(scores: Floats) -> Floats:
    """Rank scores along the last axis, the largest first; ties share the average of their ranks.

    Args:
        scores: [..., A] finite.

    Returns:
        [..., A], 1 is best. Scores within 1e-12 of the row's largest size count as tied.
    """
    width = SAME * np.abs(scores).max(axis=-1)
    ranks = np.empty_like(scores)
    for number in range(scores.shape[-1]):
        ahead = scores - scores[..., number, None]
        better, tied = ahead > width[..., None], np.abs(ahead) <= width[..., None]
        ranks[..., number] = better.sum(axis=-1) + (tied.sum(axis=-1) + 1) / 2
    return ranks


def sum_by_patient(values: Floats, patients: NDArray[np.int64], n_patients: int) -> tuple[Floats, Floats]:
    """Add up the rows of each patient.

    Args:
        values: [n, C] finite.
        patients: [n] number of each row's patient.
        n_patients: of the cohort, also those without a row.

    Returns:
        Sums [n_patients, C] and how many rows they are of [n_patients, C].
    """
    sums = np.zeros((n_patients, values.shape[1]))
    np.add.at(sums, patients, values)
    counts = np.bincount(patients, minlength=n_patients).astype(np.float64)
    return sums, np.repeat(counts[:, None], values.shape[1], axis=1)


def resampled_means(sums: Floats, counts: Floats, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Mean of each column in cohorts of patients drawn with replacement, the same draws for all columns.

    Args:
        sums: [P, C] of each patient's values.
        counts: [P, C] how many values those are.
        draws: number of cohorts.
        seed: of the draws.

    Returns:
        [draws, C]; NaN where a cohort holds no value of a column.
    """
    return np.concatenate([means for _, means in group_means(sums, counts, draws, seed)])


def percentile_intervals(means: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Lower and upper ends [C] of :func:`~monai_ext.evaluation.bootstrap.percentile_interval` of [draws, C]."""
    ends = np.array([percentile_interval(column, level) for column in means.T]).reshape(-1, 2)
    return ends[:, 0], ends[:, 1]


def _ranks(values: Floats) -> Floats:
    """Ranks from the smallest, 1, with ties averaged."""
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[position]


def _share_up_to(ranks: Floats, bound: float) -> float:
    """Share of the 2^n choices of signs whose positive ranks add up to ``bound`` at most (half ranks are doubled)."""
    doubled = np.round(2 * ranks).astype(np.int64)
    share = np.zeros(int(doubled.sum()) + 1)
    share[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(share)
        moved[rank:] = share[: len(share) - rank]
        share = (share + moved) / 2
    return float(share[: round(2 * bound) + 1].sum())
