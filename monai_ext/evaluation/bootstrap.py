"""Confidence intervals by resampling patients: visits and labels of one patient are not independent."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

DRAWS = 10_000
FEW_PATIENTS = 50
# Patient indices drawn at a time: bounds the memory, does not change the draws.
BLOCK = 2_000_000


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
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def bootstrap_means(
    values: Sequence[float],
    patients: Sequence[Hashable],
    draws: int = DRAWS,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """Return the mean of each resampled cohort, [draws]; arguments as in :func:`patient_bootstrap_ci`."""
    numbers = np.asarray(values, dtype=np.float64)
    if groups is None:
        groups = [""] * len(numbers)
    if not len(numbers) or not len(numbers) == len(patients) == len(groups):
        raise ValueError(f"got {len(numbers)} values, {len(patients)} patients and {len(groups)} groups")
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not finite: leave undefined values out before the bootstrap")
    patient, group = _positions(patients), _positions(groups)
    n_patients, n_groups = int(patient.max()) + 1, int(group.max()) + 1
    cell, cells = group * n_patients + patient, n_groups * n_patients
    sums = np.bincount(cell, numbers, cells).reshape(n_groups, n_patients)
    counts = np.bincount(cell, minlength=cells).reshape(n_groups, n_patients)

    generator = np.random.default_rng(seed)
    step = max(1, BLOCK // (n_patients * n_groups))
    means = np.empty(draws)
    for start in range(0, draws, step):
        stop = min(start + step, draws)
        drawn = generator.integers(0, n_patients, size=(stop - start, n_patients))
        with np.errstate(invalid="ignore"):
            of_groups = sums[:, drawn].sum(axis=2) / counts[:, drawn].sum(axis=2)
        means[start:stop] = np.nanmean(of_groups, axis=0)
    return means


def cohort_warning(n_patients: int) -> str | None:
    """Return a sentence where a cohort is too small for its interval to be trusted, or None."""
    if n_patients >= FEW_PATIENTS:
        return None
    if n_patients <= 1:
        return "one patient: the confidence interval has no width and says nothing about other patients"
    return f"{n_patients} patients: below {FEW_PATIENTS}, bootstrap intervals tend to be too narrow"


def _positions(names: Sequence[Hashable]) -> np.ndarray:
    """Number the names in sorted order, so that the interval does not depend on the order of the rows."""
    order = {name: position for position, name in enumerate(sorted(set(names), key=str))}
    return np.array([order[name] for name in names], dtype=np.int64)
