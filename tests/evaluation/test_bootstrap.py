"""The cluster bootstrap against a loop with the same draws."""

from __future__ import annotations

import numpy as np
import pytest

from monai_ext.evaluation import bootstrap
from monai_ext.evaluation.bootstrap import (
    bootstrap_means,
    cohort_warning,
    group_means,
    patient_bootstrap_ci,
    patient_sums,
    percentile_interval,
    resampled,
)

VALUES = [0.1, 0.5, 0.9, 0.4, 0.7, 0.2, 0.35]
PATIENTS = ["b", "a", "b", "c", "d", "d", "d"]
LABELS = ["x", "x", "y", "x", "y", "x", "y"]


def slow_means(draws: int, seed: int, groups: list[str] | None) -> list[float]:
    generator = np.random.default_rng(seed)
    names = sorted(set(PATIENTS))
    means = []
    for _ in range(draws):
        drawn = [names[i] for i in generator.integers(0, len(names), size=len(names))]
        rows = [
            (value, label)
            for name in drawn
            for value, patient, label in zip(VALUES, PATIENTS, LABELS, strict=True)
            if patient == name
        ]
        kept = [[value for value, label in rows if groups is None or label == group] for group in groups or [""]]
        means.append(np.mean([np.mean(of_group) for of_group in kept if of_group]))
    return means


@pytest.mark.parametrize("groups", [None, LABELS])
def test_means_are_those_of_a_loop(groups, monkeypatch):
    monkeypatch.setattr(bootstrap, "BLOCK", 40)  # several blocks, the last one not full
    found = bootstrap_means(VALUES, PATIENTS, 101, 5, groups)
    np.testing.assert_allclose(found, slow_means(101, 5, None if groups is None else ["x", "y"]))


def test_cohorts_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(bootstrap, "BLOCK", 40)
    blocks = list(resampled(7, 23, seed=3))
    assert max(block.size for block in blocks) <= 40
    generator = np.random.default_rng(3)
    drawn = [generator.integers(0, 7, size=7).tolist() for _ in range(23)]
    assert np.concatenate(blocks).tolist() == [[cohort.count(patient) for patient in range(7)] for cohort in drawn]


def test_every_cohort_is_as_large_as_the_first():
    assert {*np.concatenate(list(resampled(30, 50))).sum(axis=1)} == {30.0}
    with pytest.raises(ValueError, match="no patients"):
        next(resampled(0))


def test_columns_of_a_table_share_their_cohorts():
    rng = np.random.default_rng(0)
    values, patients, groups = rng.random(40), rng.integers(0, 6, 40), rng.integers(0, 3, 40)
    together = np.concatenate([means for _, means in group_means(*patient_sums(values, patients, groups, 6), 50)])
    for group in range(3):
        chosen = groups == group
        sums, counts = patient_sums(values[chosen], patients[chosen], np.zeros(chosen.sum(), int), 6)
        alone = np.concatenate([means for _, means in group_means(sums, counts, 50)])
        np.testing.assert_allclose(together[:, group], alone[:, 0])


def test_cohorts_without_a_value_do_not_count():
    assert percentile_interval(np.array([np.nan, 1.0, 3.0, np.nan]), 0.5) == (1.5, 2.5)


def test_interval_is_the_percentiles_of_the_means():
    low, high = patient_bootstrap_ci(VALUES, PATIENTS, draws=500, seed=1, level=0.9)
    assert [low, high] == pytest.approx(np.quantile(slow_means(500, 1, None), [0.05, 0.95]))


def test_visits_of_one_patient_do_not_narrow_the_interval():
    values, patients = [0.2, 0.4, 0.6, 0.8], list("abcd")
    once = patient_bootstrap_ci(values, patients)
    assert patient_bootstrap_ci(values * 10, patients * 10) == pytest.approx(once)
    cases = [f"{name}{visit}" for visit in range(10) for name in patients]
    low, high = patient_bootstrap_ci(values * 10, cases)
    assert high - low < 0.5 * (once[1] - once[0])


def test_order_of_rows_does_not_matter_and_the_seed_does():
    turned = patient_bootstrap_ci(VALUES[::-1], PATIENTS[::-1])
    assert turned == pytest.approx(patient_bootstrap_ci(VALUES, PATIENTS), abs=1e-12)
    assert patient_bootstrap_ci(VALUES, PATIENTS, draws=99, seed=1) != patient_bootstrap_ci(
        VALUES, PATIENTS, draws=99, seed=2
    )


def test_one_patient_gives_an_interval_without_width():
    assert patient_bootstrap_ci([0.2, 0.6], ["a", "a"]) == pytest.approx((0.4, 0.4))


def test_small_cohorts_are_warned_about():
    assert cohort_warning(50) is None
    assert "49 patients" in (cohort_warning(49) or "")
    assert "no width" in (cohort_warning(1) or "")


@pytest.mark.parametrize(("values", "patients"), [([], []), ([1.0], ["a", "b"]), ([float("nan")], ["a"])])
def test_values_that_are_none_are_refused(values, patients):
    with pytest.raises(ValueError, match=r"values|finite"):
        patient_bootstrap_ci(values, patients)
