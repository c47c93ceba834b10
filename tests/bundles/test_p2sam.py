from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from forked import BundleCommand
from monai_ext.data.indexing.writing import index
from monai_ext.data.phantoms import write_phantom_patient
from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.errors import find_user_error
from monai_ext.files import sha256_of
from monai_ext.networks.sam import build_compact
from phantoms.video import phantom_frames, write_phantom_frames

CONFIGS = Path(__file__).parents[2] / "bundles" / "p2sam" / "configs"
FAST = {"n_pos": [1, 2], "n_neg": [1, 1]}
COLUMNS = "task,algorithm,case,patient,visit,reference,fold,run,label,metric,value,status"


def read_masks(output_dir: Path) -> dict[str, np.ndarray]:
    masks = {}
    for path in sorted((output_dir / "masks").iterdir()):
        image = Image.open(path) if path.suffix == ".png" else nib.load(path)
        masks[path.name] = np.asarray(image if path.suffix == ".png" else image.dataobj)
    return masks


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------- the phantom, evaluated


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    return write_phantom_patient(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, run_bundle, phantom) -> Path:
    output_dir = tmp_path_factory.mktemp("evaluated")
    run_bundle("p2sam", "inference", "evaluate", datalist=str(phantom), output_dir=str(output_dir), **FAST)
    return output_dir


TARGETS = ("phantom_visit1", "phantom_visit2")


def test_an_evaluation_writes_all_outputs(evaluated):
    written = {str(path.relative_to(evaluated)) for path in evaluated.rglob("*") if path.is_file()}
    cases = {f"{folder}/{case}.{suffix}" for case in TARGETS for folder, suffix in OUTPUTS}
    formats = {"challenger.csv", "challenger_hd95.csv", "challenger_nsd.csv", "nnunet_summary.json", "metrics.json"}
    assert written == cases | formats | TABLES


TABLES = {"metrics.csv", "summary.json", "run.json", "prompts.csv", "volumes.csv", "review.csv", "review_features.csv"}
OUTPUTS = (("masks", "nii.gz"), ("overlays", "png"), ("cases", "json"))


@pytest.mark.parametrize("case", TARGETS)
def test_masks_lie_on_the_grid_of_their_image(evaluated, phantom, case):
    mask = nib.load(evaluated / "masks" / f"{case}.nii.gz")
    image = nib.load(phantom.parent / f"{case.removeprefix('phantom_')}_image.nii.gz")
    assert mask.shape == image.shape
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1, 2}


def test_metrics_have_a_row_a_case_label_and_metric(evaluated):
    text = (evaluated / "metrics.csv").read_text()
    table = rows(evaluated / "metrics.csv")
    assert text.splitlines()[0] == COLUMNS
    assert {row["metric"] for row in table} >= {"dice", "hd95_mm", "nsd_2mm", "volume_ml", "dice_slice_mean"}
    assert {(row["case"], row["label"]) for row in table if row["metric"] == "dice"} == {
        (case, label) for case in TARGETS for label in ("lesion", "kidney")
    }
    assert {(row["task"], row["algorithm"], row["patient"], row["reference"]) for row in table} == {
        ("phantom", "p2sam", "phantom", "phantom_visit0")
    }


