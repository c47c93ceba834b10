"""P²SAM and what it is compared with, served by a support of another patient (few_shot.yaml)."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.errors import UserError, find_user_error

FAST = {"n_pos": [1, 1], "n_neg": [1, 1], "labels": ["disc"]}


@pytest.fixture
def patients(tmp_path, write_list) -> str:
    """Three patients with a disc on slices 1 and 2 of four, one visit each."""
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:24, :20]
    cases = []
    for number, name in enumerate("abc"):
        label = np.repeat((np.hypot(x - 9 - number, y - 9) < 5)[..., None], 4, axis=-1).astype(np.uint8)
        label[..., [0, 3]] = 0
        image = 100.0 * label + 20 * rng.normal(size=label.shape)
        for file, array in ((f"{name}.nii.gz", image.astype(np.float32)), (f"{name}_label.nii.gz", label)):
            nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2.0, 6.0, 1.0])), tmp_path / file)
        cases.append({"case": name, "patient": name, "image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"})
    return write_list({"dataset": "small", "modality": "MR", "labels": {"disc": 1, "ring": 2}, "cases": cases})


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", [None, "persam", "matcher", "panet", "finetune_prior"])
def test_one_slice_of_another_patient_serves_all(run_bundle, patients, tmp_path, method) -> None:
    configs = ["inference", "few_shot", *([method] if method else []), "evaluate"]
    fewer: dict[str, Any] = {"finetune_prior": {"steps": 1}, "matcher": {"matcher_centres": 4}}.get(str(method), {})
    run_bundle("p2sam", *configs, datalist=patients, support="a:2", output_dir=str(tmp_path / "out"), **FAST, **fewer)
    rows = table(tmp_path / "out" / "metrics.csv")
    assert {row["algorithm"] for row in rows} == {method or "p2sam"}
    assert {(row["case"], row["reference"], row["label"]) for row in rows} == {(n, "a:2", "disc") for n in "bc"}
    served = {row["reference_slice"] for row in table(tmp_path / "out" / "prompts.csv")}
    assert len(served) == 1


def sentence(run_bundle, **options: Any) -> str:
    with pytest.raises(Exception) as error:  # noqa: PT011 - MONAI wraps it in what it likes
        run_bundle("p2sam", "inference", "few_shot", **FAST, **options)
    mistake = find_user_error(error.value)
    assert isinstance(mistake, UserError), error.value
    return str(mistake)


def test_mistakes(run_bundle, patients, tmp_path, tiny_weights) -> None:
    given = {"datalist": patients, "output_dir": str(tmp_path / "out")}
    assert "no support is named: give --support" in sentence(run_bundle, **given)
    assert "slice 0 of" in sentence(run_bundle, support="a:0", **given)
    known = tmp_path / "known.pt"
    shutil.copyfile(tiny_weights, known)
    seen = TrainingData(dataset="small", patients=["d"], labels="dense", licence="none")
    fields = {"variant": "compact", "command": "none", "licence": "none", "sha256": ""}
    write_record(known, WeightRecord(name="known", datasets=[seen], **fields))
    said = sentence(run_bundle, support="a", **{**given, "checkpoint": str(known)})
    assert "were trained on dense labels of small" in said
    assert not list((tmp_path / "out").rglob("*.png"))
