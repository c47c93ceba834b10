"""The command on folders of masks: every status, oblique volumes and pictures, against slow references."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import HausdorffDistanceMetric, compute_hausdorff_distance, compute_surface_dice
from PIL import Image

from monai_ext.errors import UserError
from monai_ext.evaluation import score as score_module
from monai_ext.evaluation.outputs import OUTPUT_FILES
from monai_ext.evaluation.score import main
from monai_ext.evaluation.table import read_rows

LABELS = {"organ": 1, "lesion": 3}
SHAPE = (16, 12, 9)
SPACING = (0.9, 3.0, 1.7)


def oblique() -> np.ndarray:
    """Axes turned by 0.4 rad about two axes, one of them flipped."""
    c, s = math.cos(0.4), math.sin(0.4)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-SPACING[0], SPACING[1], SPACING[2]])
    affine[:3, 3] = (12, -7, 40)
    return affine


def box(*parts: tuple[int, tuple[int, int, int]]) -> np.ndarray:
    """Mask with a box of 4 x 3 x 3 voxels of each value at each corner."""
    mask = np.zeros(SHAPE, np.uint8)
    for value, (x, y, z) in parts:
        mask[x : x + 4, y : y + 3, z : z + 3] = value
    return mask


BOTH, ORGAN, NONE = box((1, (2, 2, 2)), (3, (9, 6, 3))), box((1, (2, 2, 2))), box()
MOVED = box((1, (3, 3, 2)), (3, (8, 6, 2)))
# reference, prediction, status of organ and lesion; "" stands for no file, "damaged" for one that cannot be read
COHORT = {
    "moved": (BOTH, MOVED, "ok", "ok"),
    "missed": (BOTH, ORGAN, "ok", "pred_empty"),
    "invented": (ORGAN, MOVED, "ok", "ref_empty"),
    "nothing": (ORGAN, ORGAN, "ok", "both_empty"),
    "absent": (BOTH, "", "missing", "missing"),
    "broken": (BOTH, "damaged", "failed", "failed"),
}


def save(path: Path, mask: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(mask[..., 3].T if mask.ndim == 3 else mask.T).save(path)
    else:
        nib.save(nib.Nifti1Image(mask, oblique() if affine is None else affine), path)


def write_cohort(folder: Path, suffix: str = ".nii.gz", cohort=COHORT, **keys) -> list[str]:
    """Write list, references and predictions; return the arguments of the command."""
    cases = []
    for number, (name, (reference, prediction, *_)) in enumerate(cohort.items()):
        save(folder / f"{name}{suffix}", reference)
        path = folder / "net" / f"{name}{suffix}"
        if isinstance(prediction, np.ndarray):
            save(path, prediction)
        elif prediction == "damaged":
            path.write_bytes(b"damaged")
        files = {"image": f"{name}{suffix}", "label": f"{name}{suffix}"}
        cases.append({"case": name, "patient": f"p{number // 2}", "visit": number % 2, **files})
    content = {"dataset": "toy", "labels": LABELS, "cases": cases} | keys
    (folder / "list.json").write_text(json.dumps(content))
    given = {"datalist": folder / "list.json", "predictions": folder / "net", "output_dir": folder / "out"}
    return [str(part) for name, path in given.items() for part in (f"--{name}", path)]


def table(folder: Path):
    return {(row.case, row.label, row.metric): row for row in read_rows(folder / "out" / "metrics.csv")}


def summary(folder: Path):
    return json.loads((folder / "out" / "summary.json").read_text())


def told(folder: Path, part: str) -> str:
    [warning] = [text for text in summary(folder)["warnings"] if part in text]
    return warning


def of_monai(function, reference, prediction, *args, spacing) -> float:
    tensors = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, reference)]
    return float(function(*tensors, *args, include_background=True, spacing=spacing))


def check_numbers(folder: Path, spacing, distance: str, cut=...) -> None:
    """Compare every row with its status, MONAI's distances and a count of voxels."""
    rows = table(folder)
    diagonal = math.hypot(*np.multiply(SHAPE, spacing or (1, 1, 1))[: 2 if spacing is None else 3])
    for name, (reference, prediction, *statuses) in COHORT.items():
        for (label, value), status in zip(LABELS.items(), statuses, strict=True):
            dice, hd95 = rows[name, label, "dice"], rows[name, label, distance]
            assert {dice.status, hd95.status} == {status}
            if status == "both_empty":
                assert (dice.value, hd95.value) == (None, None)
            elif status != "ok":
                assert (dice.value, hd95.value) == (0.0, pytest.approx(diagonal))
            else:
                one, other = (reference == value)[cut], (prediction == value)[cut]
                expected = 2 * (one & other).sum() / (one.sum() + other.sum())
                assert dice.value == pytest.approx(expected)
                sizes = spacing or (1, 1)
                expected = of_monai(lambda *m, **o: compute_hausdorff_distance(*m, percentile=95, **o), one, other,
                                    spacing=sizes)  # fmt: skip
                assert hd95.value == pytest.approx(expected, abs=1e-5)
                if spacing:
                    expected = of_monai(compute_surface_dice, one, other, [2.0 + 1e-6], spacing=sizes)
                    assert rows[name, label, "nsd_2mm"].value == pytest.approx(expected, abs=1e-6)


