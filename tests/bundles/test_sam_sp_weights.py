"""The segmentor that is shipped: what it is, and what it does on real hearts it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from monai_ext.data.provenance import read_record
from monai_ext.evaluation.table import read_rows
from monai_ext.files import sha256_of
from monai_ext.networks.dual_branch_unet import build_segmentor

BUNDLE = Path(__file__).parents[2] / "bundles" / "sam_sp"
WEIGHTS = BUNDLE / "models" / "model.pt"


def test_weights_are_small_plain_and_recorded() -> None:
    assert WEIGHTS.stat().st_size < 25e6
    state = torch.load(WEIGHTS, weights_only=True)
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    record = read_record(WEIGHTS)
    assert record is not None
    assert (record.name, record.variant, record.licence) == ("model", "sam_sp", "CC BY-NC-SA 4.0")
    assert record.sha256 == sha256_of(WEIGHTS)
    build_segmentor(4, "sam_sp", WEIGHTS)


def test_it_learned_from_scribbles_of_the_heart_and_its_sam_saw_none() -> None:
    record = read_record(WEIGHTS)
    assert record is not None
    saw = {(data.dataset, data.labels) for data in record.datasets}
    assert ("ACDC", "scribble") in saw
    assert ("ACDC", "dense") not in saw


def test_test_patients_are_in_no_training(real_data) -> None:
    cases = json.loads((real_data / "ACDC.json").read_text())["cases"]
    record = read_record(WEIGHTS)
    assert record is not None
    seen = {patient for data in record.datasets if data.dataset == "ACDC" for patient in data.patients}
    assert seen == {case["patient"] for case in cases if case["split"] == "train"}


def test_real_hearts_are_segmented(real_data, tmp_path) -> None:
    datalist = json.loads((real_data / "ACDC.json").read_text())
    datalist["cases"] = [case for case in datalist["cases"] if case["patient"] in ("patient007", "patient047")]
    (tmp_path / "two.json").write_text(json.dumps(datalist))
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("inference", "evaluate", "acdc_test")]
    options = {"bundle_root": str(BUNDLE), "device": "cpu", "output_dir": str(tmp_path / "out")}
    options |= {"datalist": str(tmp_path / "two.json"), "data_root": str(real_data)}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="infer", **options)
    workflow.initialize()
    workflow.run()
    rows = [row for row in read_rows(tmp_path / "out" / "metrics.csv") if row.metric == "dice"]
    assert len(rows) == 4 * 3
    found = {label: np.mean([row.value for row in rows if row.label == label]) for label in ("RV", "MYO", "LV")}
    assert min(found.values()) > 0.65, found
