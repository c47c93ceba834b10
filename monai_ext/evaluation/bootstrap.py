"""Confidence intervals by resampling patients: visits and labels of one patient are not independent.

:func:`resampled` draws the cohorts once, as counts of how often each patient is in them; the mean of every
column of a table over every cohort is then one matrix product.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from monai_ext.errors import UserError

DRAWS = 10_000
FEW_PATIENTS = 50
# Numbers held at a time by a step of the work: bounds the memory, does not change the draws.
BLOCK = 2**18


def refuse_seed(seed: int) -> None:
    """Refuse a seed that the bootstrap cannot take, with a ``UserError``: before the work, not after it."""
    if seed < 0:
        raise UserError(f"--seed {seed} is below 0; choose 0 or more")


def resampled(n_patients: int, draws: int = DRAWS, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Draw cohorts of as many patients as there are, with replacement (Davison & Hinkley 1997, §3.8).

    The mean over a resampled cohort is ``(weights @ sums) / (weights @ counts)``, where ``sums`` and ``counts``
    are the sum and the number of the values of each patient.

    Args:
        n_patients: size of the cohort.
        draws: number of resampled cohorts.
        seed: of numpy's default generator.

    Yields:
        Blocks [b, n_patients] of how often each patient is drawn; their rows are ``draws`` together.

    Raises:
        ValueError: where there are no patients.
    """
    if n_patients < 1:
        raise ValueError("there are no patients to resample")
    generator = np.random.default_rng(seed)
    step = max(1, BLOCK // n_patients)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        drawn = generator.integers(0, n_patients, size=(rows, n_patients))
        drawn += np.arange(rows)[:, None] * n_patients
        counted = np.bincount(drawn.ravel(), minlength=rows * n_patients)
        yield counted.reshape(rows, n_patients).astype(np.float64)


def patient_bootstrap_ci(
    values: Sequence[float],
    patients: Sequence[Hashable],
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Percentile interval of the mean by the cluster bootstrap over patients (Davison & Hinkley 1997, §3.8).

    Each draw takes as many patients as there are, with replacement, each with all of its values, and averages
    all values drawn. With a single patient every draw is the same, so the interval has no width: it says
    nothing. Below some 50 patients such intervals are too narrow; see :func:`cohort_warning`.

    Args:
        values: [N] finite numbers.
        patients: [N] the patient of each value.
        draws: number of resampled cohorts.
        seed: of numpy's default generator.
        level: coverage that the interval aims at.
        groups: [N] for example the label of each value: the statistic is then the mean over groups of the
            groups' means; a group that a draw does not hold is left out of that draw.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: where there are no values, lengths differ or a value is not finite.
    """
    means = bootstrap_means(values, patients, draws, seed, groups)
    return percentile_interval(means, level)


def bootstrap_means(
    values: Sequence[float],
    patients: Sequence[Hashable],
    draws: int = DRAWS,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> NDArray[np.float64]:
    """Return the mean of each resampled cohort, [draws]; arguments as in :func:`patient_bootstrap_ci`."""
    numbers = np.asarray(values, dtype=np.float64)
    if groups is None:
        groups = [""] * len(numbers)
    if not len(numbers) or not len(numbers) == len(patients) == len(groups):
        raise ValueError(f"got {len(numbers)} values, {len(patients)} patients and {len(groups)} groups")
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not finite: leave undefined values out before the bootstrap")
    sums, counts = patient_sums(numbers, _positions(patients), _positions(groups))
    means = np.empty(draws)
    for rows, of_groups in group_means(sums, counts, draws, seed):
        means[rows] = np.nanmean(of_groups, axis=1)
    return means


def patient_sums(
    values: NDArray[np.float64], patients: NDArray[np.int64], groups: NDArray[np.int64], n_patients: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sum and number of the values of each patient in each group, both [patients, groups].

    Args:
        values: [N].
        patients: [N] number of each value's patient.
        groups: [N] number of each value's group.
        n_patients: of the cohort; None: those that have a value.
    """
    rows = int(patients.max()) + 1 if n_patients is None else n_patients
    columns = int(groups.max()) + 1
    cell, cells = patients * columns + groups, rows * columns
    sums = np.bincount(cell, values, cells).astype(np.float64)
    counts = np.bincount(cell, minlength=cells).astype(np.float64)
    return sums.reshape(rows, columns), counts.reshape(rows, columns)


def group_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], draws: int = DRAWS, seed: int = 0
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Average each group over each resampled cohort.

    Args:
        sums: [patients, groups] from :func:`patient_sums`.
        counts: [patients, groups].
        draws: number of resampled cohorts.
        seed: of numpy's default generator.

    Yields:
        Which draws, and their means [draws of the block, groups]; NaN where a cohort holds no value of a group.
    """
    step = max(1, BLOCK // sums.shape[1])
    start = 0
    for weights in resampled(len(sums), draws, seed):
        for offset in range(0, len(weights), step):
            part = weights[offset : offset + step]
            with np.errstate(invalid="ignore"):
                means = (part @ sums) / (part @ counts)
            yield slice(start, start + len(part)), means
            start += len(part)


def percentile_interval(means: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the interval that leaves out as much at either end; draws without a value (NaN) do not count."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means[~np.isnan(means)], [tail, 1.0 - tail])
    return float(low), float(high)


def cohort_warning(n_patients: int) -> str | None:
    """Return a sentence where a cohort is too small for its interval to be trusted, or None."""
    if n_patients >= FEW_PATIENTS:
        return None
    if n_patients <= 1:
        return "one patient: the confidence interval has no width and says nothing about other patients"
    return f"{n_patients} patients: below {FEW_PATIENTS}, bootstrap intervals tend to be too narrow"


def _positions(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """Number the names in sorted order, so that the interval does not depend on the order of the rows."""
    order = {name: position for position, name in enumerate(sorted(set(names), key=str))}
    return np.array([order[name] for name in names], dtype=np.int64)