def test_dice_is_that_of_the_written_mask(evaluated, phantom):
    mask = read_masks(evaluated)["phantom_visit1.nii.gz"]
    label = np.asarray(nib.load(phantom.parent / "visit1_label.nii.gz").dataobj)
    labels = json.loads(phantom.read_text())["labels"]
    for row in rows(evaluated / "metrics.csv"):
        if (row["case"], row["metric"]) == ("phantom_visit1", "dice"):
            a, b = mask == labels[row["label"]], label == labels[row["label"]]
            assert float(row["value"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_prompts_tell_of_every_structure_on_every_slice(evaluated):
    table = rows(evaluated / "prompts.csv")
    assert len(table) == 2 * 2 * 8
    ok = [row for row in table if row["status"] == "ok"]
    assert ok
    for row in ok:
        signs = [point.split()[-1] for point in row["points"].split("; ")]
        assert signs == ["+"] * int(row["n_pos"]) + ["-"] * int(row["n_neg"])
        assert float(row["distance"]) >= 0


def test_the_record_names_what_ran(evaluated, tiny_weights, phantom):
    record = json.loads((evaluated / "run.json").read_text())
    assert record["checkpoint"]["sha256"] == sha256_of(tiny_weights)
    assert record["config"]["n_pos"] == [1, 2]
    assert {Path(item["path"]).name for item in record["inputs"]} == {
        f"visit{visit}_{kind}.nii.gz" for visit in range(3) for kind in ("image", "label")
    }
    assert "metrics.csv" in {item["path"] for item in record["outputs"]}


def test_the_summary_counts_both_visits(evaluated):
    assert '"n": 2' in (evaluated / "summary.json").read_text()


def test_same_seed_same_bytes(evaluated, run_bundle, phantom, tmp_path):
    run_bundle("p2sam", "inference", "evaluate", datalist=str(phantom), output_dir=str(tmp_path), **FAST)
    assert (tmp_path / "metrics.csv").read_bytes() == (evaluated / "metrics.csv").read_bytes()
    assert same(read_masks(tmp_path), read_masks(evaluated))


def test_noise_for_the_targets_labels_changes_no_mask(evaluated, run_bundle, phantom, tmp_path):
    shutil.copytree(phantom.parent, tmp_path / "noise")
    for visit in (1, 2):
        path = tmp_path / "noise" / f"visit{visit}_label.nii.gz"
        label = nib.load(path)
        noise = np.random.default_rng(visit).integers(0, 3, label.shape).astype(np.uint8)
        nib.save(nib.Nifti1Image(noise, label.affine), path)
    options = {"datalist": str(tmp_path / "noise" / "phantom.json"), "output_dir": str(tmp_path / "out"), **FAST}
    run_bundle("p2sam", "inference", "evaluate", **options)
    assert same(read_masks(tmp_path / "out"), read_masks(evaluated))
    assert (tmp_path / "out" / "metrics.csv").read_bytes() != (evaluated / "metrics.csv").read_bytes()


def test_inference_never_opens_the_targets_labels(evaluated, run_bundle, phantom, tmp_path):
    shutil.copytree(phantom.parent, tmp_path / "poison")
    for visit in (1, 2):
        path = tmp_path / "poison" / f"visit{visit}_label.nii.gz"
        path.write_bytes(path.read_bytes()[:100])
    options = {"datalist": str(tmp_path / "poison" / "phantom.json"), "output_dir": str(tmp_path / "out"), **FAST}
    run_bundle("p2sam", "inference", **options)
    assert same(read_masks(tmp_path / "out"), read_masks(evaluated))
    assert not (tmp_path / "out" / "metrics.csv").exists()
    assert "truncated" in sentence_of(run_bundle, "inference", "evaluate", **options)


# -------------------------------------------------------------------------------------------------- lists by hand


def test_frames_after_the_named_reference(run_bundle, tmp_path):
    datalist = write_phantom_frames(tmp_path / "frames", n=4)
    output_dir = tmp_path / "out"
    options = {"datalist": str(datalist), "output_dir": str(output_dir), "reference_visit": 2, **FAST}
    run_bundle("p2sam", "inference", "evaluate", **options)
    masks = read_masks(output_dir)
    assert set(masks) == {"phantom_frame003.png", "phantom_frame004.png"}
    assert {mask.shape for mask in masks.values()} == {(288, 384)}
    assert all(set(np.unique(mask)) <= {0, 255} for mask in masks.values())
    table = rows(output_dir / "metrics.csv")
    assert {row["reference"] for row in table} == {"phantom_frame002"}
    assert {row["metric"] for row in table} >= {"dice", "hd95_px"}
    assert not {row["metric"] for row in table} & {"hd95_mm", "volume_ml"}


def test_a_list_written_by_hand(run_bundle, patient, write_list, tmp_path):
    del patient["modality"], patient["cases"][1]["label"]
    run_bundle("p2sam", "inference", datalist=write_list(patient), output_dir=str(tmp_path / "out"), **FAST)
    assert list(read_masks(tmp_path / "out")) == ["visit1.nii.gz"]


def test_data_root_is_where_the_files_lie(run_bundle, patient, write_list, tmp_path):
    for case in patient["cases"]:
        case.update({key: f"sub/{case[key]}" for key in ("image", "label")})
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "sub").symlink_to(tmp_path, target_is_directory=True)
    shutil.copytree(tmp_path, tmp_path / "elsewhere" / "sub", ignore=shutil.ignore_patterns("root", "elsewhere"))
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out"), **FAST}
    for name in ("data_root", "dataset_dir"):  # ours and MONAI's
        run_bundle("p2sam", "inference", **options, **{name: str(tmp_path / "elsewhere")})
    assert list(read_masks(tmp_path / "out")) == ["visit1.nii.gz"]


def test_a_case_may_bring_its_own_reference(run_bundle, patient, write_list, tmp_path):
    named = {**patient, "cases": [dict(case) for case in patient["cases"]]}
    run_bundle("p2sam", "inference", datalist=write_list(named), output_dir=str(tmp_path / "named"), **FAST)
    own = {"reference_image": "image0.nii.gz", "reference_label": ["label0.nii.gz"]}
    patient["cases"] = [{"case": "visit1", "image": "image1.nii.gz", **own}]
    run_bundle("p2sam", "inference", datalist=write_list(patient), output_dir=str(tmp_path / "own"), **FAST)
    assert same(read_masks(tmp_path / "own"), read_masks(tmp_path / "named"))


def test_only_the_labels_asked_for(run_bundle, patient, write_list, tmp_path):
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out"), "labels": ["ring"], **FAST}
    run_bundle("p2sam", "inference", "evaluate", **options)
    (mask,) = read_masks(tmp_path / "out").values()
    assert set(np.unique(mask)) <= {0, 2}
    assert {row["label"] for row in rows(tmp_path / "out" / "metrics.csv")} == {"ring"}


def test_a_structure_that_the_reference_lacks_may_be_left_out(run_bundle, patient, write_list, tmp_path):
    label = nib.load(tmp_path / "label0.nii.gz")
    ring = np.asarray(label.dataobj)
    nib.save(nib.Nifti1Image(np.where(ring == 2, 2, 0).astype(np.uint8), label.affine), tmp_path / "label0.nii.gz")
    run_bundle(
        "p2sam", "inference", datalist=write_list(patient), output_dir=str(tmp_path / "out"), labels=["ring"], **FAST
    )
    assert read_masks(tmp_path / "out")


@pytest.mark.parametrize(
    ("overlays", "algorithm"),
    [
        ((), "p2sam"),
        (("one_pair",), "one_pair"),
        (("copy_reference",), "copy_reference"),
        (("no_prompt",), "no_prompt"),
        (("matcher",), "matcher"),
        (("panet",), "panet"),
        (("label_propagation",), "label_propagation"),
        (("gf_sam",), "gf_sam"),
        (("persam",), "persam"),
        (("finetune_prior",), "finetune_prior"),
        (("oracle_click",), "oracle_click"),
        (("oracle_centre",), "p2sam"),
    ],
)
def test_overlays_run(run_bundle, patient, write_list, tmp_path, overlays, algorithm):
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out")}
    run_bundle("p2sam", "inference", "evaluate", *overlays, **options)
    assert {row["algorithm"] for row in rows(tmp_path / "out" / "metrics.csv")} == {algorithm}


def test_natural_images_are_scored_as_perseg(run_bundle, tmp_path):
    """Pictures 00 serve the others of their object and are not scored; the protocol's IoU is of the written masks."""
    for seed, thing in enumerate(("cup", "cat")):
        for number, (picture, mask) in enumerate(phantom_frames(seed, 3)):
            red = np.zeros((*mask.shape, 3), np.uint8)
            red[mask > 0] = (128, 0, 0)
            for folder, suffix, pixels in (("Images", "jpg", picture), ("Annotations", "png", red)):
                path = tmp_path / "PerSeg" / folder / thing / f"{number:02d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    datalist = tmp_path / "perseg.json"
    index("perseg", tmp_path / "PerSeg", datalist)
    output_dir = tmp_path / "out"
    run_bundle("p2sam", "inference", "evaluate", "perseg", datalist=str(datalist), output_dir=str(output_dir))
    masks = read_masks(output_dir)
    assert set(masks) == {f"{thing}_{number}.png" for thing in ("cup", "cat") for number in ("01", "02")}
    expected = {}
    for seed, thing in enumerate(("cup", "cat")):
        common = union = 0
        for number, (_, mask) in list(enumerate(phantom_frames(seed, 3)))[1:]:
            found = masks[f"{thing}_{number:02d}.png"] > 0
            common += (found & (mask > 0)).sum()
            union += (found | (mask > 0)).sum()
        expected[thing] = common / union
    pooled = json.loads((output_dir / "summary.json").read_text())["iou_pooled"]["labels"]["object"]
    assert pooled["patients"] == pytest.approx(expected)
    assert pooled["mean"] == pytest.approx(np.mean(list(expected.values())))
    assert {row["n_neg"] for row in rows(output_dir / "prompts.csv") if row["status"] == "ok"} <= {"1"}


def test_official_mode_runs(run_bundle, patient, write_list, tmp_path):
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out"), "mode": "official", **FAST}
    run_bundle("p2sam", "inference", **options)
    assert {row["status"] for row in rows(tmp_path / "out" / "prompts.csv")} <= {"ok", "no_foreground"}


@pytest.mark.parametrize(("config", "kind"), [("inference", "infer"), ("train", "train")])
def test_monai_finds_all_properties(load_bundle, patient, write_list, tmp_path, config, kind):
    options = {"sam_variant": "compact", "drop_path": 0} if kind == "train" else {}
    workflow = load_bundle(
        "p2sam",
        config,
        workflow_type=kind,
        datalist=write_list(patient),
        output_dir=str(tmp_path / "out"),
        **options,
    )
    assert workflow.check_properties() == []


# ------------------------------------------------------------------------------------------------- bad input


def sentence_of(run_bundle, *configs, **options) -> str:
    """The user error that a run ends with."""
    with pytest.raises(Exception) as error:  # noqa: PT011 - MONAI wraps it in what it likes
        run_bundle("p2sam", *configs, **options)
    mistake = find_user_error(error.value)
    assert mistake is not None, error.value
    assert "\n" not in str(mistake)
    return str(mistake)


def edit(folder: Path, name: str, change) -> None:
    """Rewrite a volume; ``change`` takes and returns (array, affine)."""
    image = nib.load(folder / name)
    array, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    nib.save(nib.Nifti1Image(array, affine), folder / name)


def missing_image(folder, content):
    (folder / "image1.nii.gz").unlink()


def other_grid(folder, content):
    edit(folder, "label0.nii.gz", lambda array, affine: (array[:-1], affine))


def shifted_label(folder, content):
    affine = np.diag([-2.0, -2.0, 6.0, 1.0])
    affine[2, 3] = 6.0
    edit(folder, "label0.nii.gz", lambda array, _: (array, affine))


def no_ring(folder, content):
    edit(folder, "label0.nii.gz", lambda array, affine: (np.where(array == 1, 1, 0).astype(np.uint8), affine))


def unknown_value(folder, content):
    edit(folder, "label0.nii.gz", lambda array, affine: (np.where(array == 2, 7, array).astype(np.uint8), affine))


def no_cases(folder, content):
    content["cases"] = []


def same_name(folder, content):
    content["cases"][1]["case"] = content["cases"][0]["case"]


def two_splits(folder, content):
    for case, split in zip(content["cases"], ("train", "test"), strict=True):
        case["split"] = split


def truncated(folder, content):
    path = folder / "image1.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_gzip(folder, content):
    path = folder / "image1.nii.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))


def four_axes(folder, content):
    edit(folder, "image1.nii.gz", lambda array, affine: (np.stack([array, array], axis=-1), affine))


def with_nan(folder, content):
    def spoil(array, affine):
        array[3, 3, 1] = np.nan
        return array, affine

    edit(folder, "image1.nii.gz", spoil)


def far_away(folder, content):
    affine = np.diag([-2.0, -2.0, 6.0, 1.0])
    affine[:3, 3] = 500.0
    for name in ("image1.nii.gz", "label1.nii.gz"):
        edit(folder, name, lambda array, _: (array, affine))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing_image, ("visit1", "image1.nii.gz", "there is no file")),
        (other_grid, ("visit0", "label0.nii.gz", "label grid differs from image grid", "shape")),
        (shifted_label, ("visit0", "label0.nii.gz", "label grid differs from image grid", "origin")),
        (no_ring, ("visit1", "label0.nii.gz", "has no ring (value 2)")),
        (unknown_value, ("visit0", "label0.nii.gz", "holds 7", "0, 1, 2")),
        (no_cases, ("list.json", "no cases")),
        (same_name, ("list.json", "2 cases have the name 'visit0'")),
        (two_splits, ("list.json", "patient 'p1'", "'train'", "'test'")),
        (truncated, ("visit1", "image1.nii.gz", "truncated")),
        (not_gzip, ("visit1", "image1.nii.gz", "gzip")),
        (four_axes, ("visit1", "image1.nii.gz", "4 axes")),
        (with_nan, ("visit1", "image1.nii.gz", "NaN")),
        (far_away, ("image1.nii.gz", "image0.nii.gz", "do not overlap", "--slice_match relative")),
    ],
)
def test_bad_data_is_one_sentence(run_bundle, patient, write_list, tmp_path, spoil, words):
    spoil(tmp_path, patient)
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out"), **FAST}
    sentence = sentence_of(run_bundle, "inference", **options)
    for word in words:
        assert word in sentence
    assert not list((tmp_path / "out").rglob("*.*")), "nothing half-written stays"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": ["disc", "rim"]}, ("'rim'", "disc, ring")),
        ({"split": "test"}, ("split 'test'",)),
        ({"reference_visit": 5}, ("visit 5", "'p1'", "0, 1")),
        ({"slice_match": "nearest"}, ("slice_match 'nearest'", "position, relative")),
        ({"mode": "fast"}, ("mode 'fast'", "paper, official")),
        ({"n_pos": [3, 1]}, ("n_pos", "[3, 1]")),
        ({"sam_variant": "vit_x"}, ("sam_variant 'vit_x'", "compact")),
        ({"checkpoint": "nowhere"}, ("checkpoint nowhere", "does not exist")),
        ({"data_root": "/nowhere"}, ("/nowhere", "--data_root")),
    ],
)
def test_bad_options_are_one_sentence(run_bundle, patient, write_list, tmp_path, options, words):
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out"), **FAST, **options}
    sentence = sentence_of(run_bundle, "inference", **options)
    for word in words:
        assert word in sentence


