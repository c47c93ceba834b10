from __future__ import annotations

import json
import math

import nibabel as nib
import numpy as np
import pytest
from scipy import stats

from monai_ext.data.manifest import load_datalist
from monai_ext.errors import UserError
from monai_ext.evaluation.calibrate_review import SliceOfRun, _spearman, held_out_scores, main, measure, read_run
from monai_ext.evaluation.record import write_record
from monai_ext.evaluation.review import FEATURE_COLUMNS, FEATURES, calibrate, read_calibration
from monai_ext.evaluation.table import write_table

DEPTH = 4


@pytest.fixture
def run(tmp_path):
    """Masks of four patients that are shifted by 0 to 3 columns, slice by slice, and a feature that says so."""
    (tmp_path / "run" / "masks").mkdir(parents=True)
    cases, rows = [], []
    for number in range(4):
        label, mask = (np.zeros((12, 12, DEPTH), np.uint8) for _ in range(2))
        label[3:7, 3:7] = 2
        for k in range(DEPTH):
            shift = (number + k) % 4
            mask[3:7, 3 + shift : 7 + shift, k] = 2
            known = {"shift": shift / 4, "noise": float((3 * number + k) % 5), "margin": ""}
            rows += [[f"c{number}", f"p{number}", "1", "LV", k, name, value] for name, value in known.items()]
        affine = np.diag([1.0, 1, 8, 1])
        nib.save(nib.Nifti1Image(label, affine), tmp_path / f"c{number}_label.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), tmp_path / "run" / "masks" / f"c{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), tmp_path / f"c{number}.nii.gz")
        files = {"image": f"c{number}.nii.gz", "label": f"c{number}_label.nii.gz"}
        cases.append({"case": f"c{number}", "patient": f"p{number}", **files})
    write_table(tmp_path / "run" / FEATURES, FEATURE_COLUMNS, rows)
    content = {"dataset": "drawn", "modality": "MR", "labels": {"RV": 1, "LV": 2}, "cases": cases}
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture(autouse=True)
def few_draws(monkeypatch) -> None:
    monkeypatch.setattr("monai_ext.evaluation.calibrate_review.DRAWS", 50)


def command(run, *options) -> None:
    main([str(run / "run"), "--datalist", str(run / "list.json"), *map(str, options)])


def test_dice_is_of_each_slice_and_structure(run):
    slices = read_run(run / "run", load_datalist(run / "list.json"))
    assert len(slices) == 4 * DEPTH
    for one in slices:
        assert one.dice == pytest.approx(1 - one.features["shift"])  # of 4 columns
        assert one.features["margin"] is None
    assert [one.patient for one in slices[::DEPTH]] == ["p0", "p1", "p2", "p3"]


def test_slices_are_those_that_the_run_has_cut(run):
    config = {"slice_axis": "R", "abstain": False}
    write_record(run / "run", config=config, datalist=run / "list.json")
    (run / "run" / "masks" / "c0.1.nii.gz").write_bytes(b"of a case of another name")
    dice = [one.dice for one in read_run(run / "run", load_datalist(run / "list.json"))[:DEPTH]]
    assert dice == pytest.approx([1, 1, 1, 2 * 10 / 32])  # sagittal: three empty ones, then shifts of 0 to 3 of 4 rows
    write_record(run / "run", config={**config, "abstain": True}, datalist=run / "list.json")
    with pytest.raises(UserError, match="has left out masks"):
        read_run(run / "run", load_datalist(run / "list.json"))
    write_record(run / "run", config={**config, "keep": {"a": "mask.nii.gz"}}, datalist=run / "list.json")
    with pytest.raises(UserError, match="partly those of --keep"):
        read_run(run / "run", load_datalist(run / "list.json"))


def test_a_calibration_is_written_and_measured(run, capsys):
    command(run, "--output", run / "review.json")
    made = capsys.readouterr().out
    assert "16 slices and structures, 8 below 0.7" in made
    assert "\nauroc 1.000 [1.000, 1.000]" in made
    assert "patients left out: auroc 1.000" in made
    calibration = read_calibration(run / "review.json")
    assert calibration.method == "logistic regression on 16 slices and structures of drawn: p0, p1, p2, p3"
    command(run, "--calibration", run / "review.json")
    assert "\nauroc 1.000" in capsys.readouterr().out


def test_features_can_be_left_out(run):
    command(run, "--output", run / "review.json", "--without", "shift", "margin")
    assert read_calibration(run / "review.json").names == ("noise",)


def test_the_mean_of_the_shares_alone(run, capsys):
    command(run, "--output", run / "review.json", "--shares")
    calibration = read_calibration(run / "review.json")
    assert calibration.names == ("shares",)
    assert "patients left out: auroc 1.000" in capsys.readouterr().out
    good, bad = ({"shift": shift, "noise": 2.0} for shift in (0.0, 0.75))
    assert calibration.score(good) > 0.5 > calibration.score(bad)
    assert calibration.reason(bad) == "shift 0.75"


def test_the_score_that_is_not_calibrated_is_measured_too(run, capsys):
    command(run)
    found = capsys.readouterr().out
    assert "auroc 1.000" in found
    assert "flagged" not in found


def test_patients_are_scored_by_a_calibration_on_the_others():
    slices = [SliceOfRun(str(n % 3), {"jump": n / 12}, 1 - n / 12) for n in range(12)]
    scores = held_out_scores(slices)
    for patient in range(3):
        assert scores[patient::3] == sorted(scores[patient::3], reverse=True)
    others = [one for one in slices if one.patient != "0"]
    first = calibrate([one.features for one in others], [one.dice for one in others], "the others")
    assert scores[0] == first.score(slices[0].features)
    alone = [SliceOfRun(str(int(n > 5)), {"jump": n / 12}, 0.9 if n < 6 else 0.1) for n in range(12)]
    assert held_out_scores(alone) is None  # the others are all good, or all bad


def test_ranks_are_those_of_scipy():
    a, b = np.array([3.0, 1, 2, 2, 5]), np.array([1.0, 1, 4, 0, 9])
    assert _spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert math.isnan(_spearman(a, np.ones(5)))


def test_nothing_is_measured_where_a_class_is_nearly_empty():
    slices = [SliceOfRun("p", {"jump": 0.1}, 0.9) for _ in range(19)] + [SliceOfRun("q", {"jump": 0.1}, 0.1)]
    assert measure(slices, [0.5] * 20) is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda run: (run / "run" / "masks" / "c1.nii.gz").unlink(),
            "case c1 has no label in the data list, or no",
        ),
        (lambda run: (run / "run" / FEATURES).write_text("case,label\n"), "has no features"),
        (lambda run: (run / "run" / FEATURES).write_text("case,label\na,b\n"), "cannot be read"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(run, spoil, said):
    spoil(run)
    with pytest.raises(UserError, match=said):
        command(run, "--output", run / "review.json")
    assert not (run / "review.json").exists()


def test_calibrating_and_measuring_are_two_commands(run):
    with pytest.raises(UserError, match="not both"):
        command(run, "--output", run / "a.json", "--calibration", run / "b.json")
