"""The weights that are shipped: what they are, and what they do on a phantom and on real follow-ups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_ext.data.images import read_label
from monai_ext.data.provenance import read_record
from monai_ext.evaluation.table import read_rows
from monai_ext.files import sha256_of
from monai_ext.metrics.dice import dice
from monai_ext.networks.sam import build_sam

BUNDLE = Path(__file__).parents[2] / "bundles" / "p2sam"
WEIGHTS = {
    "compact_acdc": ("compact", "CC BY-NC-SA 4.0"),
    "compact_chaos": ("compact", "CC BY-NC-SA 4.0"),
    "compact_open": ("compact_lite", "CC BY 3.0"),
}


def run(output_dir: Path, *configs: str, **options: Any) -> Path:
    """Run the bundle with its own weights; return the output folder."""
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in configs]
    options = {"bundle_root": str(BUNDLE), "device": "cpu", "output_dir": str(output_dir), **options}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="infer", **options)
    workflow.initialize()
    workflow.run()
    return output_dir


def mean_dice(output_dir: Path) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in read_rows(output_dir / "metrics.csv"):
        if row.metric == "dice":
            assert row.value is not None
            values.setdefault(row.label, []).append(row.value)
    return {label: float(np.mean(v)) for label, v in values.items()}


def part_of(source: Path, patients: tuple[str, ...], target: Path) -> str:
    """Write a data list with some of the patients of another, with absolute paths."""
    datalist = json.loads(source.read_text())
    datalist["cases"] = [c for c in datalist["cases"] if c["patient"] in patients]
    for case in datalist["cases"]:
        for key in {"image", "label", "scribble"} & set(case):
            case[key] = str(source.parent / case[key])
    target.write_text(json.dumps(datalist))
    return str(target)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_small_plain_and_recorded(name):
    path = BUNDLE / "models" / f"{name}.pt"
    assert path.stat().st_size < 25e6
    state = torch.load(path, weights_only=True)
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
    record = read_record(path)
    assert record is not None
    variant, licence = WEIGHTS[name]
    assert (record.name, record.variant, record.licence) == (name, variant, licence)
    assert record.sha256 == sha256_of(path)
    build_sam(variant, path)


def test_each_data_set_has_weights_that_never_saw_it():
    seen = {}
    for name in WEIGHTS:
        record = read_record(BUNDLE / "models" / f"{name}.pt")
        assert record is not None
        seen[name] = {data.dataset for data in record.datasets}
    assert seen == {
        "compact_acdc": {"ACDC", "phantom slices"},
        "compact_chaos": {"CHAOS_T2", "phantom slices"},
        "compact_open": {"STS", "phantom slices", "ImageNet-1k"},
    }


def test_test_patients_are_in_no_training(real_data):
    cases = json.loads((real_data / "ACDC.json").read_text())["cases"]
    test = {c["patient"] for c in cases if c["split"] == "test"} | {f"patient{n:03}" for n in (6, 26, 46, 66, 86)}
    tumours = json.loads((real_data / "STS.json").read_text())["cases"]
    test |= {c["patient"] for c in tumours if c["split"] == "test"} | {"STS_046", "STS_049", "STS_002", "STS_003"}
    for name in ("compact_acdc", "compact_open"):
        record = read_record(BUNDLE / "models" / f"{name}.pt")
        assert record is not None
        assert record.datasets[0].patients
        assert not test & set(record.datasets[0].patients)


def test_model_pt_is_the_default_weights():
    assert (BUNDLE / "models" / "model.pt").read_bytes() == (BUNDLE / "models" / "compact_open.pt").read_bytes()


def test_phantom_patient_is_followed(tmp_path):
    found = mean_dice(run(tmp_path, "inference", "evaluate"))
    copied = mean_dice(run(tmp_path / "copy", "inference", "evaluate", "copy_reference"))
    assert found["lesion"] > max(0.6, copied["lesion"])
    assert found["kidney"] > max(0.8, copied["kidney"])


def test_real_hearts_are_followed(real_data, tmp_path):
    datalist = part_of(real_data / "ACDC.json", ("patient007", "patient047"), tmp_path / "two.json")
    found = mean_dice(run(tmp_path / "out", "inference", "evaluate", "acdc", datalist=datalist))
    assert np.mean(list(found.values())) > 0.65
    again = run(tmp_path / "again", "inference", "acdc", datalist=datalist)
    for path in (tmp_path / "out" / "masks").iterdir():
        assert np.array_equal(read_label(path), read_label(again / "masks" / path.name))


def test_real_frames_run(real_data, tmp_path):
    source = json.loads((real_data / "CVC_ClinicDB.json").read_text())
    source["cases"] = [c for c in source["cases"] if c["visit"] in (3, 4, 16)]
    (tmp_path / "frames.json").write_text(json.dumps(source))
    options = {"datalist": str(tmp_path / "frames.json"), "data_root": str(real_data)}
    out = run(tmp_path / "out", "inference", "evaluate", "cvc_clinicdb", **options)
    masks = sorted((out / "masks").iterdir())
    assert [m.name for m in masks] == ["CVC_ClinicDB_frame004.png", "CVC_ClinicDB_frame016.png"]
    for path in masks:
        mask = read_label(path)
        assert mask.shape == (384, 288)
        assert set(np.unique(mask)) <= {0, 255}
    copied = run(tmp_path / "copy", "inference", "copy_reference", "cvc_clinicdb", **options)
    reference = read_label(real_data / "CVC_ClinicDB" / "frame003_label.png") > 0
    assert dice(reference, read_label(copied / "masks" / masks[0].name) > 0) > 0.99