def test_missing_list_is_one_sentence(run_bundle, tmp_path):
    options = {"datalist": str(tmp_path / "no.json"), "output_dir": str(tmp_path / "out")}
    assert "no.json: there is no such data list" in sentence_of(run_bundle, "inference", **options)


def test_target_without_a_label_cannot_be_evaluated(run_bundle, patient, write_list, tmp_path):
    del patient["cases"][1]["label"]
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out")}
    assert "'visit1' has no 'label' to evaluate" in sentence_of(run_bundle, "inference", "evaluate", **options)


def test_weights_of_another_variant_are_one_sentence(run_bundle, patient, write_list, tmp_path):
    torch.save({"image_encoder.pos_embed": torch.zeros(1)}, tmp_path / "vit.pth")
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out")}
    sentence = sentence_of(run_bundle, "inference", checkpoint=str(tmp_path / "vit.pth"), **options)
    assert "vit.pth does not hold compact weights" in sentence


@pytest.fixture
def recorded(tiny_weights, tmp_path) -> Path:
    """A copy of the tiny weights with a record: trained on patient p1 of "small"."""
    path = tmp_path / "recorded.pt"
    shutil.copy(tiny_weights, path)
    data = TrainingData(dataset="small", patients=["p0", "p1"], labels="dense", licence="none")
    fields = {"variant": "compact", "command": "none", "licence": "none", "sha256": sha256_of(path)}
    write_record(path, WeightRecord(name="recorded", datasets=[data], **fields))
    return path