def test_oblique_volumes(tmp_path):
    main(write_cohort(tmp_path))
    check_numbers(tmp_path, SPACING, "hd95_mm")
    row = table(tmp_path)["moved", "lesion", "volume_ml"]
    assert row.value == pytest.approx(36 * math.prod(SPACING) / 1000)
    assert (row.task, row.algorithm, row.patient, row.visit, row.fold, row.run) == ("toy", "net", "p0", "0", "", "0")


def test_pictures(tmp_path):
    main(write_cohort(tmp_path, ".png"))
    check_numbers(tmp_path, None, "hd95_px", (..., 3))
    assert not [key for key in table(tmp_path) if key[2].endswith("mm") or "volume" in key[2]]


@pytest.mark.parametrize(
    ("image", "label", "mask"), [(3, 3, 3), (3, 0, 0), (3, 2, 0), (1, 1, 0)], ids=lambda code: f"unit{code}"
)
def test_lengths_are_in_mm_whatever_unit_the_files_state(tmp_path, capsys, image, label, mask):
    given = write_cohort(tmp_path, cohort={"moved": COHORT["moved"]})
    main(given)
    expected = {key: row.value for key, row in table(tmp_path).items()}
    content = json.loads((tmp_path / "list.json").read_text())
    content["cases"][0]["image"] = "image.nii.gz"
    (tmp_path / "list.json").write_text(json.dumps(content))
    for name, code in (("image", image), ("moved", label), ("net/moved", mask)):
        factor = {0: {1: 1e-3, 3: 1e3}[image], 1: 1e-3, 2: 1.0, 3: 1e3}[code]  # 0: the numbers of the image
        factor = 1.0 if label == 2 and name != "image" else factor
        values = MOVED if name == "net/moved" else BOTH
        volume = nib.Nifti1Image(values, np.diag([factor, factor, factor, 1]) @ oblique())
        volume.header["xyzt_units"] = code
        nib.save(volume, tmp_path / f"{name}.nii.gz")
    main(given)
    assert {key: row.value for key, row in table(tmp_path).items()} == pytest.approx(expected)
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warned) == 1
    assert "states lengths in" in warned[0]


def test_the_same_numbers_in_another_unit_are_refused(tmp_path):
    given = write_cohort(tmp_path, cohort={"moved": COHORT["moved"]})
    for name, code in (("moved", 3), ("net/moved", 2)):
        volume = nib.load(tmp_path / f"{name}.nii.gz")
        volume.header["xyzt_units"] = code
        nib.save(nib.Nifti1Image(np.asarray(volume.dataobj).copy(), None, volume.header), tmp_path / f"{name}.nii.gz")
    with pytest.raises(UserError, match="the same numbers in mm and micrometre, so correct the wrong header"):
        main(given)


