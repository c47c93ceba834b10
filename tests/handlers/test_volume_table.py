from __future__ import annotations

import csv
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from monai_ext.handlers.volume_table import COLUMNS, VolumeTable

AFFINE = np.diag([2.0, 1.0, 5.0, 1.0])
LABELS = {"lesion": 1, "organ": 2}


def write(path, mask):
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), path)
    return str(path)


def run(tmp_path, cases, preds) -> list[dict[str, str]]:
    def segment(engine, number):
        engine.state.batch = [cases[number]]
        return [{"pred": torch.from_numpy(preds[number])[None]}]

    engine = Engine(segment)
    VolumeTable(tmp_path, LABELS).attach(engine)
    engine.run(range(len(cases)), max_epochs=1)
    with open(tmp_path / "volumes.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def case(tmp_path):
    before = np.zeros((10, 12, 4))
    before[2:4, 2:4, 0:2] = 1
    image = SimpleNamespace(meta={"filename_or_obj": write(tmp_path / "image.nii.gz", before)})
    names = {"case": "a", "patient": "p", "visit": 1.0, "image": image}
    return {**names, "reference_label": [write(tmp_path / "before.nii.gz", before)]}


def test_measures_of_a_mask(tmp_path, case):
    mask = np.zeros((10, 12, 4), dtype=np.int64)
    mask[2:4, 2:6, 1:3] = 1
    mask[8, 10, 3] = 1
    lesion, organ = run(tmp_path, [case], [mask])
    assert tuple(lesion) == COLUMNS
    assert [lesion[key] for key in ("case", "patient", "visit", "label")] == ["a", "p", "1", "lesion"]
    assert float(lesion["volume_ml"]) == pytest.approx(17 * 10 / 1000)
    assert float(lesion["change_percent"]) == pytest.approx(100 * (17 / 8 - 1), abs=0.1)
    assert float(lesion["longest_mm"]) == pytest.approx(np.hypot(4, 4), abs=0.1)
    assert (lesion["parts"], lesion["slices"]) == ("2", "3")
    assert (organ["volume_ml"], organ["change_percent"], organ["parts"], organ["slices"]) == ("0.000", "", "0", "0")


def test_without_a_reference_there_is_no_change(tmp_path, case):
    del case["reference_label"]
    assert run(tmp_path, [case], [np.ones((10, 12, 4), dtype=np.int64)])[0]["change_percent"] == ""


def test_a_change_is_against_the_latest_reference_of_each_case(tmp_path, case):
    later = np.zeros((10, 12, 4))
    later[0, 0, 0] = 1
    other = {**case, "reference_label": [*case["reference_label"], write(tmp_path / "later.nii.gz", later)]}
    mask = np.zeros((10, 12, 4), dtype=np.int64)
    mask[0, 0, :2] = 1
    found = run(tmp_path, [case, other, case], [mask, mask, mask])
    assert [row["change_percent"] for row in found if row["label"] == "lesion"] == ["-75.0", "100.0", "-75.0"]


def test_a_support_of_another_patient_is_no_earlier_visit(tmp_path, case):
    mask = np.ones((10, 12, 4), dtype=np.int64)
    changes = [
        run(tmp_path, [{**case, "reference_patient": patient}], [mask])[0]["change_percent"] for patient in ("p", "q")
    ]
    assert float(changes[0]) == pytest.approx(100 * (480 / 8 - 1), abs=0.1)
    assert changes[1] == ""


def test_slices_are_those_that_the_image_was_cut_into(tmp_path, case):
    mask = np.zeros((10, 12, 4), dtype=np.int64)
    mask[2:5, 3, 1] = 1  # three voxels of 2 mm along the first axis
    found = {}
    for letter in ("S", "R"):
        case["image"].meta["slice_axis"] = letter
        found[letter] = run(tmp_path, [case], [mask])[0]
    assert [found[letter]["slices"] for letter in "SR"] == ["1", "3"]
    assert float(found["S"]["longest_mm"]) > 5 > float(found["R"]["perpendicular_mm"])


def test_a_reference_mask_without_a_unit_is_read_in_that_of_its_image(tmp_path, case):
    before = np.zeros((10, 12, 4))
    before[2:4, 2:4, 0:2] = 1
    volume = nib.Nifti1Image(before.astype(np.uint8), AFFINE)
    volume.header.set_xyzt_units("micron")
    nib.save(volume, tmp_path / "image.nii.gz")
    case["reference_image"] = [str(tmp_path / "image.nii.gz")]
    assert run(tmp_path, [case], [before.astype(np.int64)])[0]["change_percent"] == "0.0"


def test_frames_of_different_sizes_are_not_compared(tmp_path):
    masks = {}
    for name, side in {"before": 12, "same": 12, "larger": 24}.items():
        masks[name] = np.zeros((side, side), dtype=np.int64)
        masks[name][: side // 2, : side // 3] = 1
        Image.fromarray(masks[name].T.astype(np.uint8)).save(tmp_path / f"{name}.png")
    cases = [
        {
            "case": name,
            "patient": "p",
            "image": SimpleNamespace(meta={"filename_or_obj": str(tmp_path / f"{name}.png")}),
            "reference_label": [str(tmp_path / "before.png")],
        }
        for name in ("same", "larger")
    ]
    found = run(tmp_path, cases, [masks["same"], masks["larger"]])
    assert [row["change_percent"] for row in found if row["label"] == "lesion"] == ["0.0", ""]
