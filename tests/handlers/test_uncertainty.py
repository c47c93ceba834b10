"""The uncertainty lies where it belongs: on the grid of the image's file, whichever way the image is turned."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import Dataset
from PIL import Image

from monai_ext.data.case_details import CaseDetails
from monai_ext.engines.case_evaluator import CaseEvaluator
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.uncertainty import LARGEST_VARIANCE, VARIANCE, UncertaintyWriter
from monai_ext.inferers.case_inferer import CaseInferer
from monai_ext.session.blocks import case_preprocessing

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, 0.2, -0.1) @ np.array([[0, 0, 4.0], [-1, 0, 0], [0, 1, 0]]), [3, 4, 5]
)
LPI = np.array([[1.0, 0, 0, 0], [0, -2, 0, 9], [0, 0, -6, 0], [0, 0, 0, 1]])


class GreyIsDoubt(CaseInferer):
    """An inferer whose two structures are unsure where the image is bright: half as much as that, and as much."""

    silent = False

    def segment_case(self, inputs, network, *args, **entries):
        grey = inputs[0].as_tensor().mean(dim=0) / 255
        maps = {} if self.silent else {VARIANCE: torch.stack([grey / 2, grey]) * LARGEST_VARIANCE}
        rows = [{"label": "x", "slice": 1, "status": "ok", "agreement": 0.25, "sigma": None}]
        return inputs.new_zeros(1, 2, *inputs.shape[2:]), CaseDetails(rows, maps)


@pytest.fixture
def write(tmp_path):
    def run(item, silent=False):
        inferer, preprocessing = GreyIsDoubt(), case_preprocessing(64, intensity={"window": [0, 255]})
        inferer.silent = silent
        finished = FinishedCases(tmp_path / "out", [item], {}, seed=0)
        writer = UncertaintyWriter(tmp_path / "out", preprocessing, finished)
        network = torch.nn.Identity()
        evaluator = CaseEvaluator(
            torch.device("cpu"), Dataset([item], preprocessing), network, inferer, handlers=[writer, finished]
        )
        evaluator.run()
        return tmp_path / "out"

    return run


def bright(shape) -> np.ndarray:
    """Grey values of an asymmetric block and a brighter, smaller one."""
    grey = np.zeros(shape, np.float32)
    grey[3:16, 4:9] = 102
    grey[8:20, 11:15] = 204
    return grey


@pytest.mark.parametrize("affine", [OBLIQUE, LPI], ids=["oblique", "LPI"])
def test_a_volume_s_map_lies_on_its_image(write, tmp_path, affine):
    grey = bright((24, 20, 3))
    grey[..., 0] = 0
    nib.save(nib.Nifti1Image(grey, affine), tmp_path / "image.nii.gz")
    out = write({"case": "a", "image": str(tmp_path / "image.nii.gz")})
    found = nib.load(out / "uncertainty" / "a.nii.gz")
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    error = np.abs(found.get_fdata() - grey / 255)
    assert error.shape == grey.shape
    assert np.median(error[grey > 0]) < 0.02
    assert error.mean() < 0.04
    inside = np.zeros(grey.shape, bool)
    inside[6:13, 5:8, 1:], inside[11:17, 12:14, 1:] = True, True
    assert error[inside].max() < 0.08
    assert found.get_fdata()[..., 0].max() < 1e-6


def test_a_frame_s_map_is_grey_and_as_large(write, tmp_path):
    grey = bright((24, 20))
    Image.fromarray(grey.T.astype(np.uint8)).save(tmp_path / "frame.png")
    out = write({"case": "f", "image": str(tmp_path / "frame.png")})
    with Image.open(out / "uncertainty" / "f.png") as image:
        values = np.asarray(image).T / 65535
    assert values.shape == grey.shape
    assert abs(values[9, 6] - 0.4) < 0.05
    assert abs(values[14, 13] - 0.8) < 0.05
    assert values[1, 1] < 0.02


def test_rows_are_written_and_what_is_not_known_is_empty(write, tmp_path):
    nib.save(nib.Nifti1Image(bright((24, 20, 3)), LPI), tmp_path / "image.nii.gz")
    out = write({"case": "a", "image": str(tmp_path / "image.nii.gz")}, silent=True)
    with open(out / "uncertainty.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {
        **dict.fromkeys(row, ""),
        "case": "a",
        "label": "x",
        "slice": "1",
        "status": "ok",
        "agreement": "0.25",
    }
    assert not (out / "uncertainty").exists(), "no map was made"


def test_an_engine_that_does_not_decollate_is_refused(tmp_path):
    writer = UncertaintyWriter(tmp_path, case_preprocessing(64), None)
    with pytest.raises(ValueError, match="decollate=True"):
        writer._write_map(SimpleNamespace(state=SimpleNamespace(batch={}, output={})))
