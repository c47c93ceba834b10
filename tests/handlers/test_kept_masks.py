from __future__ import annotations

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_ext.handlers.kept_masks import KeptMasks

LABELS = {"liver": 2, "tumour": 5}


@pytest.fixture
def case(tmp_path):
    """A case whose liver, the first row, and whose unnamed organ, the first column, are to be kept."""
    files = []
    for name, place in (("liver", np.s_[0]), ("organ", np.s_[:, 0])):
        mask = np.zeros((3, 3, 1), np.uint8)
        mask[place] = 1
        files.append(str(tmp_path / f"{name}.nii.gz"))
        nib.save(nib.Nifti1Image(mask, np.eye(4)), files[-1])
    return {"case": "a", "kept": [["liver"], ["organ"]], "kept_mask": [[file] for file in files]}


def run(case, pred: torch.Tensor) -> np.ndarray:
    output = {"pred": pred}
    KeptMasks(LABELS)(SimpleNamespace(state=SimpleNamespace(batch=[case], output=[output])))
    return output["pred"].numpy()[..., 0]


def test_a_kept_structure_is_inside_of_its_mask_and_no_other(case):
    found = run(case, torch.full((1, 3, 3, 1), 5))
    assert found.tolist() == [[[2, 2, 2], [0, 5, 5], [0, 5, 5]]]


def test_masks_that_may_overlap_keep_it_too(case):
    liver, tumour = run(case, torch.ones(2, 3, 3, 1, dtype=torch.uint8))
    assert liver.tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1]]
    assert tumour.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_a_case_without_a_mask_stays(case):
    pred = torch.full((1, 3, 3, 1), 5)
    assert (run({"case": "a"}, pred) == 5).all()
