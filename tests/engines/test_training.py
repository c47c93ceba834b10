"""Tests of monai_ext.engines.training."""

from __future__ import annotations

import shlex
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from monai_ext import processes
from monai_ext.data.manifest import Case, DataList
from monai_ext.data.slice_store import StoredCase
from monai_ext.data.slices import SliceDataset
from monai_ext.engines import training
from monai_ext.errors import UserError
from monai_ext.networks.sam import build_compact


def datalist() -> DataList:
    cases = [
        Case(case="a0", image="a0.nii", label="a0_l.nii", patient="a", modality="CT"),
        Case(case="a1", image="a1.nii", patient="a"),
        Case(case="b0", image="b0.nii", label="b0_l.nii", patient="b"),
        Case(case="c", image="c.nii", label="c_l.nii"),
        Case(case="7", image="7.nii", label="7_l.nii", patient="7"),
    ]
    return DataList(dataset="Toy", modality="MR", labels={"lesion": 1, "organ": 4}, cases=cases)


def names(group: list[dict[str, Any]]) -> list[str]:
    return [case["case"] for case in group]


def test_patients_are_kept_apart_and_unlabelled_cases_left_out() -> None:
    groups = training.split_training(datalist(), ["b", 7])  # the command line makes numbers of names
    assert names(groups["train"]) == ["a0", "c"]
    assert names(groups["validation"]) == ["b0", "7"]
    first = {"case": "a0", "patient": "a", "image": "a0.nii", "label": "a0_l.nii", "modality": "CT"}
    assert groups["train"][0] == first
    assert groups["train"][1]["modality"] == "MR"
    assert groups["train"][1]["patient"] == "c"


def test_everything_trains_by_default() -> None:
    groups = training.split_training(datalist())
    assert names(groups["train"]) == ["a0", "b0", "c", "7"]
    assert groups["validation"] == []


def test_one_validation_patient_may_be_given_without_brackets() -> None:
    assert names(training.split_training(datalist(), "b")["validation"]) == ["b0"]


def test_case_without_a_patient_is_its_own() -> None:
    assert names(training.split_training(datalist(), ["c"])["validation"]) == ["c"]


def test_a_split_validates_beside_the_patients(tmp_path) -> None:
    content = datalist()
    for case, split in zip(content.cases, ("train", "train", "val", "test", "train"), strict=True):
        case.split = split
        for file in filter(None, (case.image, case.label)):
            (tmp_path / file).touch()
    path = tmp_path / "list.json"
    path.write_text(content.model_dump_json())
    cases = training.load_cases(path, split="train", validation_split="val")
    assert [c.case for c in cases.cases] == ["a0", "a1", "7", "b0"]
    groups = training.split_training(cases, ["7"], "val")
    assert (names(groups["train"]), names(groups["validation"])) == (["a0"], ["7", "b0"])
    whole = training.split_training(training.load_cases(path, validation_split="val"), validation_split="val")
    assert (names(whole["train"]), names(whole["validation"])) == (["a0", "c", "7"], ["b0"])
    with pytest.raises(UserError, match="no case is in split 'dev'"):
        training.load_cases(path, split="train", validation_split="dev")
    with pytest.raises(UserError, match="Toy has no labelled case to train on"):
        training.split_training(training.load_cases(path, split="val", validation_split="val"), (), "val")


def test_mistakes_of_the_split() -> None:
    with pytest.raises(UserError, match="no labelled case in split 'val': check --validation_split"):
        training.split_training(datalist(), validation_split="val")
    with pytest.raises(UserError, match="validation patient 'z' has no labelled case in Toy"):
        training.split_training(datalist(), ["z"])
    with pytest.raises(UserError, match="Toy has no labelled case to train on: check --split"):
        training.split_training(datalist(), ["a", "b", "7", "c"])


def test_dense_loss_has_a_class_for_each_structure_and_the_background() -> None:
    network = build_compact(image_size=64, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=32)
    loss = training.dense_loss(network, {"lesion": 1, "organ": 4}, 0.5)
    assert loss is not None
    assert loss.classifier.weight.shape == (3, 32, 1, 1)
    assert training.dense_loss(network, {"lesion": 1}, 0.0) is None
    assert training.on_device(None, "cpu") is None
    assert training.on_device(loss, "cpu") is loss


@pytest.fixture
def files(tmp_path, monkeypatch) -> None:
    """Files of the cases of the data list, by relative paths; :func:`cut` does not read them."""
    monkeypatch.chdir(tmp_path)
    for case in datalist().cases:
        for file in filter(None, (case.image, case.label)):
            Path(file).write_text(file)


def cut(item: dict[str, Any]) -> dict[str, Any]:
    """A case of three slices, the first without a structure."""
    label = np.zeros((1, 64, 64, 3))
    label[0, 5:9, 5:9, 1], label[0, 5:25, 5:25, 2] = 1, 4
    return {"image": 50.0 + 100 * (label == 4), "label": label}


