from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import decollate_batch

from monai_ext.data.manifest import Case, DataList, load_datalist
from monai_ext.data.pairs import collate_case, pair_with_reference, single_images, with_labels, with_previous
from monai_ext.errors import UserError


def case(name: str, visit: Any = None, patient: str | None = "P", annotated: bool = True, **keys: Any) -> Case:
    label = f"{name}_label.nii.gz" if annotated else None
    return Case(case=name, image=f"{name}.nii.gz", patient=patient, visit=visit, label=label, **keys)


def datalist(*cases: Case) -> DataList:
    return DataList(dataset="D", modality="MR", labels={"RV": 1}, cases=list(cases))


def served(*cases: Case, reference_visit: Any = None) -> dict[str, list[str]]:
    """Map each target to its references."""
    pairs = pair_with_reference(datalist(*cases), reference_visit)
    return {pair["case"]: pair["reference"] for pair in pairs}


def test_earliest_annotated_visit_serves_each_later_one() -> None:
    assert served(case("c", 2), case("a", 0, annotated=False), case("b", 1), case("d", 10)) == {
        "c": ["b"],
        "d": ["b"],
    }


def test_dates_are_ordered_in_time_and_written_as_text() -> None:
    cases = case("b", "2023-10-01"), case("a", "2023-09-30")
    assert served(*cases) == {"b": ["a"]}
    assert pair_with_reference(datalist(*cases))[0]["visit"] == "2023-10-01"


def test_digit_strings_are_numbers() -> None:
    assert served(case("a", "10"), case("b", "9")) == {"a": ["b"]}


def test_patients_do_not_serve_each_other() -> None:
    cases = [case(f"{p}{v}", v, patient=p) for v in (1, 0) for p in "QP"]
    assert served(*cases) == {"Q1": ["Q0"], "P1": ["P0"]}


def test_a_reference_keeps_its_own_modality() -> None:
    first, later = case("a", 0), case("b", 1)
    first.modality, later.modality = "CT", "MR"
    (pair,) = pair_with_reference(datalist(first, later))
    assert (pair["modality"], pair["reference_modality"]) == ("MR", ["CT"])


def test_patient_with_one_case_is_left_out() -> None:
    assert served(case("a", 0), case("b", 1), case("alone", None, patient="Q")) == {"b": ["a"]}


def test_annotated_images_of_one_visit_serve_together() -> None:
    assert served(case("a1", 0), case("a2", 0), case("b", 1)) == {"b": ["a1", "a2"]}


@pytest.mark.parametrize(
    ("visit", "expected"),
    [
        (1, {"c": ["b"], "d": ["b"]}),
        ("1", {"c": ["b"], "d": ["b"]}),
        ([0, 2], {"d": ["a", "c"]}),
        ([2, 0, 2], {"d": ["a", "c"]}),  # the last one is the latest, of which measures tell the change
    ],
)
def test_reference_visit_names_another(visit: Any, expected: dict[str, list[str]]) -> None:
    assert served(case("a", 0), case("b", 1), case("c", 2), case("d", 3), reference_visit=visit) == expected


def test_reference_visit_may_be_a_date() -> None:
    cases = case("a", "2023-01-01"), case("b", "2023-02-01"), case("c", "2023-03-01")
    assert served(*cases, reference_visit="2023-02-01") == {"c": ["b"]}


def test_pair_holds_what_a_run_needs_and_nothing_of_the_targets_label() -> None:
    target = case("b", 1, scribble="s.nii.gz", modality="CT", phase="ES", empty=None, **{"Label": "x", "SCRIBBLE": "y"})
    assert pair_with_reference(datalist(case("a", 0), target)) == [
        {
            "case": "b",
            "patient": "P",
            "visit": 1,
            "dataset": "D",
            "modality": "CT",
            "image": "b.nii.gz",
            "reference": ["a"],
            "reference_image": ["a.nii.gz"],
            "reference_label": ["a_label.nii.gz"],
            "reference_modality": ["MR"],
            "reference_choice": "pooled",
            "phase": "ES",
        }
    ]


def test_own_references_need_no_patient() -> None:
    own = {"reference_image": ["x/r1.nii.gz", "x/r2.v1.png"], "reference_label": ["l1.nii.gz", "l2.png"]}
    pair = pair_with_reference(datalist(case("t", patient=None, annotated=False, **own)))[0]
    assert pair["reference"] == ["r1", "r2.v1"]
    assert {key: pair[key] for key in own} == own
    assert (pair["patient"], pair["visit"], pair["modality"]) == ("", "", "MR")


def test_own_references_come_before_the_patients_visits() -> None:
    own = {"reference_image": "r.png", "reference_label": "l.png"}
    assert served(case("a", 0), case("b", 1), case("c", 2, **own)) == {"b": ["a"], "c": ["r"]}