def test_a_missed_structure_and_a_perfect_case_are_no_perfect_score(tmp_path):
    """HD95 of the two: the image's diagonal and 0. MONAI leaves the miss out and averages 0."""
    main(write_cohort(tmp_path, cohort={"perfect": (ORGAN, ORGAN), "missed": (ORGAN, NONE)}))
    ours = summary(tmp_path)["labels"]["organ"]["hd95_mm"]
    diagonal = math.hypot(*np.multiply(SHAPE, SPACING))
    assert ours["mean"] == pytest.approx(diagonal / 2)
    assert ours["n_by_status"]["pred_empty"] == 1

    metric = HausdorffDistanceMetric(percentile=95, include_background=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for prediction in (ORGAN, NONE):
            metric(torch.tensor(prediction == 1)[None, None], torch.tensor(ORGAN == 1)[None, None])
    assert metric.aggregate().item() == 0.0


def test_all_files_and_the_table_are_given(tmp_path, capsys):
    main(write_cohort(tmp_path))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*OUTPUT_FILES, "run.json"}
    printed = capsys.readouterr().out
    mean = summary(tmp_path)["labels"]["organ"]["dice"]["mean"]
    assert f"{mean:.3f} [" in printed
    assert "1 missing, 1 failed" in printed
    assert summary(tmp_path)["spacing_source"].startswith("header of the reference mask")


def test_what_was_found_is_told(tmp_path):
    arguments = write_cohort(tmp_path)
    save(tmp_path / "net" / "stranger.nii.gz", BOTH)
    main(arguments)
    assert "absent" in told(tmp_path, "no prediction")
    assert "broken" in told(tmp_path, "case 'broken'")
    assert "stranger.nii.gz" in told(tmp_path, "of no case of the data list")


def test_tables_do_not_name_the_folders_of_a_machine(tmp_path):
    main(write_cohort(tmp_path))
    for name in OUTPUT_FILES:
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()


def test_a_folder_is_left_out_of_paths_only_where_they_begin(tmp_path, monkeypatch):
    """--predictions net must not turn the reference cabinet/a.png into cabia.png."""
    cases = []
    for folder in ("net", "cabinet"):
        save(tmp_path / folder / "a.png", BOTH)
    cases.append({"case": "a", "image": "cabinet/a.png", "label": "cabinet/a.png"})
    (tmp_path / "list.json").write_text(json.dumps({"dataset": "toy", "labels": LABELS, "cases": cases}))
    monkeypatch.chdir(tmp_path)
    main(["--datalist", "list.json", "--predictions", "net", "--output_dir", "out"])
    entry = json.loads((tmp_path / "out" / "nnunet_summary.json").read_text())["metric_per_case"][0]
    assert (entry["prediction_file"], entry["reference_file"]) == ("a.png", "cabinet/a.png")


def test_counts_of_voxels_reach_nnunet_s_summary(tmp_path):
    main(write_cohort(tmp_path))
    found = json.loads((tmp_path / "out" / "nnunet_summary.json").read_text())
    entry, lesion = found["metric_per_case"][0], (BOTH == 3, MOVED == 3)
    assert (entry["prediction_file"], entry["reference_file"]) == ("moved.nii.gz", "moved.nii.gz")
    assert entry["metrics"]["3"]["TP"] == (lesion[0] & lesion[1]).sum()
    assert entry["metrics"]["3"]["TN"] == (~lesion[0] & ~lesion[1]).sum()


