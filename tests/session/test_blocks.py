"""Tests of monai_ext.session.blocks."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_ext.session.blocks import case_preprocessing, mask_postprocessing
from monai_ext.transforms.request import REQUEST


@pytest.mark.parametrize("requested", [False, True], ids=["run", "viewer"])
@pytest.mark.parametrize("largest", [False, True])
def test_the_largest_piece_of_each_label(tmp_path, largest, requested) -> None:
    """Pieces are of the volume: two that meet in the next slice are one. A viewer gets the mask of a run."""
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((16, 16, 4), np.float32), np.diag([1, 1, 5, 1])),
        tmp_path / "image.nii.gz",
    )
    preprocessing = case_preprocessing(16, intensity="none", slice_axis="S")
    image = preprocessing({"image": str(tmp_path / "image.nii.gz")})["image"]
    logits = torch.full((2, *image.shape[1:]), -1.0)
    for label, rows, column, slices in ((0, 5, 2, (0, 1)), (0, 5, 12, (0,)), (1, 3, 2, (3,)), (1, 2, 12, (3,))):
        logits[label, 2 : 2 + rows, column : column + 3, list(slices)] = 1.0
    if requested:
        image.meta[REQUEST] = {"labels": {"a": 3, "b": 7}, "answer": {}}
    item = {"image": image, "pred": torch.as_tensor(logits)}
    back = mask_postprocessing(preprocessing, {"a": 3, "b": 7}, with_request=True, largest_piece=largest)
    mask = back(item)["pred"]
    assert mask.shape == (image.shape[1:] if requested else (1, *image.shape[1:]))
    counts = {value: int((mask == value).sum()) for value in (3, 7)}
    assert counts == ({3: 30, 7: 9} if largest else {3: 45, 7: 15})
