"""Whether a score finds failures: against runs in which that is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.episode_outcomes import EpisodeOutcome, write_outcomes
from monai_ext.data.episodes import Episode, SliceName
from monai_ext.errors import UserError
from monai_ext.evaluation import calibration as module
from monai_ext.evaluation.calibrate_review import SliceOfRun
from monai_ext.evaluation.review import read_calibration


def make_masks(patients: str, each: int = 40, seed: int = 0) -> list[SliceOfRun]:
    """``agreement`` tells the Dice, ``predicted_iou`` next to nothing of it, ``entropy`` and its like are noise."""
    rng = np.random.default_rng(seed)
    masks = []
    for patient in patients:
        for dice in rng.uniform(0.3, 1, each):
            noise = rng.normal(size=4)
            features = {"agreement": dice + 0.05 * noise[0], "predicted_iou": 0.2 * dice + noise[1], "certainty": None}
            features |= {"entropy": noise[2], "variance_ratio": noise[3], "constant": 1.0}
            masks.append(SliceOfRun(patient, features, float(dice)))
    return masks


def write_run(folder: Path, masks: list[SliceOfRun]) -> Path:
    folder.mkdir()
    outcomes = []
    for number, mask in enumerate(masks):
        query, support = SliceName("Toy", f"{mask.patient}0", number), SliceName("Toy", "s", 0)
        tp = round(1000 * mask.dice)
        counts = (tp, 1000 - tp, 1000 - tp, 0)
        outcomes.append(EpisodeOutcome(Episode("x", support, query), mask.patient, "ok", counts, mask.features))
    write_outcomes(folder / "episodes.csv", outcomes)
    return folder


def test_the_score_that_knows_is_found():
    fitted = module.fit_scores(make_masks("ab"), module.SETS, "ab")
    assert set(fitted) == {"agreement", "predicted_iou", "entropy", "variance_ratio", "draws"}
    found = {row.score: row for row in module.measure_scores(make_masks("cdef", seed=1), fitted, "predicted_iou", 50)}
    assert found["agreement"].auroc > 0.95
    assert found["draws"].auroc > 0.9
    assert found["agreement"].spearman > 0.9
    assert found["agreement"].auroc_low <= found["agreement"].auroc <= found["agreement"].auroc_high
    assert found["agreement"].gain_low > 0.1
    assert found["predicted_iou"].gain == found["predicted_iou"].gain_high == 0
    assert abs(found["entropy"].auroc - 0.5) < 0.15
    assert found["agreement"].ece < 0.1
    assert (found["draws"].n, found["draws"].patients) == (160, 4)


def test_a_score_of_which_the_test_run_lacks_a_feature_is_left_out():
    fitted = module.fit_scores(make_masks("ab"), module.SETS, "ab")
    masks = make_masks("cd", seed=1)
    without = [SliceOfRun(mask.patient, {**mask.features, "entropy": None}, mask.dice) for mask in masks]
    assert set(module.known_scores(fitted, without)) == {"agreement", "predicted_iou", "variance_ratio"}
    assert module.known_scores(fitted, masks) == fitted


def test_expected_error_by_hand():
    scores, dice = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0.2, 0.9, 0.8, 0.8])
    assert module.reliability(scores, dice, 2) == [(pytest.approx(0.1), 0.5, 2), (pytest.approx(0.9), 1.0, 2)]
    ten = np.repeat(scores, 5), np.repeat(dice, 5)
    assert module.expected_error(*ten) == pytest.approx(
        sum(abs(c - f) * n for c, f, n in module.reliability(*ten)) / 20
    )


@pytest.mark.slow
def test_the_command_writes_tables_a_figure_and_a_calibration_for_inference(tmp_path, capsys):
    validation = write_run(tmp_path / "validation", make_masks("ab"))
    test = write_run(tmp_path / "test", make_masks("cd", seed=1))
    out = tmp_path / "out"
    words = [str(test), "--on", str(validation), "--output_dir", str(out), "--draws", "50"]
    module.main([*words, "--set", "two=agreement,predicted_iou"])
    with open(out / "calibration.csv", newline="") as file:
        rows = {row["score"]: row for row in csv.DictReader(file)}
    assert {"agreement", "draws", "two"} <= set(rows)
    assert "views" not in rows, "the runs have no views"
    assert (out / "reliability.png").stat().st_size > 5000
    assert sum(int(line.split(",")[-1]) for line in (out / "reliability.csv").read_text().splitlines()[1:]) == 2 * 80
    review = read_calibration(out / "review_draws.json")
    assert review.score({"agreement": 1.0, "entropy": 0.0, "variance_ratio": 0.0}) > 0.5
    assert "a, b" in json.loads((out / "review_draws.json").read_text())["method"]
    printed = capsys.readouterr().out
    assert "80 masks of 2 patients" in printed
    assert "bootstrap intervals tend to be too narrow" in printed


def write_case_run(folder: Path, patients: str, datalist: Path) -> Path:
    """A run on cases whose masks are shifted off their labels, and which says so; each patient's last mask is empty."""
    rng, rows = np.random.default_rng(0), ["case,patient,visit,label,slice,feature,value"]
    (folder / "masks").mkdir(parents=True)
    content = json.loads(datalist.read_text()) if datalist.is_file() else {"dataset": "Toy", "labels": {"x": 1}}
    for patient in patients:
        label = np.zeros((24, 24, 8), np.uint8)
        label[4:12, 8:16] = 1
        mask = np.zeros_like(label)
        for k, shift in enumerate(rng.permutation(8)):
            mask[..., k] = np.roll(label[..., k], shift, axis=0) * (k < 7)
            told = {"agreement": 1 - 0.05 * shift if k < 7 else "", "predicted_iou": rng.normal()}
            rows += [f"{patient},{patient},,x,{k},{name},{value}" for name, value in told.items()]
        files = {name: str(datalist.parent / f"{patient}_{name}.nii.gz") for name in ("image", "label")}
        for path in files.values():
            nib.save(nib.Nifti1Image(label, np.diag([-1.0, -1, 5, 1])), path)
        nib.save(nib.Nifti1Image(mask, np.diag([-1.0, -1, 5, 1])), folder / "masks" / f"{patient}.nii.gz")
        content.setdefault("cases", []).append({"case": patient, "patient": patient, **files})
    (folder / "review_features.csv").write_text("\n".join(rows) + "\n")
    datalist.write_text(json.dumps(content))
    return folder