def sources(folder: Path, phantoms: int, regions: int = 0) -> dict[str, list[StoredCase]]:
    train = training.split_training(datalist(), ["b"])["train"]
    labels = {"organ": 4, "lesion": 1}
    return training.training_sources(train, cut, folder, labels, "settings", 64, phantoms, 0, regions=regions)


@pytest.mark.usefixtures("files")
def test_sources_of_a_training(tmp_path) -> None:
    alone = sources(tmp_path, 0)
    assert {name: len(cases) for name, cases in alone.items()} == {"data": 3, "phantoms": 0, "regions": 0}
    mixed = sources(tmp_path, 2)
    assert {name: len(cases) for name, cases in mixed.items()} == {"data": 3, "phantoms": 2, "regions": 0}
    assert mixed["data"] == alone["data"]
    dataset = SliceDataset(mixed, 64)
    assert [dataset[n]["source"] for n in range(len(dataset))] == [0] * 6 + [1] * 4
    assert [int(dataset[n]["label"].max()) for n in range(2)] == [2, 1]  # classes in the order of the labels


@pytest.mark.usefixtures("files")
def test_regions_are_the_third_source_with_or_without_phantoms(tmp_path) -> None:
    mixed = sources(tmp_path, 0, regions=2)
    assert {name: len(cases) for name, cases in mixed.items()} == {"data": 3, "phantoms": 0, "regions": 3}
    dataset = SliceDataset(mixed, 64)
    numbers = np.array([dataset[n]["source"] for n in range(len(dataset))])
    assert set(numbers) == {0, 2}
    drawn = numbers[list(training.training_sampler(dataset, 0.2, 0.4, 4, 1000, 0))]
    assert (drawn == 2).mean() == pytest.approx(0.4, abs=0.03)
    with pytest.raises(UserError, match="leave nothing for the labelled cases"):
        training.training_sampler(dataset, 0.2, 1.0, 4, 5, 0)


@pytest.mark.usefixtures("files")
def test_regions_of_drawn_slices_and_kinds_of_them(tmp_path) -> None:
    train = training.split_training(datalist(), ["b"])["train"]
    place = (train, cut, tmp_path, {"organ": 4, "lesion": 1}, "settings", 64, 2, 0)
    found = training.training_sources(*place, phantom_kinds=["mr", "ct", "rgb"], phantom_regions=1)
    assert {name: len(cases) for name, cases in found.items()} == {"data": 3, "phantoms": 3, "regions": 3}
    assert [case.case.split("_")[1] for case in found["phantoms"]] == ["mr", "ct", "rgb"]
    assert all("regions" in case.stem for case in found["regions"])


@pytest.mark.usefixtures("files")
def test_two_views_are_pairs(tmp_path) -> None:
    dataset = SliceDataset(sources(tmp_path, 2), 64)
    pairs = list(training.training_sampler(dataset, 0.5, 0.0, 4, 20, 0, views=2, reach=1))
    assert all(len(pair) == 2 for pair in pairs)
    with pytest.raises(UserError, match="--views 3 is not possible"):
        training.training_sampler(dataset, 0.5, 0.0, 4, 5, 0, views=3)


def test_correspondence_needs_two_views() -> None:
    assert training.correspondence_loss(0.5, 2) is not None
    assert training.correspondence_loss(0.0, 1) is None
    with pytest.raises(UserError, match="--correspondence compares two views of a slice: set --views 2"):
        training.correspondence_loss(0.5, 1)


@pytest.mark.usefixtures("files")
def test_validation_takes_its_patients_or_the_first_case(tmp_path) -> None:
    labels = {"organ": 4, "lesion": 1}
    for held, expected in ((["b", "7"], ["b0", "7"]), ([], ["a0"])):
        groups = training.split_training(datalist(), held)
        found = training.validation_sources(groups, cut, tmp_path, labels, "settings")
        assert [case.case for case in found["data"]] == expected


@pytest.mark.usefixtures("files")
def test_length_of_an_epoch(tmp_path) -> None:
    dataset = SliceDataset(sources(tmp_path, 2), 64)
    assert len(training.training_sampler(dataset, 0.2, 0.3, 4, 5, 0)) == 20
    assert len(training.training_sampler(dataset, 0.2, 0.3, 4, None, 0)) == 12  # 10 slices in 3 batches
    drawn = np.array([n >= 6 for n in training.training_sampler(dataset, 0.2, 0.3, 4, 1000, 0)])
    assert drawn.mean() == pytest.approx(0.2, abs=0.03)
    alone = SliceDataset(sources(tmp_path, 0), 64)
    assert set(training.training_sampler(alone, 0.2, 0.3, 4, 50, 0)) == set(range(6))


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_phantom_patients_join_the_phantoms(tmp_path) -> None:
    train = training.split_training(datalist())["train"]
    sources = training.training_sources(train, cut, tmp_path, {"organ": 1}, "settings", 64, 0, 0, phantom_patients=2)
    folders = sorted(path.name for path in (tmp_path / "slices").glob("phantom_patient*") if path.is_dir())
    assert folders == ["phantom_patient1000", "phantom_patient1001"]
    assert len(sources["phantoms"]) == 2 * 3


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("phantoms", [0, 2])
def test_cases_without_structures_are_refused(tmp_path, phantoms: int) -> None:
    train = training.split_training(datalist())["train"]
    found = training.training_sources(train, cut, tmp_path, {"other": 9}, "settings", 64, phantoms, 0)
    with pytest.raises(UserError, match="no slice of its cases holds a structure"):
        training.training_sampler(SliceDataset(found, 64), 0.2, 0.3, 4, 5, 0)


