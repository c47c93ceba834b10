from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.review import (
    Calibration,
    Uncalibrated,
    auroc,
    calibrate,
    calibration_text,
    missing_structures,
    read_calibration,
    review_rows,
    worst_first,
)

BUNDLES = Path(__file__).parents[2] / "bundles"
KNOWN = Calibration("by hand", ("distance", "jump"), (0.2, 0.5), (0.1, 0.5), (-2.0, -1.0), 0.5, 0.4)


def test_the_score_is_the_logistic_function_of_standardised_features():
    logit = 0.5 - 2 * (0.3 - 0.2) / 0.1 - (0.0 - 0.5) / 0.5
    assert KNOWN.score({"distance": 0.3, "jump": 0.0}) == pytest.approx(1 / (1 + math.exp(-logit)))


def test_an_unknown_feature_counts_as_the_mean():
    assert KNOWN.score({"distance": None}) == KNOWN.score({"distance": 0.2, "jump": 0.5}) == KNOWN.score({})
    assert KNOWN.score({"distance": math.nan}) == KNOWN.score({})


def test_the_reason_is_what_speaks_most_against_the_mask():
    assert KNOWN.reason({"distance": 0.3, "jump": 5.5}) == "jump 5.5"
    assert KNOWN.reason({"distance": 0.1, "jump": 0.0}) == ""


def test_calibration_finds_what_tells_good_from_bad():
    rng = np.random.default_rng(0)
    dice = rng.uniform(size=200)
    features = [{"distance": 1 - d + rng.normal() * 0.1, "noise": rng.normal()} for d in dice]
    fitted = calibrate(features, dice, "drawn numbers")
    scores = [fitted.score(one) for one in features]
    assert auroc(scores, dice >= 0.7) > 0.9
    weights = dict(zip(fitted.names, fitted.weights, strict=True))
    assert weights["distance"] < -1
    assert abs(weights["noise"]) < 0.5
    flagged = [score < fitted.threshold for score, d in zip(scores, dice, strict=True) if d < 0.7]
    assert np.mean(flagged) == pytest.approx(0.8, abs=0.01)


def test_a_calibration_survives_its_file(tmp_path):
    (tmp_path / "review.json").write_text(calibration_text(KNOWN))
    assert read_calibration(tmp_path / "review.json") == KNOWN


@pytest.mark.parametrize("text", ["{}", "no json", '{"names": ["a"], "method": "", "threshold": 1}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "review.json").write_text(text)
    with pytest.raises(UserError, match="no calibration of the review score"):
        read_calibration(tmp_path / "review.json")


def test_good_masks_alone_cannot_calibrate():
    with pytest.raises(UserError, match="2 of 2 validation slices"):
        calibrate([{"distance": 0.1}, {"distance": 0.2}], [0.9, 0.8], "two slices")


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    assert auroc([0.9, 0.4, 0.4, 0.1], [True, True, False, False]) == (1 + 1 + 0.5 + 1) / 4
    assert math.isnan(auroc([0.9], [True]))


def test_rows_of_slices_structures_and_the_case():
    slices = [("LV", 3, {"distance": 0.1}), ("LV", 4, {"distance": 0.4}), ("RV", 3, {"distance": 0.2})]
    rows = review_rows(["c", "p", "1"], slices, KNOWN)
    scores = {(row[3], row[4]): float(row[5]) for row in rows}
    assert scores["LV", ""] == pytest.approx((scores["LV", "3"] + scores["LV", "4"]) / 2, abs=1e-4)
    assert scores["", ""] == min(scores["LV", ""], scores["RV", ""])
    assert {(row[3], row[4]) for row in rows if row[6] == "1"} == {("LV", "4")}
    assert [row[7] for row in rows if row[4] == ""] == ["1 of 2 slices flagged", "0 of 1 slices flagged", "lowest: LV"]
    assert [row[5] for row in worst_first(rows)] == sorted((row[5] for row in rows), key=float)


def test_without_a_calibration_the_shares_count_alike():
    features = {"certainty": 0.9, "jump": 0.3, "spread": None, "distance": 7.0}
    assert Uncalibrated().score(features) == pytest.approx((0.9 + 0.7) / 2)
    assert Uncalibrated().reason(features) == "jump 0.3"
    assert Uncalibrated().score({"distance": 7.0, "spread": math.nan}) is None


def test_a_structure_without_any_mask_comes_first():
    """However sure its empty slices look: it may have been missed."""
    details = [{"label": "LV", "status": "ok"}, {"label": "LV", "status": "no_foreground"}]
    details += [{"label": "RV", "status": "no_foreground"}, {"label": "RV", "status": "outside_reference"}]
    details += [{"label": "MYO", "status": "reference_absent"}, {"label": "LA"}]
    missing = missing_structures(details)
    assert missing == {"RV": "found on no slice", "MYO": "sought on no slice"}
    slices = [("LV", 3, {"distance": 0.4}), ("RV", 3, {"distance": 0.1})]
    rows = review_rows(["c", "p", "1"], slices, KNOWN, missing)
    whole = {row[3]: row[5:8] for row in rows if row[4] == ""}
    assert whole["RV"] == ["0.0000", "1", "found on no slice"]
    assert whole["MYO"] == ["0.0000", "1", "sought on no slice"]
    assert whole[""] == ["0.0000", "1", "lowest: RV"]
    assert whole["LV"][0] != "0.0000"


def test_rows_without_a_calibration_are_not_flagged():
    slices = [("LV", 3, {"jump": 0.1}), ("LV", 4, {"jump": 0.4}), ("RV", 3, {"distance": 0.2})]
    rows = review_rows(["c", "p", "1"], slices, Uncalibrated())
    assert [row[3:] for row in rows] == [
        ["LV", "3", "0.9000", "", "jump 0.1", "uncalibrated"],
        ["LV", "4", "0.6000", "", "jump 0.4", "uncalibrated"],
        ["LV", "", "0.7500", "", "lowest: slice 4", "uncalibrated"],
        ["", "", "0.7500", "", "lowest: LV", "uncalibrated"],
    ]


@pytest.mark.parametrize("path", sorted(BUNDLES.glob("*/configs/review_*.json")), ids=lambda path: path.stem)
def test_shipped_calibrations_can_be_read_and_flag(path):
    calibration = read_calibration(path)
    assert 0 < calibration.threshold < 1
    assert calibration.names