def test_values_that_are_no_label_are_told_and_count_as_background(tmp_path):
    odd = ORGAN.copy()
    odd[8, 8, 8], odd[2, 2, 2] = 3, 77
    main(write_cohort(tmp_path, cohort={"odd": (ORGAN, odd)}, labels={"organ": 1}))
    assert "(3, 77), counted as background" in told(tmp_path, "no label")
    assert table(tmp_path)["odd", "organ", "dice"].value == pytest.approx(2 * 35 / (35 + 36))


def test_ignored_voxels_are_left_out(tmp_path):
    reference = ORGAN.copy()
    reference[2, 2:5, 2:5] = 9
    main(write_cohort(tmp_path, cohort={"a": (reference, ORGAN)}, ignore=9))
    assert table(tmp_path)["a", "organ", "dice"].value == 1.0
    assert not [text for text in summary(tmp_path)["warnings"] if "no label" in text]


def test_labels_that_overlap_have_files_of_their_own(tmp_path):
    arguments = write_cohort(tmp_path, cohort={"a": (BOTH, ""), "b": (BOTH, BOTH)})
    save(tmp_path / "net" / "a_organ.nii.gz", (BOTH > 0).astype(np.uint8))
    main(arguments)
    rows = table(tmp_path)
    assert rows["a", "organ", "dice"].value == pytest.approx(2 * 36 / (36 + 72))
    assert rows["a", "lesion", "dice"].status == "missing"


@pytest.mark.slow
def test_several_processes_give_the_same_bytes(tmp_path, monkeypatch):
    arguments = write_cohort(tmp_path)
    main(arguments)
    once = {name: (tmp_path / "out" / name).read_bytes() for name in OUTPUT_FILES}
    # fork instead of spawn spares the test the start of new interpreters
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(score_module.multiprocessing, "get_context", lambda _: fork)
    main([*arguments, "--workers", "2"])
    assert {name: (tmp_path / "out" / name).read_bytes() for name in OUTPUT_FILES} == once


def test_another_grid_is_an_error_unless_resampled(tmp_path):
    arguments = write_cohort(tmp_path, cohort={"a": (BOTH, BOTH), "b": (BOTH, BOTH)})
    half = oblique() @ np.diag([1, 1, 0.5, 1])
    half[:3, 3] -= half[:3, 2] / 2  # half the spacing, the same field of view
    save(tmp_path / "net" / "b.nii.gz", BOTH.repeat(2, axis=2), half)
    with pytest.raises(UserError, match=r"case 'b': .*16 x 12 x 18 voxels.*16 x 12 x 9 voxels.*--resample"):
        main(arguments)
    assert not (tmp_path / "out" / "metrics.csv").exists()
    main([*arguments, "--resample"])
    assert table(tmp_path)["b", "organ", "dice"].value == 1.0
    assert summary(tmp_path)["resampling"]["cases"] == ["b"]
    assert "nearest neighbour" in summary(tmp_path)["resampling"]["rule"]


def test_a_label_beside_its_image_is_refused(tmp_path):
    arguments = write_cohort(tmp_path, cohort={"a": (BOTH, BOTH)})
    save(tmp_path / "image.nii.gz", BOTH, np.eye(4))
    content = json.loads((tmp_path / "list.json").read_text())
    content["cases"][0]["image"] = "image.nii.gz"
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"case 'a': .*label grid differs from image grid"):
        main(arguments)


def test_options_choose_cases_labels_and_levels(tmp_path):
    arguments = write_cohort(tmp_path)
    content = json.loads((tmp_path / "list.json").read_text())
    for case in content["cases"]:
        case |= {"split": "test" if case["patient"] != "p2" else "train", "fold": 4}
    (tmp_path / "list.json").write_text(json.dumps(content))
    options = {"split": "test", "labels": "lesion", "algorithm": "mine", "run": 2, "mean_of": "visit,patient"}
    options |= {"nsd_tolerance_mm": 1.5, "slice_axis": "A", "seed": 5}
    main([*arguments, *(str(part) for name, value in options.items() for part in (f"--{name}", value))])
    rows = table(tmp_path).values()
    assert {row.case for row in rows} == {"moved", "missed", "invented", "nothing"}
    assert {(row.label, row.algorithm, row.run, row.fold) for row in rows} == {("lesion", "mine", "2", "4")}
    assert "nsd_1.5mm" in {row.metric for row in rows}
    assert summary(tmp_path)["mean_of"] == "cases -> visits -> patients"
    assert summary(tmp_path)["confidence_interval"]["seed"] == 5
    assert not [text for text in summary(tmp_path)["warnings"] if "of no case" in text]


