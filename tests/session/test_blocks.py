"""Tests of monai_ext.session.blocks."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_ext.session.blocks import case_preprocessing, mask_postprocessing


@pytest.mark.parametrize("largest", [False, True])
def test_the_largest_piece_of_each_label(tmp_path, largest) -> None:
    """Pieces are of the volume: two that meet in the next slice are one."""
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((16, 16, 4), np.float32), np.diag([1, 1, 5, 1])),
        tmp_path / "image.nii.gz",
    )
    preprocessing = case_preprocessing(16, intensity="none", slice_axis="S")
    image = preprocessing({"image": str(tmp_path / "image.nii.gz")})["image"]
    logits = torch.full((2, *image.shape[1:]), -1.0)
    for label, rows, column, slices in ((0, 5, 2, (0, 1)), (0, 5, 12, (0,)), (1, 3, 2, (3,)), (1, 2, 12, (3,))):
        logits[label, 2 : 2 + rows, column : column + 3, list(slices)] = 1.0
    item = {"image": image, "pred": torch.as_tensor(logits)}
    mask = mask_postprocessing(preprocessing, {"a": 3, "b": 7}, largest_piece=largest)(item)["pred"]
    counts = {value: int((mask == value).sum()) for value in (3, 7)}
    assert counts == ({3: 30, 7: 9} if largest else {3: 45, 7: 15})
