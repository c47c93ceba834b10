"""Bundle prosam through MONAI's front door: a tiny training on phantoms, then inference with what it learned."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from monai_ext.data.phantoms.writing import write_phantom_patients
from monai_ext.errors import find_user_error

TRAIN = {"trunk": "sam", "hidden": 16, "prompt_count": 4, "samples": 2, "steps": 2, "epoch_length": 1, "min_pixels": 4}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantom_patients(tmp_path_factory.mktemp("phantoms"), 4)


@pytest.fixture(scope="module")
def classes(phantoms) -> list[str]:
    return list(json.loads(phantoms.read_text())["labels"])


@pytest.fixture(scope="module")
def training(load_bundle, phantoms, classes) -> Callable[[Path], Any]:
    """Prepare a training in a folder."""
    options = {**TRAIN, "novel": [classes[0]], "validation_patients": [], "select": None}

    def prepare(folder: Path) -> Any:
        given = {"datalist": str(phantoms), "output_dir": str(folder), **options}
        return load_bundle("prosam", "train", workflow_type="train", **given)

    return prepare


@pytest.fixture(scope="module")
def trained(tmp_path_factory, training) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    workflow = training(folder)
    workflow.run()
    workflow.finalize()
    return folder / "prompts.pt"


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, run_bundle, phantoms, classes, trained) -> Path:
    folder = tmp_path_factory.mktemp("segmented")
    case = json.loads(phantoms.read_text())["cases"][0]["case"]
    options = {"support": case, "organ": classes[0], "prompt_checkpoint": str(trained), "samples": 2}
    options |= {"allow_trained": True, "allow_overlap": True}
    run_bundle("prosam", "inference", "evaluate", datalist=str(phantoms), output_dir=str(folder), **options)
    return folder


def test_the_record_names_classes_and_sam(trained, classes, tiny_weights):
    record = json.loads(trained.with_suffix(".json").read_text())
    assert record["trained_as"]["classes"] == classes[1:]
    assert record["trained_as"]["sam"] == tiny_weights.stem
    assert "novel: " + classes[0] in record["notes"]
    assert not [name for name in torch.load(trained, weights_only=True) if name.startswith("reference")]


def test_a_training_that_goes_on_after_a_kill_ends_in_the_same_weights(training, trained, tmp_path):
    def kill(engine: Engine) -> None:
        raise KeyboardInterrupt

    workflow = training(tmp_path)
    workflow.parser.get_parsed_content("train#trainer").add_event_handler(Events.EPOCH_COMPLETED(once=1), kill)
    with pytest.raises(KeyboardInterrupt):
        workflow.run()
    assert (tmp_path / "checkpoint.pt").is_file()
    assert not (tmp_path / "prompts.pt").exists()
    training(tmp_path).run()
    assert (tmp_path / "prompts.pt").read_bytes() == trained.read_bytes()


def test_every_case_has_a_mask_and_an_uncertainty_in_its_own_geometry(segmented, phantoms):
    cases = {case["case"]: case for case in json.loads(phantoms.read_text())["cases"]}
    found = sorted((segmented / "uncertainty").iterdir())
    assert [path.name for path in found] == [path.name for path in sorted((segmented / "masks").iterdir())]
    assert found
    for path in found:
        image = nib.load(phantoms.parent / cases[path.name.removesuffix(".nii.gz")]["image"])
        values = nib.load(path)
        assert values.shape == image.shape
        np.testing.assert_array_equal(values.affine, image.affine)
        assert values.get_fdata().min() >= 0
        assert values.get_fdata().max() <= 1


def test_the_table_tells_how_sure_it_was(segmented):
    with open(segmented / "uncertainty.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    sought = [row for row in rows if row["status"] in ("ok", "no_foreground")]
    assert sought
    assert all(0 <= float(row["agreement"]) <= 1 and float(row["sigma"]) > 0 for row in sought)
    assert (segmented / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_checkpoint": "nowhere"}, "prompt_checkpoint nowhere does not exist"),
        ({"organ": None}, "--support needs --organ"),
        ({"support": None}, "give --support with it"),
        ({"samples": 1}, "an uncertainty needs 2 or more"),
        ({"allow_trained": False}, "is of patient"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(run_bundle, phantoms, classes, trained, tmp_path, options, words):
    case = json.loads(phantoms.read_text())["cases"][0]["case"]
    given = {"support": case, "organ": classes[0], "prompt_checkpoint": str(trained), "allow_trained": True, **options}
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle("prosam", "inference", datalist=str(phantoms), output_dir=str(tmp_path / "out"), **given)
    assert words in str(find_user_error(caught.value))


def test_prompts_of_another_sam_are_refused(run_bundle, phantoms, classes, trained, tiny_weights, tmp_path):
    state = torch.load(tiny_weights, weights_only=True)
    state["mask_decoder.iou_token.weight"] += 1
    torch.save(state, tmp_path / "other.pt")
    options = {"prompt_checkpoint": str(trained), "checkpoint": str(tmp_path / "other.pt")}
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle("prosam", "inference", datalist=str(phantoms), output_dir=str(tmp_path / "out"), **options)
    assert "fit the SAM tiny with sha256" in str(find_user_error(caught.value))


def test_noise_for_the_targets_labels_changes_no_mask(segmented, run_bundle, phantoms, classes, trained, tmp_path):
    cases = json.loads(phantoms.read_text())["cases"]
    shutil.copytree(phantoms.parent, tmp_path / "noise")
    for case in cases[1:]:
        path = tmp_path / "noise" / case["label"]
        label = nib.load(path)
        noise = np.random.default_rng(0).integers(0, 2, label.shape).astype(np.uint8)
        nib.save(nib.Nifti1Image(noise, label.affine), path)
    options = {"support": cases[0]["case"], "organ": classes[0], "prompt_checkpoint": str(trained), "samples": 2}
    given = {**options, "datalist": str(tmp_path / "noise" / phantoms.name), "output_dir": str(tmp_path / "out")}
    run_bundle("prosam", "inference", allow_trained=True, **given)
    for folder in ("masks", "uncertainty"):
        for path in (segmented / folder).iterdir():
            one, other = (np.asarray(nib.load(p).dataobj) for p in (path, tmp_path / "out" / folder / path.name))
            np.testing.assert_array_equal(one, other)
