from __future__ import annotations

import pytest

from monai_ext.data.indexing.visits import order_visits, patients_and_visits, words
from monai_ext.errors import UserError


@pytest.mark.parametrize(
    ("names", "visits", "told"),
    [
        (["2", "10"], [2, 10], True),
        (["2024-02-26", "2024-01-15"], ["2024-01-15", "2024-02-26"], True),
        (["20240226", "20240115"], ["2024-01-15", "2024-02-26"], True),
        (["CT_20240226", "MR 2024.01.15"], ["2024-01-15", "2024-02-26"], True),
        (["week 6", "week 12", "week 0"], [0, 6, 12], True),
        (["v1", "v2"], [1, 2], True),
        (["baseline", "month3", "month12"], [0, 1, 2], False),
        (["pre", "post"], [0, 1], False),
        (["Follow-up", "Baseline"], [0, 1], False),
        (["post-op", "pre-op", "OP"], [0, 1, 2], False),
        (["ED", "ES"], [0, 1], False),
        (["1", "2024-01-15"], [0, 1], False),
        (["scan"], [0], False),
    ],
)
def test_visits_are_dates_numbers_or_words(names: list[str], visits: list[object], told: bool) -> None:
    found, known = order_visits(names)
    assert (list(found.values()), known) == (visits, told)


def test_words_before_and_after_come_first_and_last() -> None:
    assert list(order_visits(["after", "middle", "before"])[0]) == ["before", "middle", "after"]


def test_the_last_folder_is_the_visit_and_the_one_above_the_patient() -> None:
    found, notes = patients_and_visits(["p1/2024-01-15", "p1/2024-02-26", "p2/3"])
    assert found == {
        "p1/2024-01-15": {"patient": "p1", "visit": "2024-01-15"},
        "p1/2024-02-26": {"patient": "p1", "visit": "2024-02-26"},
        "p2/3": {"patient": "p2", "visit": 3},
    }
    assert notes == []


@pytest.mark.parametrize(
    ("folders", "patients"),
    [
        (["study/p1/1", "study/p1/2", "study/p2/1"], ["p1", "p1", "p2"]),
        (["A/p1/1", "B/p1/1"], ["A_p1", "B_p1"]),  # two sites may call different patients alike
        (["p1/1/anat", "p1/2/anat"], ["p1", "p1"]),
        (["p1/1"], ["p1"]),
    ],
)
def test_folders_around_patient_and_visit(folders: list[str], patients: list[str]) -> None:
    found, _ = patients_and_visits(folders)
    assert [found[folder]["patient"] for folder in folders] == patients


def test_a_split_is_no_patient() -> None:
    assert patients_and_visits(["train/a", "train/b", "test/c"])[0] == {}


def test_a_folder_without_one_above_has_no_patient() -> None:
    assert patients_and_visits(["p1", "p2"]) == ({}, [])


def test_it_is_said_when_names_alone_order_the_visits() -> None:
    _, notes = patients_and_visits(["p1/post", "p1/pre", "p2/1"])
    assert len(notes) == 1
    assert "(pre, post)" in notes[0]


def test_words_of_a_name() -> None:
    assert words("LesionMask_02-final.CT") == ["lesion", "mask", "final", "ct"]


@pytest.mark.parametrize("names", [["15012024", "01022024"], ["CT_15012024", "CT_01022024"], ["01152024", "1"]])
def test_dates_whose_year_is_last_are_no_order(names: list[str]) -> None:
    with pytest.raises(UserError, match="year is last"):
        order_visits(names)


def test_one_visit_needs_no_order() -> None:
    assert order_visits(["CT_15012024"])[0] == {"CT_15012024": 0}
