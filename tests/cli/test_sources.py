from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.cli.sources import TwoImages, two_images, writing_command
from monai_ext.errors import UserError


@pytest.fixture
def pair(tmp_path: Path) -> TwoImages:
    for name in ("a", "m", "b"):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 2), np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    return TwoImages(*(str(tmp_path / f"{name}.nii.gz") for name in "amb"))


def draw(pair: TwoImages, *values: float) -> None:
    mask = np.zeros((4, 4, 2), np.int16 if all(float(v).is_integer() for v in values) else np.float32)
    mask.ravel()[: len(values)] = values
    nib.save(nib.Nifti1Image(mask, np.eye(4)), pair.mask)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((1,), {"structure": 1}),
        ((255,), {"structure": 255}),
        ((3, 1), {"label_1": 1, "label_3": 3}),
        ((), {"structure": 1}),
    ],
)
def test_a_masks_values_are_its_structures(pair, values, labels):
    draw(pair, *values)
    assert two_images(pair, "MR", [])["labels"] == labels


def test_named_structures_stay_as_they_are_named(pair):
    draw(pair, 1, 3)
    assert two_images(pair, None, ["heart=3", "the rest=1"])["labels"] == {"heart": 3, "the rest": 1}


@pytest.mark.parametrize("values", [(-1, 1), (0.3, 1)])
def test_a_mask_without_structures_is_refused(pair, values):
    draw(pair, *values)
    with pytest.raises(UserError, match=r"m\.nii\.gz"):
        two_images(pair, None, [])


def test_the_shown_command_writes_the_list(pair, tmp_path):
    content = two_images(pair, None, ["o'neill's tumour=1"])
    path = tmp_path / "not yet there" / "datalist.json"
    subprocess.run(["sh", "-c", writing_command(content, path)], check=True)
    assert json.loads(path.read_text()) == content
