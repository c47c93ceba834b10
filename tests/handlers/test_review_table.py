from __future__ import annotations

import csv
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from monai_ext.data.case_details import CaseDetails
from monai_ext.errors import UserError
from monai_ext.evaluation.review import Calibration, calibration_text
from monai_ext.files import sha256_of
from monai_ext.handlers.review_table import ReviewTable, check_review

LABELS = {"RV": 4, "LV": 7}
CALIBRATION = Calibration("by hand", ("distance",), (0.5,), (0.1,), (-1.0,), 0.0, 0.5)


def run(tmp_path, rows, pred, **options):
    """One case of 6 x 5 x 3 voxels whose z axis points downwards: slice 0 of the input frame is its last."""
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 3), np.uint8), np.diag([1.0, 1, -5, 1])), tmp_path / "i.nii.gz")
    image = SimpleNamespace(meta={"filename_or_obj": str(tmp_path / "i.nii.gz")})
    seen = []

    def segment(engine, _):
        engine.state.batch = [{"case": "a", "patient": "p", "visit": 1.0, "image": image}]
        return [{"pred": pred, "details": CaseDetails(rows)}]

    engine = Engine(segment)
    ReviewTable(tmp_path, LABELS, **options).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output[0]["pred"].clone()))
    engine.run([0], max_epochs=1)
    return seen[0]


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


ROWS = [
    {"label": "LV", "slice": 0, "features": {"distance": 0.9}},
    {"label": "LV", "slice": 1, "features": {"distance": 0.1, "margin": None}},
    {"label": "RV", "slice": 0, "features": {"distance": 0.3}},
    {"label": "RV", "slice": 1, "status": "reference_absent"},
]


def full() -> torch.Tensor:
    pred = torch.full((1, 6, 5, 3), 7)
    pred[0, :2] = 4
    return pred


def test_worst_first_and_a_line_on_the_console(tmp_path, capsys):
    run(tmp_path, ROWS, full(), calibration=CALIBRATION)
    rows = read(tmp_path / "review.csv")
    assert (rows[0]["label"], rows[0]["slice"], rows[0]["flag"], rows[0]["reason"]) == ("LV", "0", "1", "distance 0.9")
    assert [float(row["score"]) for row in rows] == sorted(float(row["score"]) for row in rows)
    assert {(row["case"], row["patient"], row["visit"]) for row in rows} == {("a", "p", "1")}
    assert {row["method"] for row in rows} == {"by hand"}
    assert "1 of 3 masks of a slice are flagged, worst case a" in capsys.readouterr().out


def test_without_a_calibration_there_is_an_order_and_no_flag(tmp_path, capsys):
    rows = [{**row, "features": {**row["features"], "jump": row["slice"] / 4}} for row in ROWS[:3]]
    run(tmp_path, rows, full())
    features = read(tmp_path / "review_features.csv")
    assert [(r["label"], r["slice"], r["feature"], r["value"]) for r in features if r["feature"] != "jump"] == [
        ("LV", "0", "distance", "0.9"),
        ("LV", "1", "distance", "0.1"),
        ("LV", "1", "margin", ""),
        ("RV", "0", "distance", "0.3"),
    ]
    found = read(tmp_path / "review.csv")
    assert {(row["flag"], row["method"]) for row in found} == {("", "uncalibrated")}
    assert (found[0]["label"], found[0]["slice"], found[0]["score"]) == ("LV", "1", "0.7500")
    assert "review: not calibrated (--review), worst case a (score 0.88, lowest: LV)" in capsys.readouterr().out


def test_a_method_without_features_has_no_review(tmp_path):
    run(tmp_path, ROWS[3:], full())
    assert not list(tmp_path.glob("review*.csv"))


def test_abstaining_empties_the_flagged_slice_of_that_structure_alone(tmp_path):
    seen = run(tmp_path, ROWS, full(), calibration=CALIBRATION, abstain=True)
    expected = full()
    expected[0, 2:, :, 2] = 0
    assert torch.equal(seen, expected)
    assert torch.equal(run(tmp_path, ROWS, full(), calibration=CALIBRATION), full())


def test_abstaining_with_one_channel_a_label(tmp_path):
    seen = run(tmp_path, ROWS, torch.ones(2, 6, 5, 3), calibration=CALIBRATION, abstain=True)
    expected = torch.ones(2, 6, 5, 3)
    expected[1, ..., 2] = 0
    assert torch.equal(seen, expected)


def test_a_calibration_of_another_method_is_refused(tmp_path):
    other = Calibration("by hand", ("agreement", "entropy"), (0.5, 0.5), (0.1, 0.1), (-1.0, 1.0), 0.0, 0.5)
    with pytest.raises(
        UserError, match="calibrated on agreement, entropy, and this method hands over distance, margin"
    ):
        run(tmp_path, ROWS, full(), calibration=other)
    shares = Calibration("by hand", ("shares",), (0.5,), (0.1,), (-1.0,), 0.0, 0.5)
    with pytest.raises(UserError, match="calibrated on shares"):
        run(tmp_path, ROWS, full(), calibration=shares)


def test_a_feature_that_is_not_handed_over_is_named_once(tmp_path, caplog):
    more = Calibration("by hand", ("distance", "cycle"), (0.5, 0.5), (0.1, 0.1), (-1.0, 1.0), 0.0, 0.5)
    run(tmp_path, ROWS, full(), calibration=more)
    assert [record.getMessage().count("cycle") for record in caplog.records] == [1]


def test_tables_of_an_earlier_run_go_where_there_is_nothing_to_say(tmp_path):
    run(tmp_path, ROWS, full())
    assert (tmp_path / "review.csv").is_file()
    run(tmp_path, ROWS[3:], full())
    assert not list(tmp_path.glob("review*.csv"))


@pytest.mark.parametrize(
    ("made_by", "words"),
    [
        ({}, None),
        ({"prompts": "own", "sam": "own"}, None),
        ({"prompts": "other", "sam": "own"}, "calibrated on other learned prompts"),
        ({"prompts": "own", "sam": "other"}, "calibrated on other weights of SAM"),
    ],
)
def test_a_calibration_of_other_weights_is_warned_of(tmp_path, caplog, made_by, words):
    files = {name: tmp_path / f"{name}.pt" for name in ("prompts", "sam")}
    for name, path in files.items():
        path.write_bytes(name.encode())
    told = {key: sha256_of(files[key])[:12] if value == "own" else "0" * 12 for key, value in made_by.items()}
    review = tmp_path / "review.json"
    review.write_text(calibration_text(replace(CALIBRATION, made_by=told)))
    check_review(review, files["prompts"], files["sam"])
    check_review(None, files["prompts"], files["sam"])
    assert (words in caplog.text) if words else not caplog.text