def test_weights_that_saw_the_patients_are_not_evaluated(run_bundle, patient, write_list, tmp_path, recorded):
    options = {
        "datalist": write_list(patient),
        "output_dir": str(tmp_path / "out"),
        "checkpoint": str(recorded),
        **FAST,
    }
    sentence = sentence_of(run_bundle, "inference", "evaluate", **options)
    assert "'recorded' were trained on 1 of the small patients" in sentence
    assert "(p1)" in sentence
    assert not (tmp_path / "out" / "masks").exists()
    run_bundle("p2sam", "inference", "evaluate", allow_overlap=True, **options)
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_damaged_weights_are_one_sentence(run_bundle, patient, write_list, tmp_path, recorded):
    with recorded.open("ab") as file:
        file.write(b"\0")
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out"), "checkpoint": str(recorded)}
    assert "recorded.pt: the sha256 is" in sentence_of(run_bundle, "inference", **options)


def test_no_permission_to_write_is_one_sentence(run_bundle, patient, write_list, tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # tests may run as root, who may write everywhere
    options = {"datalist": write_list(patient), "output_dir": str(tmp_path / "out")}
    sentence = sentence_of(run_bundle, "inference", **options)
    assert f"cannot write to {tmp_path / 'out'}: no write permission; write somewhere else" in sentence


# ------------------------------------------------------------------------------------------- the real command line


def words_of(cwd: Path, configs: tuple[str, ...], **options: Any) -> list[str]:
    """What follows `python -m monai.bundle` in ``cwd``."""
    files = [os.path.relpath(CONFIGS / f"{name}.yaml", cwd) for name in configs]
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return ["run", "--config_file", str(files), *words]


def test_command_line_end_to_end(patient, write_list, tmp_path):
    """The compact network at its own size, from another directory, with relative paths."""
    write_list(patient)
    torch.save(build_compact().state_dict(), tmp_path / "random.pt")
    (tmp_path / "elsewhere").mkdir()
    words = words_of(
        tmp_path / "elsewhere",
        ("inference", "evaluate"),
        bundle_root=os.path.relpath(CONFIGS.parent, tmp_path / "elsewhere"),
        datalist="../list.json",
        output_dir="out",
        checkpoint="../random.pt",
        n_pos="[1,1]",
        n_neg="[1,1]",
        seed=3,
    )
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *words],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "dice" in done.stdout
    assert (tmp_path / "elsewhere" / "out" / "metrics.csv").read_text().startswith(COLUMNS)
    assert json.loads((tmp_path / "elsewhere" / "out" / "run.json").read_text())["seed"] == 3


