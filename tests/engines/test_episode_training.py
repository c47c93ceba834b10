"""Tests of monai_ext.engines.episode_training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from few_shot_cases import few_shot_cases
from monai_ext.data.episode_lists import read_episodes
from monai_ext.data.episodes import FewShotTask
from monai_ext.data.manifest import Case, DataList
from monai_ext.data.superpixels import Superpixels
from monai_ext.engines import episode_training as training
from monai_ext.errors import UserError

CUT = Superpixels(smallest=0.03, largest=0.5)


def folds(dataset: str = "Toy", labels: dict[str, int] | None = None, patients: int = 8) -> DataList:
    """Patients p0, p1, ... in folds of two."""
    cases = [
        Case(case=f"{dataset}{n}", patient=f"p{n}", image=f"{n}.nii", label=f"{n}_l.nii", fold=n // 2)
        for n in range(patients)
    ]
    return DataList(dataset=dataset, modality="MR", labels=labels or {"liver": 1, "spleen": 4}, cases=cases)


def patients(groups, name: str) -> list[str]:
    return [case["patient"] for case in groups[name]]


def test_the_fold_after_the_tested_one_validates() -> None:
    groups = training.split_patients([folds()], fold=1)
    assert patients(groups, "validation") == ["p4", "p5"]
    assert patients(groups, "train") == ["p0", "p1", "p6", "p7"]
    assert patients(training.split_patients([folds()], fold=3), "validation") == [
        "p0",
        "p1",
    ]  # after the last the first


def test_only_two_patients_of_a_larger_fold_validate() -> None:
    datalist = folds()
    for n, case in enumerate(datalist.cases):
        case.fold = n // 4
    assert patients(training.split_patients([datalist], fold=0), "validation") == ["p4", "p5"]


def test_named_patients_validate_and_others_are_kept_out() -> None:
    groups = training.split_patients([folds()], None, ["p7"], "p0")
    assert (patients(groups, "validation"), patients(groups, "train")) == (["p7"], [f"p{n}" for n in range(1, 7)])
    assert patients(training.split_patients([folds()]), "validation") == []


def test_tested_patients_are_not_trained_on_in_another_list_of_the_same_people() -> None:
    groups = training.split_patients([folds("CHAOS_T2"), folds("CHAOS_T1")], 0, [])
    assert {case["dataset"] for case in groups["train"]} == {"CHAOS_T1", "CHAOS_T2"}
    assert not {"p0", "p1"} & set(patients(groups, "train"))


def test_the_fold_is_that_of_the_first_list() -> None:
    other = folds("Other", {"heart": 1}, 2)
    groups = training.split_patients([folds(), other], 0, [])
    assert [c["case"] for c in groups["train"]] == [*(f"Toy{n}" for n in range(2, 8)), "Other0", "Other1"]
    first = {"case": "Other0", "patient": "p0", "dataset": "Other", "image": "0.nii", "label": "0_l.nii"}
    assert groups["train"][-2] == {**first, "modality": "MR"}
    assert training.class_names([folds(), other]) == ["liver", "spleen", "heart"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fold": 9}, "Toy has no fold 9"),
        ({"validation_patients": ["x"]}, "patient 'x' is in no data list"),
        ({"held_out": "y"}, "patient 'y' is in no data list"),
        ({"fold": 1, "validation_patients": ["p0", "p3"]}, "patient 'p3' is of fold 1 of Toy, which is tested"),
        ({"held_out": [f"p{n}" for n in range(8)]}, "no labelled case is left to train on"),
    ],
)
def test_mistakes_of_the_split(options, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        training.split_patients([folds()], **options)


def test_several_lists_and_a_split_of_those_that_have_one(tmp_path, capsys) -> None:
    for name, split in (("One", "train"), ("Two", None)):
        cases = [{"case": f"{name}{n}", "image": f"{name}{n}.nii"} for n in range(2)]
        if split:
            cases[0]["split"], cases[1]["split"] = "train", "test"
        for case in cases:
            (tmp_path / case["image"]).touch()
        (tmp_path / f"{name}.json").write_text(json.dumps({"dataset": name, "labels": {"x": 1}, "cases": cases}))
    lists = training.load_lists(tmp_path / "One.json", [str(tmp_path / "Two.json")], split="train")
    assert [[case.case for case in one.cases] for one in lists] == [["One0"], ["Two0", "Two1"]]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="two data lists are of One"):
        training.load_lists(tmp_path / "One.json", str(tmp_path / "One.json"))
    training.load_lists(tmp_path / "One.json")
    assert "One has the splits test, train, and all are learned from: --split" in capsys.readouterr().err


def cut(item: dict[str, str]) -> dict[str, np.ndarray]:
    """A case of three slices; the first shows nothing, the second a liver, the third a spleen."""
    label = np.zeros((1, 32, 32, 3))
    label[0, 5:25, 5:15, 1], label[0, 5:25, 15:30, 2] = 1, 4
    return {"image": 50.0 + 30 * label, "label": label}


def test_cases_of_several_lists_are_stored_with_their_own_labels(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lists = [folds(patients=2), folds("Other", {"spleen": 4}, 1)]
    for n in range(2):
        Path(f"{n}.nii").write_text("image")
        Path(f"{n}_l.nii").write_text("label")
    groups = training.split_patients(lists)
    stored = training.store_cases(groups["train"], lists, cut, tmp_path / "slices", "settings", CUT)
    assert [(case.dataset, case.patient, case.classes) for case in stored] == [
        ("Toy", "p0", ("liver", "spleen")),
        ("Toy", "p1", ("liver", "spleen")),
        ("Other", "p0", ("spleen",)),
    ]
    assert [len(case.load("slices")) for case in stored] == [3, 3, 3]  # those without a structure too
    assert stored[2].load("pixels")[2].tolist() == [32 * 32 - 300, 300]
    assert all(case.has(CUT.name) for case in stored)


def test_what_setting_2_removes_is_told(tmp_path, capsys) -> None:
    task = FewShotTask(("liver",), ("kidney", "spleen"), 2)
    training.training_pool(few_shot_cases(tmp_path), task, "supervised", 1, CUT)
    told = capsys.readouterr().err
    assert "Setting 2: 5 of 9 training slices removed because they show kidney or spleen" in told
    assert "liver 2" in told


@pytest.fixture
def stored(tmp_path):
    cases = few_shot_cases(tmp_path)
    training.store_superpixels(cases, CUT)
    return cases


def frozen(cases, tmp_path, task: FewShotTask, **options):
    return training.validation_episodes(cases, task, 1, CUT, 10, 0, tmp_path / "frozen.json", **options)


def test_validation_asks_for_base_classes_and_superpixels_alone(stored, tmp_path) -> None:
    task = FewShotTask(("liver", "spleen"), ("kidney",))
    episodes = frozen(stored, tmp_path, task)
    assert [e.is_superpixel for e in episodes] == [False] * 5 + [True] * 5
    assert {e.name for e in episodes[:5]} == {"liver", "spleen"}
    assert read_episodes(tmp_path / "frozen.json") == episodes
    assert frozen(stored, tmp_path, task) == episodes


def test_classes_of_one_validation_patient_are_left_out(stored, tmp_path, capsys) -> None:
    frozen(stored, tmp_path, FewShotTask(("liver", "spleen"), ()))
    assert "warning" not in capsys.readouterr().err
    episodes = frozen([stored[0], stored[2]], tmp_path, FewShotTask(("spleen",), ()))
    assert "warning: no two validation patients of one data set and modality show spleen" in capsys.readouterr().err
    assert all(e.is_superpixel for e in episodes)
    assert len(episodes) == 10


def test_a_training_without_validation_says_so(tmp_path, capsys) -> None:
    assert frozen([], tmp_path, FewShotTask(("spleen",), ())) == []
    assert "no patient validates, so the last weights are kept" in capsys.readouterr().err


def test_a_given_list_is_checked(stored, tmp_path) -> None:
    task = FewShotTask(("liver", "spleen"), ("kidney",))
    given = tmp_path / "given.json"
    frozen(stored, tmp_path, task)
    (tmp_path / "frozen.json").rename(given)
    assert frozen(stored, tmp_path, task, given=given) == read_episodes(given)
    with pytest.raises(UserError, match="asks for 'liver', which is no base class"):
        frozen(stored, tmp_path, FewShotTask(("spleen",), ("liver",)), given=given)
    trained = [{"dataset": "Toy", "patient": patient} for patient in "abc"]
    with pytest.raises(UserError, match="who is in the training"):
        frozen(stored, tmp_path, task, given=given, trained=trained)


def test_record_of_the_weights() -> None:
    lists = [folds(), folds("Other", {"heart": 1}, 1)]
    groups = training.split_patients(lists, 0)
    task = FewShotTask(("liver", "heart"), ("spleen",), 2)
    before = [{"dataset": "ImageNet-1k", "labels": "none", "licence": "Apache-2.0"}]
    record = training.episodic_record("w", "lite0", lists, groups, "CC0", task, {"image_size": 160}, before, "Toy 2020")
    assert [(d.dataset, d.patients) for d in record.datasets] == [
        ("Toy", ["p4", "p5", "p6", "p7"]),
        ("Other", ["p0"]),
        ("ImageNet-1k", []),
    ]
    assert record.trained_as == {"image_size": 160}
    said = "base classes: liver, heart; Setting 2; novel: spleen; choices were made on p2, p3; Toy 2020"
    assert record.notes == said
    assert {d.labels for d in record.datasets[:2]} == {"dense"}
    unlabelled = training.episodic_record("w", "lite0", lists, groups, "CC0", FewShotTask((), ("spleen",)))
    assert {d.labels for d in unlabelled.datasets} == {"none"}, "superpixels alone"
