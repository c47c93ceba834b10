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
from PIL import Image

from monai_ext.data.indexing.writing import index
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
    options |= {"allow_trained": True}  # evaluates on them, too
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
    assert all(0 <= float(row["agreement"] or 0) <= 1 and float(row["sigma"]) > 0 for row in sought)
    assert (segmented / "metrics.csv").is_file()
    with open(segmented / "review_features.csv", newline="") as file:
        named = {row["feature"] for row in csv.DictReader(file)}
    assert {"agreement", "entropy", "variance_ratio", "predicted_iou", "certainty"} <= named


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


EPISODES = {"episodes": 4, "min_pixels": 4, "samples": 2}


@pytest.fixture(scope="module")
def tested(tmp_path_factory, run_bundle, phantoms, classes, trained) -> Path:
    folder = tmp_path_factory.mktemp("episodes")
    options = {**EPISODES, "prompt_checkpoint": str(trained), "allow_trained": True, "classes": classes[:1]}
    run_bundle("prosam", "episodes", datalist=str(phantoms), output_dir=str(folder), views=2, **options)
    return folder


def test_a_run_on_frozen_episodes(tested, classes):
    with open(tested / "episodes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == classes[:1] * 4
    assert all(row["query_case"] != row["support_case"] for row in rows)
    assert all(0 <= float(row[name] or 0) <= 1 for row in rows for name in ("agreement", "view_agreement", "dice"))
    assert json.loads((tested / "summary.json").read_text())["episodes"] == 4


@pytest.mark.parametrize(
    ("bundle", "overlay"),
    [("p2sam", "persam"), ("p2sam", "panet"), ("p2sam", "matcher"), ("prosam", "episodes_p2sam")],
)
def test_compared_methods_run_on_the_same_episodes(
    tested, load_bundle, phantoms, classes, trained, bundle, overlay, tmp_path
):
    options = {**EPISODES, "prompt_checkpoint": str(trained), "allow_trained": True, "classes": classes[:1]}
    options |= {"episode_list": str(tested / "episodes.json"), "matcher_centres": 3, "matcher_sizes": [2, 2]}
    options = options if overlay == "matcher" else {k: v for k, v in options.items() if not k.startswith("matcher")}
    workflow = load_bundle(
        "prosam",
        "episodes",
        f"../../{bundle}/configs/{overlay}",
        datalist=str(phantoms),
        output_dir=str(tmp_path),
        **options,
    )
    workflow.run()
    with open(tmp_path / "episodes.csv", newline="") as one, open(tested / "episodes.csv", newline="") as other:
        places = [[tuple(row.values())[:8] for row in csv.DictReader(file)] for file in (one, other)]
    assert places[0] == places[1]
    assert json.loads((tmp_path / "summary.json").read_text())["algorithm"] == overlay.removeprefix("episodes_")


@pytest.mark.parametrize(
    ("study", "options"),
    [
        ("noise", {"absolute_noise": [0.0, 1.0], "relative_noise": [1.0]}),
        ("annotations", {"kinds": ["mask", "box"]}),
        ("strategies", {}),
        ("centres", {}),
        ("descent", {"starts": 2, "descent_steps": 2}),
    ],
)
def test_a_study_is_one_command_with_a_figure(
    tested, load_bundle, phantoms, classes, trained, tmp_path, study, options
):
    given = {**EPISODES, "prompt_checkpoint": str(trained), "allow_trained": True, "classes": classes[:1], **options}
    given |= {"episode_list": str(tested / "episodes.json"), "compared": {"a": str(trained), "b": str(trained)}}
    configs = ("episodes", "study", f"study_{study}")
    workflow = load_bundle("prosam", *configs, datalist=str(phantoms), output_dir=str(tmp_path), **given)
    workflow.run()
    assert (tmp_path / "study.png").stat().st_size > 5000
    with open(tmp_path / "study.csv", newline="") as file:
        assert {row["episode"] for row in csv.DictReader(file)} == set("0123")


def test_one_picture_serves_others(run_bundle, trained, tmp_path):
    cases = []
    for number in range(3):
        mask = np.zeros((48, 40), np.uint8)
        mask[10:24, 8 + 4 * number : 20 + 4 * number] = 255
        for what, array in (("image", mask // 2 + 40), ("label", mask)):
            Image.fromarray(array).save(tmp_path / f"{number}_{what}.png")
        files = {what: f"{number}_{what}.png" for what in ("image", "label")}
        cases.append({"case": f"frame{number}", **files})
    told = {"dataset": "Pictures", "modality": "endoscopy", "labels": {"polyp": 255}, "cases": cases}
    (tmp_path / "list.json").write_text(json.dumps(told))
    given = {"datalist": str(tmp_path / "list.json"), "output_dir": str(tmp_path / "out"), "samples": 2}
    run_bundle("prosam", "inference", "polyps", support="frame0", prompt_checkpoint=str(trained), **given)
    for folder in ("masks", "uncertainty"):
        assert [path.name for path in sorted((tmp_path / "out" / folder).iterdir())] == ["frame1.png", "frame2.png"]
    with Image.open(tmp_path / "out" / "uncertainty" / "frame1.png") as image:
        assert image.size == (40, 48)


@pytest.fixture
def pascal(tmp_path) -> Path:
    """A made-up Pascal: two training and two validation images with all twenty classes."""
    rng = np.random.default_rng(0)
    home = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (home / folder).mkdir(parents=True)
    for name in ("a1", "a2", "b1", "b2"):
        label = np.zeros((48, 60), np.uint8)
        for k, value in enumerate(rng.permutation(20) + 1):
            label[12 * (k // 5) + 1 : 12 * (k // 5) + 11, 12 * (k % 5) + 1 : 12 * (k % 5) + 11] = value
        Image.fromarray(label).save(home / "SegmentationClassAug" / f"{name}.png")
        Image.fromarray(np.stack([label * 12, 255 - label * 12, label], axis=-1)).save(
            home / "JPEGImages" / f"{name}.jpg"
        )
    (home / "ImageSets" / "Segmentation" / "val.txt").write_text("b1\nb2\n")
    index("pascal_5i", home, tmp_path / "pascal.json")
    return tmp_path / "pascal.json"


def test_natural_images_are_trained_and_tested_by_folds_of_classes(load_bundle, pascal, tmp_path):
    options = {"datalist": str(pascal), "class_fold": 1, "output_dir": str(tmp_path / "training"), "split": "train"}
    workflow = load_bundle(
        "prosam", "train", "pascal_5i", workflow_type="train", **{**TRAIN, "min_pixels": 1}, **options
    )
    workflow.run()
    prompts = tmp_path / "training" / "prompts.pt"
    novel = ["bus", "car", "cat", "chair", "cow"]
    known = json.loads(prompts.with_suffix(".json").read_text())["trained_as"]["classes"]
    assert len(known) == 15
    assert not set(known) & set(novel)
    options |= {"split": "val", "output_dir": str(tmp_path / "out"), "episodes": 5, "samples": 2}
    load_bundle("prosam", "episodes", "pascal_5i", prompt_checkpoint=str(prompts), **options).run()
    with open(tmp_path / "out" / "episodes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == novel
    assert {row["query_case"] for row in rows} <= {"voc_b1", "voc_b2"}
