"""Tests of monai_ext.session.prompts."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.images import read_label
from monai_ext.data.manifest import load_datalist
from monai_ext.session.prompts import pair_references


@pytest.mark.parametrize(("slice_axis", "axis"), [(None, 2), ("S", 2), ("A", 1), ("R", 0)])
def test_slices_of_a_support_are_numbered_along_the_axis_of_the_run(tmp_path, slice_axis, axis) -> None:
    label = np.zeros((8, 6, 5), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    cases = []
    for name in "ab":
        for what, array in (("image", label * 20.0), ("label", label)):
            path = tmp_path / f"{name}_{what}.nii.gz"
            nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([-2.0, -2.0, 6.0, 1.0])), path)
        cases.append({"case": name, "patient": name, "image": f"{name}_image.nii.gz", "label": f"{name}_label.nii.gz"})
    path = tmp_path / "toy.json"
    path.write_text(json.dumps({"dataset": "Toy", "modality": "MR", "labels": {"liver": 1}, "cases": cases}))
    (pair,) = pair_references(
        load_datalist(path), path, None, None, "a:2", "liver", tmp_path, tmp_path / "none.pt", slice_axis=slice_axis
    )
    shown = read_label(pair["reference_label"][0]).any(axis=tuple({0, 1, 2} - {axis}))
    assert np.flatnonzero(shown).tolist() == [2]
