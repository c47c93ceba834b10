from __future__ import annotations

import json

import numpy as np
import pytest

from monai_ext.evaluation.case_metrics import voxel_counts
from monai_ext.evaluation.formats import CaseDetail
from monai_ext.evaluation.outputs import write_outputs
from monai_ext.evaluation.pooled_iou import METRIC, pooled_iou

SHAPE = (6, 5)
LABELS = {"object": 1}
PATIENTS = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}  # c has neither reference nor prediction


@pytest.fixture
def masks() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    drawn = {
        case: (rng.random(SHAPE) < p, rng.random(SHAPE) < 0.5) for case, p in (("a1", 0.8), ("a2", 0.1), ("b1", 0.5))
    }
    return drawn | {"c1": (np.zeros(SHAPE, bool), np.zeros(SHAPE, bool))}


@pytest.fixture
def evaluation(make_row, masks):
    rows = [make_row(case, "object", 0.5, patient=patient) for case, patient in PATIENTS.items()]
    details = {
        (case, "0"): CaseDetail(counts=voxel_counts(*(m.astype(np.int16) for m in pair), LABELS))
        for case, pair in masks.items()
    }
    return rows, details


def slow(masks, cases: list[str]) -> float:
    """Sum of I / sum of U, pixel by pixel."""
    common = union = 0
    for case in cases:
        for one, other in zip(*(m.ravel() for m in masks[case]), strict=True):
            common += int(one and other)
            union += int(one or other)
    return common / union


def test_intersections_and_unions_are_summed_before_they_are_divided(evaluation, masks):
    found = pooled_iou(*evaluation)["labels"]["object"]
    expected = {"a": slow(masks, ["a1", "a2"]), "b": slow(masks, ["b1"])}
    assert found["patients"] == {**{k: pytest.approx(v) for k, v in expected.items()}, "c": None}
    assert found["n"] == 2
    assert found["mean"] == pytest.approx((expected["a"] + expected["b"]) / 2)
    assert expected["a"] != pytest.approx((slow(masks, ["a1"]) + slow(masks, ["a2"])) / 2, abs=0.01)


def test_runs_are_pooled_apart(make_row, masks, evaluation):
    rows, details = evaluation
    rows = rows + [make_row("a1", "object", 0.5, patient="a", run="1")]
    found = pooled_iou(rows, {**details, ("a1", "1"): details["a1", "0"]})["labels"]["object"]["patients"]
    assert found["a (run 0)"] == pytest.approx(slow(masks, ["a1", "a2"]))
    assert found["a (run 1)"] == pytest.approx(slow(masks, ["a1"]))


def test_without_counts_there_is_nothing_to_pool(evaluation):
    with pytest.raises(ValueError, match="a1 has no voxel counts"):
        pooled_iou(evaluation[0], {})


def test_it_is_in_the_summary_on_request_alone(evaluation, tmp_path):
    rows, details = evaluation
    plain = write_outputs(rows, tmp_path / "plain", details=details)
    write_outputs(rows, tmp_path / "pooled", details=details, with_pooled_iou=True)
    pooled = json.loads((tmp_path / "pooled" / "summary.json").read_text())
    assert pooled.pop(METRIC) == pooled_iou(rows, details)
    assert pooled == plain
    metrics = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("plain", "pooled")]
    assert metrics[0] == metrics[1]