def test_record_names_the_patients_and_the_command(monkeypatch) -> None:
    configs = "['/home/me/p/configs/train.yaml',\"/home/me/more.yaml\",'bundles/p2sam/a.yaml']"
    argv = ["run", "--config_file", configs, "--datalist", "/home/me/my data/Toy.json", "--data_root=/data/x"]
    monkeypatch.setattr("sys.argv", ["/opt/lib/monai/bundle/__main__.py", *argv, "--name", "a b"])
    data = datalist()
    groups = training.split_training(data, ["b"])
    trained = {"LoRA": 8, "mask decoder": 20}
    record = training.training_record("weights", "compact", data, groups, "CC BY 4.0", phantoms=3, trained=trained)
    assert record.trained_parameters == trained
    assert shlex.split(record.command) == [
        *("python", "-m", "monai.bundle", "run"),
        *("--config_file", "['train.yaml',\"more.yaml\",'bundles/p2sam/a.yaml']"),
        *("--datalist", "Toy.json", "--data_root=x", "--name", "a b"),
    ]
    assert [d.model_dump() for d in record.datasets] == [
        {"dataset": "Toy", "patients": ["7", "a", "c"], "labels": "dense", "licence": "CC BY 4.0"},
        {"dataset": "phantom slices", "patients": [], "labels": "dense", "licence": "Apache-2.0"},
    ]
    assert record.notes == "choices were made on b"
    assert (record.name, record.variant, record.licence, record.sha256) == ("weights", "compact", "CC BY 4.0", "")


def test_record_names_what_was_seen_before_whom_to_credit_and_what_it_serves() -> None:
    data = datalist()
    before = [{"dataset": "ImageNet-1k", "labels": "none", "licence": "Apache-2.0"}]
    record = training.training_record(
        *("weights", "compact_lite", data, training.split_training(data, ["b"]), "CC BY 3.0"),
        seen_before=before,
        notes="Toy et al. 2015",
        serves={"modalities": ["MR"]},
    )
    assert [(d.dataset, d.labels) for d in record.datasets] == [("Toy", "dense"), ("ImageNet-1k", "none")]
    assert record.notes == "choices were made on b; Toy et al. 2015"
    assert record.serves is not None
    assert (record.serves.modalities, record.serves.structures) == (["MR"], [])


def as_process(monkeypatch, rank: int, store: dist.Store) -> None:
    """Be one of two processes; what the first leaves in the store, the second finds."""
    monkeypatch.setattr(processes, "_job", processes.Job(store, rank, 2))


@pytest.mark.usefixtures("files")
def test_the_first_of_several_processes_makes_the_slices(tmp_path, monkeypatch) -> None:
    store, found = dist.HashStore(), []
    groups = training.split_training(datalist(), ["b"])
    labels = {"organ": 4, "lesion": 1}
    for rank, transform in enumerate((cut, lambda item: pytest.fail("cut again"))):
        as_process(monkeypatch, rank, store)
        place = {"output_dir": tmp_path if rank == 0 else "elsewhere", "labels": labels, "settings": ""}
        made = training.training_sources(groups["train"], transform, **place, size=64, phantoms=2, seed=0, regions=1)
        found.append((made, training.validation_sources(groups, transform, **place)))
    assert found[0] == found[1]
    assert [len(cases) for cases in found[0][0].values()] == [3, 2, 3]
    assert isinstance(found[1][1]["data"][0], StoredCase)


def test_record_says_how_many_processes_trained(monkeypatch) -> None:
    as_process(monkeypatch, 0, dist.HashStore())
    monkeypatch.setattr("sys.argv", ["__main__.py", "run", "--name", "a"])
    data = datalist()
    record = training.training_record("a", "compact", data, training.split_training(data), "CC0")
    assert record.command == "torchrun --nproc_per_node 2 -m monai.bundle run --name a"


def test_record_names_the_command_that_runs_several_trainings(monkeypatch) -> None:
    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec("monai_ext.evaluation.ablation", None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr("sys.argv", ["ablation.py", "--table", "modules"])
    assert training.run_command() == "python -m monai_ext.evaluation.ablation --table modules"
