"""Masks that no prediction may paint over."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.contents import case_contents
from monai_ext.data.kept import with_kept
from monai_ext.errors import UserError


def save(path: Path, shape: tuple[int, ...] = (4, 5, 3), size: float = 1.0) -> str:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), np.diag([size, 1, 1, 1])), path)
    return str(path)


@pytest.fixture
def target(tmp_path) -> dict[str, str]:
    return {"case": "a", "image": save(tmp_path / "image.nii.gz")}


def test_a_mask_is_given_to_the_only_target(target, tmp_path):
    mask = save(tmp_path / "liver.nii.gz")
    (kept,) = with_kept([target], {"liver": mask})
    assert (kept["kept"], kept["kept_mask"]) == (["liver"], [mask])
    before = case_contents(kept)
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 3), np.uint8), np.eye(4)), mask)
    assert case_contents(kept) != before


def test_a_folder_serves_the_cases_it_has(target, tmp_path):
    mask = save(tmp_path / "livers" / "a.nii.gz")
    one, other = with_kept([target, {**target, "case": "b"}], {"liver": tmp_path / "livers"})
    assert one["kept_mask"] == [mask]
    assert other["kept_mask"] == []


def test_nothing_to_keep_changes_nothing(target):
    assert with_kept([target], None) == [target]


@pytest.mark.parametrize(
    ("keep", "count", "sentence"),
    [
        ({"liver": "no.nii.gz"}, 1, "there is no no"),
        ({"liver": "liver.nii.gz"}, 2, "is one mask, but 2 images are segmented"),
        ({"liver": "other_shape.nii.gz"}, 1, "has another grid than the image"),
        ({"liver": "other_size.nii.gz"}, 1, "has another grid than the image"),
        ({"liver": "empty"}, 2, "--keep liver: empty holds no mask of a case of this run, such as a.nii.gz"),
        ({"liver": "part.nii.gz"}, 1, "label values must be whole numbers, found 0.5"),
        ("liver", 1, "give names and masks"),
    ],
)
def test_what_cannot_be_kept_is_refused(keep, count, sentence, target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "liver.nii.gz")
    save(tmp_path / "other_shape.nii.gz", (4, 5, 4))
    save(tmp_path / "other_size.nii.gz", size=1.1)
    save(tmp_path / "empty" / "c.nii.gz")
    nib.save(nib.Nifti1Image(np.full((4, 5, 3), 0.5, np.float32), np.eye(4)), tmp_path / "part.nii.gz")
    with pytest.raises(UserError, match=sentence):
        with_kept([target] * count, keep)
