"""Tests of monai_ext.data.drawn_supports."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ext.data.drawn_supports import draw_support
from monai_ext.data.images import read_label
from monai_ext.data.manifest import Case, DataList
from monai_ext.data.supports import pair_with_support
from monai_ext.errors import UserError


@pytest.fixture
def datalist(tmp_path) -> DataList:
    """Two patients without labels; slices are 300 pixels long and lie along the third axis."""
    for name in "ab":
        nib.save(nib.Nifti1Image(np.zeros((300, 8, 5), np.float32), np.diag([1, 1, 6, 1])), tmp_path / f"{name}.nii.gz")
    cases = [Case(case=name, patient=name, image=str(tmp_path / f"{name}.nii.gz")) for name in "ab"]
    return DataList(dataset="Toy", modality="MR", labels={"liver": 1, "spleen": 4}, cases=cases)


def drawn(datalist: DataList, folder: Path, support: str = "a", organ: str = "spleen", **options) -> np.ndarray:
    return read_label(str(draw_support(datalist, support, organ, folder, **options).cases[0].label))


def test_dots_are_as_wide_as_a_pixel_of_the_input_frame(datalist, tmp_path):
    mask = drawn(datalist, tmp_path, points=[[10, 3, 2], [299, 0.4, 4]])
    assert mask.max() == 4
    assert (mask > 0).sum() == 9 + 4  # 3 x 3 voxels of one slice; at the corner fewer
    assert (mask[9:12, 2:5, 2] == 4).all()
    assert (mask[298:, :2, 4] == 4).all()


def test_a_box_is_filled_whatever_its_corners(datalist, tmp_path):
    mask = drawn(datalist, tmp_path, box=[[20, 6, 3], [10, 2, 1]])
    assert np.argwhere(mask).min(axis=0).tolist() == [10, 2, 1]
    assert np.argwhere(mask).max(axis=0).tolist() == [20, 6, 3]
    assert (mask > 0).sum() == 11 * 5 * 3


def test_it_serves_like_any_support(datalist, tmp_path):
    whole = draw_support(datalist, "a:2", "spleen", tmp_path, points=[[10, 3, 2], [10, 3, 4]])
    (pair,) = pair_with_support(datalist, "a:2", "spleen", tmp_path, whole)
    assert pair["case"] == "b"
    assert np.unique(np.nonzero(read_label(pair["reference_label"][0]))[2]).tolist() == [2]


def test_points_of_a_picture_are_x_and_y(tmp_path):
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(tmp_path / "p.png")
    cases = [Case(case="p", image=str(tmp_path / "p.png"))]
    pictures = DataList(dataset="Pictures", labels={"polyp": 1}, cases=cases)
    assert np.argwhere(drawn(pictures, tmp_path, "p", "polyp", points=[[8, 5]])).tolist() == [[8, 5]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give one of them"),
        ({"points": [[1, 1, 1]], "box": [[1, 1, 1], [2, 2, 1]]}, "give one of them"),
        ({"points": []}, "give a list of points"),
        ({"points": [[1, 1]]}, r"\[i, j, k\] of a volume"),
        ({"points": "here"}, "give a list of points"),
        ({"box": [[1, 1, 1]]}, "give two corners"),
        ({"points": [[300, 1, 1]]}, r"\[300, 1, 1\] lies outside .*a.nii.gz of 300 x 8 x 5 voxels"),
        ({"points": [[1, -1, 1]]}, "lies outside"),
        ({"points": [[1, 1, 1]], "support": "z"}, "no such case"),
        ({"points": [[1, 1, 1]], "organ": "heart"}, "class 'heart' is unknown"),
    ],
)
def test_mistakes(datalist, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        drawn(datalist, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
