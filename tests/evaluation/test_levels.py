"""Means of means: by hand, and against a loop that resamples patients row by row."""

from __future__ import annotations

import numpy as np
import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.bootstrap import group_means
from monai_ext.evaluation.levels import describe_levels, nest, parse_levels, place, refuse_empty_levels

PROTOCOLS = [
    "case",
    "visit,patient",
    "case,patient",
    "case,label,fold",
    "case,fold",
    "case,patient,fold",
    "case,run",
    "case,label,run,fold",
]


@pytest.fixture
def rows(make_row):
    """Uneven: patients of one to four cases, two labels, two runs, three folds."""
    rng = np.random.default_rng(0)
    found = []
    for patient in range(7):
        for case in range(rng.integers(1, 5)):
            for run in "01":
                fields = {"patient": f"p{patient}", "visit": str(case // 2), "fold": str(patient % 3), "run": run}
                labels = [label for label in "ab" if rng.random() < 0.8]
                found += [make_row(f"p{patient}c{case}", label, rng.random(), **fields) for label in labels]
    return sorted(found, key=place)


def slow_mean(rows, levels):
    """Mean of means of [(key of each level, value)], by recursion from the coarsest level."""
    if not levels:
        return np.mean([row.value for row, _ in rows])
    units = {}
    for row, copy in rows:
        name = (row.cluster, copy) if levels[-1] == "patient" else getattr(row, levels[-1])
        name = (name, copy) if levels[-1] == "case" else name
        units.setdefault(name, []).append((row, copy))
    return np.mean([slow_mean(unit, levels[:-1]) for unit in units.values()])


def cohort_means(nested, draws, seed):
    parts = [nested.of_cohorts(means) for _, means in group_means(nested.sums, nested.counts, draws, seed)]
    return np.concatenate(parts)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mean_is_that_of_a_recursion(protocol, rows):
    levels = parse_levels(protocol)
    patients = {name: number for number, name in enumerate(sorted({row.cluster for row in rows}))}
    found = nest(rows, levels, patients)
    assert found.mean == pytest.approx(slow_mean([(row, 0) for row in rows], levels[1:]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cohorts_are_those_of_a_loop(protocol, rows):
    """A patient drawn twice is two patients; a fold, label or run is one however often it is drawn."""
    levels = parse_levels(protocol)
    names = sorted({row.cluster for row in rows})
    found = cohort_means(nest(rows, levels, {name: number for number, name in enumerate(names)}), 40, 2)
    generator = np.random.default_rng(2)
    for mean in found:
        drawn = generator.integers(0, len(names), size=len(names))
        cohort = [(row, copy) for copy, patient in enumerate(drawn) for row in rows if row.cluster == names[patient]]
        assert mean == pytest.approx(slow_mean(cohort, levels[1:]))


def test_slices_visits_and_patients_by_hand(make_row):
    values = [("p1", "0", 0.2), ("p1", "0", 0.4), ("p1", "1", 0.9), ("p2", "0", 0.1)]
    rows = [
        make_row(f"c{number}", "a", value, patient=patient, visit=visit)
        for number, (patient, visit, value) in enumerate(values)
    ]
    found = nest(rows, parse_levels("visit,patient"), {"p1": 0, "p2": 1})
    assert found.values.tolist() == pytest.approx([(0.3 + 0.9) / 2, 0.1])
    assert found.mean == pytest.approx(0.35)


def test_a_patient_whose_name_is_unknown_is_the_case(make_row):
    rows = [make_row(name, "a", value, patient="") for name, value in (("x", 1.0), ("x", 0.0), ("y", 0.0))]
    assert nest(rows, parse_levels("patient"), {"x": 0, "y": 1}).mean == pytest.approx(0.25)


def test_levels_are_named_from_the_case_on():
    assert parse_levels("visit, patient") == ("case", "visit", "patient")
    assert parse_levels(["case", "label", "fold"]) == ("case", "label", "fold")
    assert parse_levels("") == ("case",)
    assert describe_levels(parse_levels("visit,patient")) == "cases -> visits -> patients"


@pytest.mark.parametrize(("mean_of", "sentence"), [("slice", "no such level"), ("fold,fold", "twice")])
def test_levels_that_are_none_are_refused(mean_of, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_levels(mean_of)


def test_a_level_that_no_case_has_is_refused():
    cases = [{"visit": "", "fold": ""}, {"visit": "1", "fold": ""}]
    refuse_empty_levels(["case", "visit", "patient"], cases)
    with pytest.raises(UserError, match="no case has a fold"):
        refuse_empty_levels(["case", "fold"], cases)
