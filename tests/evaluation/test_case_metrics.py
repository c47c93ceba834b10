"""The status table, and what every metric of a case is called and worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import HausdorffDistanceMetric

from monai_ext.evaluation.case_metrics import case_rows, voxel_counts
from monai_ext.metrics.dice import dice, dice_slice_mean
from monai_ext.metrics.surface import hd95, nsd

SPACING = (1.0, 2.0, 5.0)
SHAPE = (12, 10, 4)
DIAGONAL = math.sqrt(12**2 + 20**2 + 20**2)


def mask(*values: int) -> np.ndarray:
    """Integer mask with a box of each value, one beside the other."""
    array = np.zeros(SHAPE, dtype=np.int32)
    for value in values:
        array[3 * value : 3 * value + 3, 2:6, 1:3] = value
    return array


def table(reference, prediction, spacing=SPACING, labels=None, **options):
    rows = case_rows(reference, prediction, labels or {"organ": 1}, spacing, **options)
    return {(label, metric): (value, status) for label, metric, value, status in rows}


@pytest.mark.parametrize(
    ("reference", "prediction", "status", "overlap", "distance"),
    [
        (mask(1), mask(1), "ok", 1.0, 0.0),
        (mask(1), mask(2), "pred_empty", 0.0, DIAGONAL),
        (mask(2), mask(1), "ref_empty", 0.0, DIAGONAL),
        (mask(2), mask(2), "both_empty", None, None),
        (mask(1), None, "missing", 0.0, DIAGONAL),
        (mask(2), None, "missing", 0.0, DIAGONAL),
    ],
)
def test_status_table(reference, prediction, status, overlap, distance):
    rows = table(reference, prediction)
    assert {found for _, found in rows.values()} == {status}
    assert [rows["organ", name][0] for name in ("dice", "dice_slice_mean", "nsd_2mm")] == [overlap] * 3
    assert rows["organ", "hd95_mm"][0] == (None if distance is None else pytest.approx(distance))


def test_a_failed_case_says_so():
    assert table(mask(1), None, absent="failed")["organ", "dice"] == (0.0, "failed")


def test_a_missed_structure_beside_a_perfect_one_is_no_perfect_score():
    rows = [table(mask(1), mask(1)), table(mask(1), mask())]
    ours = np.mean([row["organ", "hd95_mm"][0] for row in rows])
    assert ours == pytest.approx(DIAGONAL / 2)

    metric = HausdorffDistanceMetric(percentile=95, include_background=True)
    for predicted in (mask(1), mask()):
        metric(torch.tensor(predicted == 1)[None, None], torch.tensor(mask(1) == 1)[None, None])
    assert metric.aggregate().item() == 0.0  # MONAI's mean, for comparison


def test_values_are_those_of_the_metrics():
    rng = np.random.default_rng(0)
    reference, prediction = rng.integers(0, 3, (2, *SHAPE))
    rows = table(reference, prediction, labels={"a": 1, "b": 2}, nsd_tolerance_mm=1.5)
    for name, value in (("a", 1), ("b", 2)):
        pair = reference == value, prediction == value
        assert rows[name, "dice"][0] == pytest.approx(dice(*pair))
        assert rows[name, "dice_slice_mean"][0] == pytest.approx(dice_slice_mean(*pair, 2))
        assert rows[name, "hd95_mm"][0] == pytest.approx(hd95(*pair, SPACING))
        assert rows[name, "nsd_1.5mm"][0] == pytest.approx(nsd(*pair, SPACING, 1.5))
        assert rows[name, "volume_ml"][0] == pytest.approx(pair[1].sum() * 10 / 1000)
        assert rows[name, "volume_error_ml"][0] == pytest.approx(
            (float(pair[1].sum()) - float(pair[0].sum())) * 10 / 1000
        )


def test_a_missing_prediction_has_no_volume():
    rows = table(mask(1), None)
    assert rows["organ", "volume_ml"][0] == 0.0
    assert rows["organ", "volume_error_ml"][0] == pytest.approx(-3 * 4 * 2 * 10 / 1000)
    assert rows["organ", "relative_volume_error"] == (-1.0, "missing")


def test_a_relative_error_needs_a_reference():
    """Whether there is a row depends on the reference alone, so tables of two methods have the same."""
    half = mask(1)
    half[..., 1] = 0
    assert table(mask(1), half)["organ", "relative_volume_error"] == (-0.5, "ok")
    for prediction in (mask(1), mask(), None):
        assert ("organ", "relative_volume_error") not in table(mask(2), prediction)


def test_voxels_are_counted_as_in_a_loop():
    rng = np.random.default_rng(0)
    reference, prediction = rng.integers(0, 4, (2, 5, 4, 3))
    for ignore in (None, 3):
        found = voxel_counts(reference, prediction, {"a": 1, "b": 2}, ignore=ignore)
        for label, value in (("a", 1), ("b", 2)):
            pairs = [
                (bool(r == value), bool(p == value))
                for r, p in zip(reference.flat, prediction.flat, strict=True)
                if r != ignore
            ]
            of_label = found[label]
            expected = [pairs.count(pair) for pair in ((True, True), (False, True), (True, False), (False, False))]
            assert [of_label.tp, of_label.fp, of_label.fn, of_label.tn] == expected


def test_voxels_of_nothing_are_all_true_negatives():
    counts = voxel_counts(mask(), None, {"organ": 1})["organ"]
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (0, 0, 0, 12 * 10 * 4)


def test_frames_are_measured_in_pixels():
    reference, prediction = mask(1)[..., 1], mask(1)[..., 1] * 0
    rows = table(reference, prediction, spacing=None)
    assert list(rows) == [("organ", "dice"), ("organ", "dice_slice_mean"), ("organ", "hd95_px")]
    assert rows["organ", "hd95_px"][0] == pytest.approx(math.hypot(12, 10))


def test_ignored_voxels_count_for_neither_mask():
    reference, prediction = mask(1), mask(1)
    reference[3:6, 2:6, 2] = 255
    rows = table(reference, prediction, ignore=255)
    assert rows["organ", "dice"] == (1.0, "ok")
    assert rows["organ", "volume_error_ml"][0] == 0.0
    assert table(reference, prediction)["organ", "dice"][0] == pytest.approx(2 / 3)


def test_channels_may_overlap():
    reference = mask(1, 2)
    channels = np.stack([reference > 0, reference == 2])
    rows = table(reference, channels, labels={"a": 1, "b": 2})
    assert rows["a", "dice"][0] == pytest.approx(2 / 3)
    assert rows["b", "dice"][0] == 1.0


def test_slices_are_counted_along_the_given_axis():
    rng = np.random.default_rng(1)
    reference, prediction = rng.integers(0, 2, (2, *SHAPE))
    row = table(reference, prediction, slice_axis=0)["organ", "dice_slice_mean"]
    assert row[0] == pytest.approx(dice_slice_mean(reference == 1, prediction == 1, 0))


def test_masks_of_different_grids_are_refused():
    with pytest.raises(ValueError, match="shape"):
        case_rows(mask(1), mask(1)[:-1], {"organ": 1}, SPACING)