@pytest.mark.parametrize(
    ("cases", "visit", "match"),
    [
        ([case("a", 0, patient=None)], None, "case 'a' has neither 'patient'"),
        ([case("a"), case("b")], None, "patient 'P' has 2 cases, but case 'a' has no 'visit'"),
        ([case("a", 0), case("b")], None, "case 'b' has no 'visit'"),
        (
            [case("a", 0, annotated=False), case("b", 1, annotated=False)],
            None,
            "patient 'P' has no case with a 'label'",
        ),
        ([case("a", 0)], None, "no patient has an image of a visit later than its reference"),
        ([case("a", 0), case("b", 1)], 1, "no patient has an image of a visit later than its reference"),
        ([case("a", 0), case("b", 1)], 2, "patient 'P' has no visit 2 .* its visits are: 0, 1"),
        ([case("a", 0), case("b", 1), case("c", 1, "Q")], 0, "patient 'Q' has no visit 0"),
        ([case("a", 0, annotated=False), case("b", 1)], 0, "case 'a' is the reference .* but has no 'label'"),
        ([case("a", 0), case("b", 1)], "first", "reference_visit: 'first' is no visit; write a number"),
    ],
)
def test_what_cannot_be_paired(cases: list[Case], visit: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        pair_with_reference(datalist(*cases), visit)


def test_labels_come_back_for_metrics_alone() -> None:
    cases = datalist(case("a", 0), case("b", 1))
    pairs = pair_with_reference(cases)
    assert [pair["label"] for pair in with_labels(pairs, cases)] == ["b_label.nii.gz"]
    assert "label" not in pairs[0]
    bare = datalist(case("a", 0), case("b", 1, annotated=False))
    with pytest.raises(UserError, match="case 'b' has no 'label' to evaluate against"):
        with_labels(pair_with_reference(bare), bare)


def test_a_collated_case_is_taken_apart_as_it_was() -> None:
    case = {
        "image": torch.zeros(1, 4, 3),
        "reference_image": ["a", "b"],
        "visit": 1,
        "case": "x",
        "nested": {"k": [1, 2]},
    }
    batch = collate_case([case])
    assert batch["image"].shape == (1, 1, 4, 3)
    (single,) = decollate_batch(batch)
    assert single["image"].shape == (1, 4, 3)
    assert {key: single[key] for key in ("reference_image", "visit", "case")} == {
        "reference_image": ["a", "b"],
        "visit": 1,
        "case": "x",
    }
    assert "nested" not in single


def test_several_cases_are_not_collated() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        collate_case([{}, {}])


def test_acdc_pairs_end_diastole_with_end_systole(real_data: Path) -> None:
    pairs = pair_with_reference(load_datalist(real_data / "ACDC.json", split="test"))
    assert len(pairs) == 10
    for pair in pairs:
        assert pair["phase"] == "ES"
        assert pair["reference"] == [f"{pair['patient']}_frame01"]


def test_cvc_scores_thirteen_frames(real_data: Path) -> None:
    pairs = pair_with_reference(load_datalist(real_data / "CVC_ClinicDB.json"), reference_visit=3)
    assert [pair["visit"] for pair in pairs] == list(range(4, 17))


@pytest.mark.parametrize("choice", ["all", "nearest"])
def test_all_earlier_annotated_visits_serve_and_never_the_targets_own_or_a_later_one(choice: str) -> None:
    cases = case("d", 3), case("c", 2), case("b", 1, annotated=False), case("a", 0), case("c2", 2)
    assert served(*cases, reference_visit=choice) == {
        "d": ["a", "c", "c2"],
        "c": ["a"],
        "b": ["a"],
        "c2": ["a"],
    }
    pairs = pair_with_reference(datalist(*cases), choice)
    assert {pair["reference_choice"] for pair in pairs} == {"pooled" if choice == "all" else "nearest"}
    assert not any(pair["case"] in pair["reference"] for pair in pairs)


def test_a_patient_without_annotations_has_no_earlier_reference() -> None:
    with pytest.raises(UserError, match="has no case with a 'label'"):
        served(case("a", 0, annotated=False), case("b", 1, annotated=False), reference_visit="all")


def test_each_target_knows_the_one_before_it_whatever_the_order_of_the_list() -> None:
    cases = [case(f"{p}{v}", v, patient=p) for v in (10, 0, 2, 1) for p in "QP"]
    linked = with_previous(pair_with_reference(datalist(*cases)))
    assert {pair["case"]: pair["previous"] for pair in linked} == {
        **{"Q10": "Q2", "Q2": "Q1", "Q1": ""},
        **{"P10": "P2", "P2": "P1", "P1": ""},
    }
    assert linked[0]["previous_image"] == "Q2.nii.gz"


def test_the_image_before_brings_its_own_modality() -> None:
    cases = [case("a", 0), case("b", 1, modality="CT"), case("c", 2)]
    linked = with_previous(pair_with_reference(datalist(*cases)))
    assert [(pair["modality"], pair["previous_modality"]) for pair in linked] == [("CT", ""), ("MR", "CT")]


def test_an_annotated_reference_goes_before_a_prediction() -> None:
    cases = case("a", 0), case("b", 1), case("c", 2, annotated=False), case("d", 3)
    linked = with_previous(pair_with_reference(datalist(*cases), "all"))
    assert {pair["case"]: pair["previous"] for pair in linked} == {"b": "", "c": "", "d": "c"}


@pytest.mark.parametrize("follow", [False, "false", "False"])
def test_nothing_is_followed_unless_asked_for(follow) -> None:
    linked = with_previous(pair_with_reference(datalist(case("a", 0), case("b", 1), case("c", 2))), follow)
    assert {(pair["previous"], pair["previous_image"]) for pair in linked} == {("", "")}


def test_single_images_bring_neither_label_nor_scribble_nor_reference() -> None:
    cases = case("a", 1, scribble="scribble.nii.gz", phase="ED"), case("b", patient=None, annotated=False)
    first, second = single_images(datalist(*cases))
    known = {"dataset": "D", "modality": "MR"}
    assert first == {"case": "a", "patient": "P", "visit": 1, "image": "a.nii.gz", "phase": "ED", **known}
    assert second == {"case": "b", "patient": "b", "visit": "", "image": "b.nii.gz", **known}
    assert with_labels([first], datalist(*cases)) == [{**first, "label": "a_label.nii.gz"}]