def test_runs_on_cases_are_measured_with_their_data_list(tmp_path, capsys):
    runs = [write_case_run(tmp_path / name, name, tmp_path / "list.json") for name in ("ab", "cde")]
    words = ["--datalist", str(tmp_path / "list.json"), "--output_dir", str(tmp_path / "out"), "--draws", "20"]
    module.main([str(runs[1]), "--on", str(runs[0]), *words])
    assert "24 masks of 3 patients" in capsys.readouterr().out
    with open(tmp_path / "out" / "calibration.csv", newline="") as file:
        rows = {row["score"]: row for row in csv.DictReader(file)}
    assert float(rows["agreement"]["auroc"]) > 0.9
    assert (tmp_path / "out" / "reliability.png").is_file()


def test_a_calibration_tells_which_prompts_and_sam_it_is_for(tmp_path):
    validation, test = (write_run(tmp_path / name, make_masks(name)) for name in ("ab", "cd"))
    assert module.read_makers(validation) == {}
    made_by = {"prompts": "0123456789ab", "sam": "ba9876543210"}
    (validation / "summary.json").write_text(json.dumps({"algorithm": "prosam", **made_by, "miou": {}}))
    module.main([str(test), "--on", str(validation), "--output_dir", str(tmp_path / "out"), "--draws", "20"])
    assert read_calibration(tmp_path / "out" / "review_draws.json").made_by == made_by


@pytest.mark.parametrize(
    ("test", "more", "words"),
    [
        ("bc", [], "patient b is in both runs"),
        ("cd", ["--against", "luck"], "--against luck is none of the scores"),
        ("cd", ["--set", "x"], "--set 'x' is none"),
        ("cd", ["--draws", "0"], "--draws is 0"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(tmp_path, test, more, words):
    validation = write_run(tmp_path / "validation", make_masks("ab"))
    folder = write_run(tmp_path / "test", make_masks(test))
    with pytest.raises(UserError, match=words):
        module.main([str(folder), "--on", str(validation), "--output_dir", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("bad", "words"), [(0.95, "5 of 100 masks have"), (0.02, "2 of 100 masks lack"), (0.5, "")])
def test_runs_with_few_good_or_bad_masks_are_warned_of(bad, words):
    first = module.Measured("x", 100, 60, bad, *[0.0] * 12)
    found = module.measured_warnings(first)
    assert [words in one for one in found] == ([True] if words else [])


def test_other_folders_and_runs_without_failures_are_refused(tmp_path):
    with pytest.raises(UserError, match="give the data list"):
        module.read_masks(tmp_path)
    fitted = module.fit_scores(make_masks("ab"), {}, "ab")
    good = [SliceOfRun("c", {"agreement": 0.9}, 0.9)] * 3
    with pytest.raises(UserError, match="3 of 3 masks of the test run"):
        module.measure_scores(good, fitted, "agreement")