def test_follow_up_leaves_references_out(tmp_path):
    main([*write_cohort(tmp_path), "--follow_up"])
    rows = table(tmp_path).values()
    assert {(row.case, row.reference) for row in rows} == {
        ("missed", "moved"),
        ("nothing", "invented"),
        ("broken", "absent"),
    }


def test_the_run_is_recorded(tmp_path):
    main(write_cohort(tmp_path))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {entry["path"] for entry in record["outputs"]} == set(OUTPUT_FILES)
    assert {entry["path"] for entry in record["inputs"]} >= {"moved.nii.gz", "net/moved.nii.gz"}
    assert record["config"]["predictions"] == str(tmp_path / "net")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--labels", "liver"], "no such label; it has organ, lesion"),
        (["--nsd_tolerance_mm", "-1"], "is no distance"),
        (["--nsd_tolerance_mm", "inf"], "is no distance"),
        (["--seed", "-1"], "below 0"),
        (["--mean_of", "slice"], "no such level"),
        (["--mean_of", "fold"], "no case has a fold"),
        (["--split", "test"], "no case is in split 'test'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        main([*write_cohort(tmp_path), *options])


def test_a_case_without_label_is_named(tmp_path):
    arguments = write_cohort(tmp_path)
    content = json.loads((tmp_path / "list.json").read_text())
    del content["cases"][1]["label"]
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="case 'missed' has no 'label'"):
        main(arguments)


@pytest.mark.slow
def test_the_command_ends_with_one_sentence(tmp_path):
    arguments = write_cohort(tmp_path)
    save(tmp_path / "net" / "moved.nii.gz", BOTH[..., 1:])
    command = [sys.executable, "-m", "monai_ext.evaluation.score", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("error: case 'moved': ")
    assert "Traceback" not in run.stderr


def test_a_real_patient_is_scored_as_monai_does(real_data, tmp_path):
    """The end-diastolic label, taken for a prediction of the end-systolic one."""
    content = json.loads((real_data / "ACDC.json").read_text())
    first, second = [case for case in content["cases"] if case["patient"] == content["cases"][0]["patient"]][:2]
    save(tmp_path / "ed" / f"{second['case']}.nii.gz", *load(real_data / first["label"]))
    (tmp_path / "list.json").write_text(json.dumps({**content, "cases": [second]}))
    main(
        ["--datalist", str(tmp_path / "list.json"), "--data_root", str(real_data)]
        + ["--predictions", str(tmp_path / "ed"), "--output_dir", str(tmp_path / "out")]
    )
    (prediction, affine), (reference, _) = load(real_data / first["label"]), load(real_data / second["label"])
    spacing = tuple(nib.affines.voxel_sizes(affine))
    for label, value in content["labels"].items():
        pair = reference == value, prediction == value
        expected = of_monai(lambda *m, **o: compute_hausdorff_distance(*m, percentile=95, **o), *pair, spacing=spacing)
        assert table(tmp_path)[second["case"], label, "hd95_mm"].value == pytest.approx(expected, rel=1e-6, abs=1e-5)


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    volume = nib.load(path)
    return np.asanyarray(volume.dataobj).astype(np.uint8), volume.affine


def test_a_missing_list_leaves_no_folder(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="there is no such data list"):
        main(["--datalist", str(tmp_path / "no.json"), "--predictions", str(tmp_path), "--output_dir", str(out)])
    assert not out.exists()
