"""SAM-SP's inference through MONAI's front door, with a segmentor of random weights on the phantom patient."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image
from torch import nn

from monai_ext.data.images import read_label
from monai_ext.data.phantoms import write_phantom_patient
from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.errors import find_user_error
from monai_ext.files import sha256_of
from monai_ext.networks.dual_branch_unet import build_segmentor
from phantoms.video import write_phantom_frames

BUNDLE = Path(__file__).parents[2] / "bundles" / "sam_sp"
CASES = tuple(f"phantom_visit{visit}" for visit in range(3))
SMALL = {"slice_size": 64, "image_size": 64}


def random_weights(path: Path, classes: int = 3, **options: Any) -> Path:
    """Save random weights that find every class somewhere."""
    torch.manual_seed(0)
    network = build_segmentor(classes, **options)
    for head in (network.main_head, network.joint_head):
        if head is not None:
            nn.init.normal_(head.weight)
            nn.init.zeros_(head.bias)
    torch.save(network.state_dict(), path)
    return path


def record(path: Path, **trained_as: Any) -> None:
    """Write a record: trained on patient p1 of "small"."""
    data = TrainingData(dataset="small", patients=["p0", "p1"], labels="scribble", licence="none")
    fields = {"variant": "sam_sp", "command": "none", "licence": "none", "sha256": sha256_of(path)}
    write_record(path, WeightRecord(name="recorded", datasets=[data], trained_as=trained_as, **fields))


def load(*configs: str, **options: Any) -> ConfigWorkflow:
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in configs]
    options = {"bundle_root": str(BUNDLE), "device": "cpu", **options}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="infer", **options)
    workflow.initialize()
    return workflow


def run(*configs: str, **options: Any) -> None:
    workflow = load(*configs, **options)
    workflow.run()
    workflow.finalize()


def sentence_of(*configs: str, **options: Any) -> str:
    """The user error that a run ends with."""
    with pytest.raises(Exception) as error:  # noqa: PT011 - MONAI wraps it in what it likes
        run(*configs, **options)
    mistake = find_user_error(error.value)
    assert mistake is not None, error.value
    assert "\n" not in str(mistake)
    return str(mistake)


def masks(output_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output_dir / "masks").iterdir())}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights") / "random.pt")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    return write_phantom_patient(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, phantom, weights) -> Path:
    output_dir = tmp_path_factory.mktemp("evaluated")
    run("inference", "evaluate", datalist=str(phantom), checkpoint=str(weights), output_dir=str(output_dir), **SMALL)
    return output_dir


@pytest.fixture
def options(patient, write_list, weights, tmp_path) -> dict[str, Any]:
    """Options of a run on the two small images."""
    return {
        "datalist": write_list(patient),
        "checkpoint": str(weights),
        "output_dir": str(tmp_path / "out"),
        **SMALL,
    }


def test_an_evaluation_writes_all_outputs(evaluated):
    written = {str(path.relative_to(evaluated)) for path in evaluated.rglob("*") if path.is_file()}
    kinds = (("masks", "nii.gz"), ("overlays", "png"), ("cases", "json"))
    cases = {f"{folder}/{case}.{suffix}" for case in CASES for folder, suffix in kinds}
    assert written >= cases | {"metrics.csv", "summary.json", "run.json"}
    assert {row["case"] for row in rows(evaluated / "metrics.csv")} == set(CASES)
    assert {(row["task"], row["algorithm"], row["reference"]) for row in rows(evaluated / "metrics.csv")} == {
        ("phantom", "sam_sp", "")
    }


@pytest.mark.parametrize("case", CASES)
def test_masks_lie_on_the_grid_of_their_image(evaluated, phantom, case):
    mask = nib.load(evaluated / "masks" / f"{case}.nii.gz")
    image = nib.load(phantom.parent / f"{case.removeprefix('phantom_')}_image.nii.gz")
    assert mask.shape == image.shape
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1, 2}


def test_same_seed_same_bytes(evaluated, phantom, weights, tmp_path):
    run("inference", "evaluate", datalist=str(phantom), checkpoint=str(weights), output_dir=str(tmp_path), **SMALL)
    assert (tmp_path / "metrics.csv").read_bytes() == (evaluated / "metrics.csv").read_bytes()
    assert masks(tmp_path) == masks(evaluated)


def poison(phantom: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(phantom.parent, folder)
    for path in folder.glob("*label.nii.gz"):
        change(path)
    return folder / phantom.name


def test_inference_never_opens_a_label(evaluated, phantom, weights, tmp_path):
    datalist = poison(phantom, tmp_path / "poison", lambda path: path.write_bytes(path.read_bytes()[:100]))
    options = {"datalist": str(datalist), "checkpoint": str(weights), "output_dir": str(tmp_path / "out"), **SMALL}
    run("inference", **options)
    assert masks(tmp_path / "out") == masks(evaluated)
    assert not (tmp_path / "out" / "metrics.csv").exists()
    assert "truncated" in sentence_of("inference", "evaluate", **options)


def test_other_labels_change_metrics_alone(evaluated, phantom, weights, tmp_path):
    def turn(path: Path) -> None:
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[::-1, ::-1].copy(), label.affine), path)

    datalist = poison(phantom, tmp_path / "turned", turn)
    options = {"datalist": str(datalist), "checkpoint": str(weights), "output_dir": str(tmp_path / "out"), **SMALL}
    run("inference", "evaluate", **options)
    assert masks(tmp_path / "out") == masks(evaluated)
    assert (tmp_path / "out" / "metrics.csv").read_bytes() != (evaluated / "metrics.csv").read_bytes()


def test_an_image_is_all_that_a_case_needs(patient, write_list, options, tmp_path):
    patient["cases"] = [{"case": "alone", "image": "image0.nii.gz"}]
    run("inference", **{**options, "datalist": write_list(patient)})
    assert list(masks(tmp_path / "out")) == ["alone.nii.gz"]


def test_frames_run(tmp_path):
    datalist = write_phantom_frames(tmp_path / "frames", n=2)
    weights = random_weights(tmp_path / "frames.pt", classes=2)
    run("inference", datalist=str(datalist), checkpoint=str(weights), output_dir=str(tmp_path / "out"), **SMALL)
    found = sorted((tmp_path / "out" / "masks").iterdir())
    assert len(found) == 2
    for path in found:
        assert np.asarray(Image.open(path)).shape == (288, 384)
        assert set(np.unique(read_label(path))) <= {0, 255}


def test_a_finished_case_is_not_run_again(options, tmp_path, capsys):
    run("inference", **options)
    run("inference", **options)
    assert "2 of 2 cases are finished" in capsys.readouterr().out


def test_perturbation_at_inference_is_seeded(options, tmp_path):
    found = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run("inference", **{**options, "output_dir": str(tmp_path / name)}, perturb_at_eval=True, seed=seed)
        found[name] = masks(tmp_path / name)
    assert found["one"] == found["same"] != found["other"]


def test_options_of_the_training_come_from_the_record(options, patient, write_list, tmp_path):
    """Labels in the order of training, though the data list has another; the frame; the architecture."""
    path = random_weights(tmp_path / "plain.pt", architecture="plain")
    given = {"labels": ["ring", "disc"], "architecture": "plain", "slice_size": 48, "image_size": 32}
    plain = {key: value for key, value in options.items() if key not in SMALL}
    run("inference", **{**plain, "checkpoint": str(path), "output_dir": str(tmp_path / "given"), **given})
    record(path, **given)
    run("inference", **{**plain, "checkpoint": str(path)})
    assert masks(tmp_path / "out") == masks(tmp_path / "given")
    config = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert list(config["label_values"]) == ["ring", "disc"]
    assert {key: config[key] for key in given} == given
    patient["labels"] = {"disc": 1, "hoop": 2}
    assert "label 'ring' is not in the data list" in sentence_of(
        "inference", **{**plain, "checkpoint": str(path), "datalist": write_list(patient)}
    )


def test_weights_that_saw_the_patients_are_not_evaluated(options, weights, tmp_path):
    path = tmp_path / "recorded.pt"
    shutil.copy(weights, path)
    record(path)
    options["checkpoint"] = str(path)
    assert "'recorded' were trained on 1 of the small patients" in sentence_of("inference", "evaluate", **options)
    run("inference", "evaluate", allow_overlap=True, **options)
    assert (tmp_path / "out" / "metrics.csv").exists()
    with path.open("ab") as file:
        file.write(b"\0")
    assert "recorded.pt: the sha256 is" in sentence_of("inference", **options)


def test_no_weights_are_one_sentence(options, tmp_path):
    (tmp_path / "bundle").mkdir()
    nothing = {"checkpoint": None, "datalist": None, "bundle_root": str(tmp_path / "bundle")}
    sentence = sentence_of("inference", **{**options, **nothing})
    assert "there are no weights in" in sentence
    assert "train.yaml" in sentence
    assert "--checkpoint" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint": "absent"}, "checkpoint absent does not exist"),
        ({"architecture": "plain"}, "does not hold plain weights"),
        ({"labels": ["disc"]}, "--architecture and the number of labels"),
        ({"use_gpm": True}, "does not hold sam_sp weights"),
        ({"image_size": 40}, "--image_size is 40: give a multiple of 16"),
        ({"branch": "aux"}, "branch 'aux' is unknown"),
        ({"batch": 0}, "--batch is 0"),
    ],
)
def test_wrong_weights_and_options_are_one_sentence(options, change, words):
    assert words in sentence_of("inference", **{**options, **change})


@pytest.mark.parametrize(
    ("overlay", "group", "key"),
    [
        ("acdc_test", "split", "test"),
        ("mscmr_test", "split", "test"),
        ("chaos_t1_test", "fold", 3),
        ("chaos_t2_test", "fold", 3),
    ],
)
def test_overlays_of_data_sets_take_their_test_cases(patient, write_list, options, tmp_path, overlay, group, key):
    other = "train" if group == "split" else 0
    patient["cases"][0].update({group: other, "patient": "p0"})
    patient["cases"][1].update({group: key})
    run("inference", "evaluate", overlay, **{**options, "datalist": write_list(patient)})
    assert list(masks(tmp_path / "out")) == ["visit1.nii.gz"]


def test_monai_finds_all_properties(options):
    assert load("inference", **options).check_properties() == []


def test_metadata_names_its_version_and_needs_no_more_than_is_installed():
    content = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    assert content["version"] in content["changelog"]
    wanted = {name.partition(">=")[0].strip() for name in requires("monai-ext") or () if "extra ==" not in name}
    assert set(content["required_packages_version"]) - {"monai-ext"} <= wanted
    for file in ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf", "configs/train.yaml"):
        assert (BUNDLE / file).is_file(), file


def test_steps_alone_give_the_mask_of_the_bundle(options, tmp_path):
    """What MONAI Label does: no list, no handlers, one image through the named steps."""
    workflow = load("inference", **options)
    workflow.run()
    steps = {name: workflow.parser.get_parsed_content(name) for name in ("preprocessing", "inferer", "postprocessing")}
    item = steps["preprocessing"]({"image": str(tmp_path / "image1.nii.gz")})
    item["pred"] = steps["inferer"](item["image"][None], workflow.parser.get_parsed_content("network_def"))[0]
    mask = steps["postprocessing"](item)["pred"]
    assert np.array_equal(mask[0].numpy(), read_label(tmp_path / "out" / "masks" / "visit1.nii.gz"))
