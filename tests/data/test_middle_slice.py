"""Tests of monai_ext.data.middle_slice."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.manifest import load_datalist
from monai_ext.data.middle_slice import main, middle_slice
from monai_ext.errors import UserError

AFFINE = nib.affines.from_matvec([[0, 0, 5.0], [1.5, 0, 0], [0, 1.5, 0]], [10, 20, 30])  # slices along the third axis


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    label = np.zeros((6, 5, 9), np.uint8)
    label[2:4, 2, [1, 2, 5, 6, 7]] = 3
    nib.save(nib.Nifti1Image(rng.integers(0, 99, label.shape).astype(np.int16), AFFINE), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(label, AFFINE), tmp_path / "a_label.nii.gz")
    nib.save(nib.Nifti1Image(0 * label, AFFINE), tmp_path / "empty.nii.gz")
    cases = [
        {"case": "a", "patient": "p", "image": "a.nii.gz", "label": "a_label.nii.gz", "split": "test"},
        {"case": "b", "patient": "q", "image": "a.nii.gz", "split": "test"},
    ]
    content = {"dataset": "D", "modality": "CT", "labels": {"tumour": 3}, "cases": cases}
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path


def test_the_middle_of_the_slices_that_hold_a_structure(folder) -> None:
    assert middle_slice(folder / "a.nii.gz", folder / "a_label.nii.gz") == (2, 5)


def test_the_slice_lies_where_it_did_and_serves_the_volume(folder, capsys) -> None:
    main([str(folder / "list.json"), "-o", str(folder / "out"), "--split", "test"])
    assert capsys.readouterr().out.strip() == str(folder / "out" / "D.json")
    (case,) = load_datalist(folder / "out" / "D.json").cases
    assert (case.case, case.patient, case.image) == ("a", "p", str(folder / "a.nii.gz"))
    for key, name in (("reference_image", "a.nii.gz"), ("reference_label", "a_label.nii.gz")):
        (file,) = getattr(case, key)
        cut, whole = nib.load(file), nib.load(folder / name)
        np.testing.assert_array_equal(cut.get_fdata(), whole.get_fdata()[..., 5:6])
        np.testing.assert_allclose(cut.affine @ [0, 0, 0, 1], AFFINE @ [0, 0, 5, 1])


def test_labels_without_a_structure_and_pictures_are_refused(folder) -> None:
    with pytest.raises(UserError, match=r"empty\.nii\.gz: no voxel has a label"):
        middle_slice(folder / "a.nii.gz", folder / "empty.nii.gz")
    with pytest.raises(UserError, match=r"frame\.png: a picture has no middle slice"):
        middle_slice(folder / "frame.png", folder / "empty.nii.gz")