def mistake(cwd: Path, **options: Any) -> str:
    """Run `python -m monai.bundle run` in ``cwd``; return the last line, by which a user learns what is wrong."""
    process = BundleCommand(words_of(cwd, ("inference",), **options), cwd=cwd)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_command_line_refuses_an_unknown_option(patient, write_list, tmp_path):
    said = mistake(tmp_path, datalist=write_list(patient), output_dir="out", sead=3)
    assert said == "error: unknown option --sead, did you mean --seed?"
    assert not (tmp_path / "out").exists()


def test_command_line_ends_with_the_mistake(patient, write_list, tmp_path):
    """A mistake that shows only while cases run, below MONAI's engine."""
    far_away(tmp_path, patient)
    torch.save(build_compact().state_dict(), tmp_path / "random.pt")
    said = mistake(tmp_path, datalist=write_list(patient), output_dir="out", checkpoint="random.pt")
    assert said.startswith("error: ")
    assert "do not overlap in space" in said


def test_what_is_kept_is_not_painted_over(patient, write_list, tmp_path, run_bundle):
    kept = np.zeros((24, 20, 3), np.uint8)
    kept[8:16, 5:13] = 1
    nib.save(nib.Nifti1Image(kept, np.diag([-2.0, -2.0, 6.0, 1.0])), tmp_path / "kept.nii.gz")
    out, keep = tmp_path / "out", {"ring": str(tmp_path / "kept.nii.gz")}
    run_bundle("p2sam", "inference", datalist=write_list(patient), output_dir=str(out), keep=keep, **FAST)
    (mask,) = read_masks(out).values()
    assert (mask[kept != 0] == 2).all()
    assert "kept.nii.gz" in (out / "run.json").read_text()
