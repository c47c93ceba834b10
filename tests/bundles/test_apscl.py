"""APSCL's inference through MONAI's front door, with a tiny network of random weights on phantom patients."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image
from torch import nn

from monai_ext import made
from monai_ext.data.phantoms.writing import write_phantom_patients
from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.engines.apscl_training import build_network
from monai_ext.errors import find_user_error
from monai_ext.files import sha256_of

BUNDLE = Path(__file__).parents[2] / "bundles" / "apscl"
TINY = {"hidden": [8, 8], "prior_pool": 2, "latent": 4, "mgd_width": 16}
LITE0 = "tf_efficientnet_lite0"
SUPPORT = "phantom0"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights that find something, with the record of a training on patient phantom2."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    network = build_network(LITE0, None, 64, options=TINY, auxiliary=False)
    nn.init.normal_(network.enrichment.shift[-1].weight, std=0.3)
    torch.save(network.inference_state(), path)
    seen = TrainingData(dataset="phantoms", patients=["phantom2"], labels="dense", licence="none")
    trained = {"image_size": 64, "fem": True, "mgd": True, "prototypes": "global", "network_options": TINY}
    trained["classes"] = ["spleen"]
    fields = {"variant": LITE0, "command": "none", "licence": "none", "sha256": sha256_of(path)}
    write_record(path, WeightRecord(name="tiny", datasets=[seen], trained_as=trained, **fields))
    return path


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantom_patients(tmp_path_factory.mktemp("phantoms"), 3)


@pytest.fixture
def options(weights, phantoms, tmp_path) -> dict[str, Any]:
    return {
        "checkpoint": str(weights),
        "datalist": str(phantoms),
        "output_dir": str(tmp_path / "out"),
        "labels": ["kidney"],
        "support": SUPPORT,
        "queries": ["phantom1"],
    }


def run(*configs: str, **options: Any) -> None:
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in configs]
    options = {"bundle_root": str(BUNDLE), "device": "cpu", **options}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="infer", **options)
    workflow.initialize()
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


def masks(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((Path(folder) / "masks").iterdir())}


def table(folder: str, name: str) -> list[dict[str, str]]:
    with open(Path(folder) / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_support_serves_other_patients(options, phantoms):
    run("inference", **{**options, "queries": None, "allow_overlap": True})
    assert set(masks(options["output_dir"])) == {"phantom1.nii.gz", "phantom2.nii.gz"}
    mask = nib.load(Path(options["output_dir"]) / "masks" / "phantom1.nii.gz")
    image = nib.load(phantoms.parent / "phantom1_image.nii.gz")
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    labels = json.loads(phantoms.read_text())["labels"]
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, labels["kidney"]}
    rows = table(options["output_dir"], "prompts.csv")
    assert len({row["reference_slice"] for row in rows}) == 1  # the middle one serves all
    assert {row["reference"] for row in rows} == {SUPPORT}
    features = {row["feature"] for row in table(options["output_dir"], "review_features.csv")}
    assert "prototype_distance" in features
    assert "spread" not in features  # of drawn z, for which nobody has asked


def test_labels_of_queries_are_not_read(options, phantoms, tmp_path):
    run("inference", **options)
    poisoned = tmp_path / "poisoned"
    shutil.copytree(phantoms.parent, poisoned)
    (poisoned / "phantom1_label.nii.gz").write_bytes((poisoned / "phantom2_label.nii.gz").read_bytes())
    content = json.loads((poisoned / "phantoms.json").read_text())
    for case in content["cases"]:
        if case["case"] == "phantom2":
            case.pop("label")
    (poisoned / "phantoms.json").write_text(json.dumps(content))
    out = str(tmp_path / "again")
    run("inference", **{**options, "datalist": str(poisoned / "phantoms.json"), "output_dir": out})
    assert masks(out) == masks(options["output_dir"])


def test_evaluation_by_both_protocols(options, tmp_path):
    run("inference", "evaluate", **options)
    ep1 = {**options, "output_dir": str(tmp_path / "ep1")}
    run("inference", "evaluate", "ep1", **ep1)
    rows = {p: table(o["output_dir"], "metrics.csv") for p, o in (("EP2", options), ("EP1", ep1))}
    assert {row["metric"] for row in rows["EP2"]} >= {"dice", "hd95_mm"}
    assert {row["label"] for row in rows["EP1"]} == {"kidney"}
    assert [row["algorithm"] for row in rows["EP1"]][:1] == ["apscl_ep1_oracle"]
    served = [row["reference_slice"] for row in table(ep1["output_dir"], "prompts.csv")]
    assert "" in served  # outside of the structure's range
    assert len(set(served) - {""}) == 3
    two = sorted(int(k) for k in set(served) - {""})[:2]
    few = {**ep1, "support": f"{SUPPORT}:{two[0]},{two[1]}", "output_dir": str(tmp_path / "few")}
    said = sentence_of("inference", "evaluate", "ep1", **few)
    assert "shows kidney on 2 slices, and the protocol EP1 takes 3: name 3" in said


def test_a_named_slice(options):
    run("inference", **{**options, "support": f"{SUPPORT}:5"})
    rows = table(options["output_dir"], "prompts.csv")
    assert {row["reference"] for row in rows} == {f"{SUPPORT}:5"}


def test_the_list_names_the_supports(options, phantoms, tmp_path):
    content = json.loads(phantoms.read_text())
    support, query = content["cases"][0], dict(content["cases"][1])
    query |= {"reference_image": support["image"], "reference_label": support["label"]}
    content["cases"] = [query]
    listed = phantoms.parent / "listed.json"
    listed.write_text(json.dumps(content))
    run("inference", **{**options, "datalist": str(listed), "support": None, "queries": None})
    first = masks(options["output_dir"])
    other = str(tmp_path / "other")
    run("inference", **{**options, "output_dir": other})
    assert first == masks(other)


def test_without_a_data_list_phantoms_serve_each_other(options, tmp_path):
    given = {key: options[key] for key in ("checkpoint", "output_dir")}
    run("inference", "evaluate", **given, allow_overlap=True)
    assert set(masks(given["output_dir"])) == {f"phantom{n}.nii.gz" for n in range(4)}
    assert {row["change_percent"] for row in table(given["output_dir"], "volumes.csv")} == {""}  # of other patients
    rows = table(given["output_dir"], "metrics.csv")
    assert {(row["case"], row["reference"]) for row in rows} >= {
        ("phantom0", "phantom1_image"),
        ("phantom3", "phantom0_image"),
    }


def test_pictures(options, tmp_path):
    """A square among noise in three pictures; a picture has no slices to name."""
    rng = np.random.default_rng(0)
    cases = []
    for name in ("a", "b", "c"):
        label = np.zeros((48, 40), np.uint8)
        label[10:30, 8:28] = 1
        Image.fromarray(label).save(tmp_path / f"{name}_label.png")
        grey = np.clip(60 + 120 * label + 20 * rng.normal(size=label.shape), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{name}.png")
        cases.append({"case": name, "patient": name, "image": f"{name}.png", "label": f"{name}_label.png"})
    content = {"dataset": "pictures", "modality": "US", "labels": {"lesion": 1}, "cases": cases}
    listed = tmp_path / "pictures.json"
    listed.write_text(json.dumps(content))
    given = {**options, "datalist": str(listed), "labels": ["lesion"], "support": "a", "queries": None}
    run("inference", "evaluate", **given)
    assert set(masks(given["output_dir"])) == {"b.png", "c.png"}
    written = np.asarray(Image.open(Path(given["output_dir"]) / "masks" / "b.png"))
    assert written.shape == (48, 40)
    assert {row["metric"] for row in table(given["output_dir"], "metrics.csv")} >= {"dice", "hd95_px"}
    assert "is a picture and has no slices" in sentence_of("inference", **{**given, "support": "a:0"})


def test_modalities_and_known_structures_are_refused_unless_told(options, phantoms, tmp_path):
    content = json.loads(phantoms.read_text())
    content["labels"] = {"spleen" if name == "kidney" else name: value for name, value in content["labels"].items()}
    content["cases"][1]["modality"] = "CT"
    listed = phantoms.parent / "refused.json"
    listed.write_text(json.dumps(content))
    given = {**options, "datalist": str(listed), "labels": ["spleen"]}
    assert "spleen is among the classes that" in sentence_of("inference", **given)
    assert "case 'phantom1' is CT" in sentence_of("inference", **given, allow_known=True)
    run("inference", **given, allow_known=True, allow_modality=True, intensity={"percentiles": [1, 99]})
    assert list(masks(given["output_dir"])) == ["phantom1.nii.gz"]


def test_mistakes_are_sentences(options, tmp_path, weights):
    said = sentence_of("inference", **{**options, "support": None})
    assert "no support is named: give --support CASE:SLICE" in said
    said = sentence_of("inference", **{**options, "labels": None})
    assert "a support serves one structure, and 2 are asked for" in said
    said = sentence_of("inference", **{**options, "queries": ["phantom2"]})
    assert "phantom2" in said
    assert "in the training" in said
    said = sentence_of("inference", **{**options, "support": f"{SUPPORT}:99"})
    assert "shows no kidney" in said
    said = sentence_of("inference", **{**options, "labels": ["gallbladder"]})
    assert "gallbladder" in said
    said = sentence_of("inference", **{**options, "support": "phantom9"})
    assert "has no such case" in said
    said = sentence_of("inference", **{**options, "z_samples": "many"})
    assert "--z_samples is many: give 0 or more" in said
    said = sentence_of("inference", **{**options, "trunk": "resnet18"})
    assert "does not hold resnet18 weights" in said
    assert not list(Path(options["output_dir"]).rglob("*.*"))
    said = sentence_of("inference", **{**options, "slice_match": "chunks"})
    assert "ep1.yaml" in said
    assert sorted(path.name for path in Path(options["output_dir"]).rglob("*.nii.gz") if "masks" in str(path)) == []


def test_a_run_that_is_refused_leaves_no_mask_of_the_support(options, phantoms, tmp_path):
    content = json.loads(phantoms.read_text())
    for case in content["cases"]:
        case.update({key: str(phantoms.parent / case[key]) for key in ("image", "label")})
    query = next(case for case in content["cases"] if case["case"] == "phantom1")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(Path(query["image"]).read_bytes()[:300])
    query["image"] = str(broken)
    (tmp_path / "list.json").write_text(json.dumps(content))
    made.keep_made()
    said = sentence_of("inference", **{**options, "datalist": str(tmp_path / "list.json")})
    assert "phantom1" in said
    assert list(Path(options["output_dir"]).glob("supports/*"))
    made.remove_made()
    assert not Path(options["output_dir"]).exists()


@pytest.mark.parametrize("overlay", ["chaos_t2", "ms_cmrseg", "synapse", "acdc"])
def test_overlays_of_data_sets(options, overlay, phantoms):
    content = json.loads(phantoms.read_text())
    for case in content["cases"]:
        case |= {"fold": 3, "split": "test"}
    listed = phantoms.parent / f"{overlay}.json"
    listed.write_text(json.dumps(content))
    run("inference", "evaluate", overlay, **{**options, "datalist": str(listed)})
    assert list(masks(options["output_dir"])) == ["phantom1.nii.gz"]
