from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.images import read_geometry, read_label


@pytest.fixture
def tree(tmp_path: Path, shapes: Any) -> Path:
    """One subject each of CycleMix's train (scribble), val and TestSet (dense labels)."""
    root = tmp_path / "MSCMR_dataset"
    for folder, number, ending in (("train", 2, "scribble"), ("val", 29, "manual"), ("TestSet", 43, "manual")):
        shapes.save_volume(root / folder / "images" / f"subject{number}_DE.nii.gz")
        drawn = (
            shapes.rings((1, 2, 3)) if ending == "manual" else np.where(shapes.rings((3,)) == 3, 3, 4).astype(np.int16)
        )
        shapes.save_volume(root / folder / "labels" / f"subject{number}_DE_{ending}.nii.gz", drawn)
    return root


def test_scribbles_train_and_dense_labels_test(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, report = indexed("mscmr", tree)
    assert [(case.case, case.split) for case in datalist.cases] == [
        ("subject02_DE", "train"),
        ("subject29_DE", "val"),
        ("subject43_DE", "test"),
    ]
    train, val, _ = datalist.cases
    assert (train.label, val.scribble, datalist.ignore) == (None, None, 4)
    assert np.array_equal(read_label(val.label), shapes.rings((1, 2, 3)))
    assert "with a label map: 2, with scribbles: 1" in report


def test_scribbles_are_found_in_their_own_folder(tree: Path, indexed: Callable[..., Any]) -> None:
    scribble = tree / "train" / "labels" / "subject2_DE_scribble.nii.gz"
    (tree.parent / "MSCMR_scribbles").mkdir()
    scribble.rename(tree.parent / "MSCMR_scribbles" / scribble.name)
    assert indexed("mscmr", tree.parent)[0].cases[0].scribble.endswith("MSCMR_scribbles/subject2_DE_scribble.nii.gz")


@pytest.fixture
def tree_of_43(tree: Path, shapes: Any) -> Path:
    """Subject 43's label has the voxels of its image, but another affine."""
    path = tree / "TestSet" / "labels" / "subject43_DE_manual.nii.gz"
    shapes.save_volume(path, shapes.rings((1, 2, 3)), np.eye(4))
    return tree


def test_a_label_of_another_affine_is_skipped(tree_of_43: Path, indexed: Callable[..., Any]) -> None:
    datalist, report = indexed("mscmr", tree_of_43)
    assert [case.patient for case in datalist.cases] == ["subject02", "subject29"]
    assert "or, where the voxels line up, add --copy_geometry" in report


def test_copy_geometry_believes_the_voxels(tree_of_43: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, report = indexed("mscmr", tree_of_43, copy_geometry=True)
    label = datalist.cases[2].label
    assert np.array_equal(read_label(label), shapes.rings((1, 2, 3)))
    assert np.allclose(read_geometry(label).affine, shapes.oblique(), atol=1e-4)
    assert "1 label maps were rewritten" in report


def test_a_label_without_an_image_is_reported(tree: Path, indexed: Callable[..., Any]) -> None:
    (tree / "val" / "images" / "subject29_DE.nii.gz").unlink()
    assert "subject29: has a label or a scribble, but no image" in indexed("mscmr", tree)[1]
