"""Masks of one structure each are joined into the label map of their image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.images import read_label
from monai_ext.data.indexing.parts import structure_called
from monai_ext.errors import UserError

LABELS = {"liver": 1, "left kidney": 2}


@pytest.fixture
def masks(shapes: Any) -> dict[str, np.ndarray]:
    """A mask of each structure, of ones, which do not overlap."""
    rings = shapes.rings((1, 2))
    return {"liver": (rings == 1).astype(np.uint8), "left_kidney": (rings == 2).astype(np.uint8)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("liver", ("", "liver")),
        ("Liver_mask", ("", "liver")),
        ("ct_liver", ("ct", "liver")),
        ("ct_liver_seg", ("ct", "liver")),
        ("mask_liver", ("", "liver")),
        ("p1.Left-Kidney", ("p1", "left kidney")),
        ("leftkidney", ("", "left kidney")),
        ("oliver", None),
        ("liver_2", None),
        ("kidney", None),
    ],
)
def test_what_a_name_says(name: str, expected: tuple[str, str] | None) -> None:
    assert structure_called(name, LABELS, ["mask", "seg"]) == expected


def test_the_longest_structure_is_meant() -> None:
    assert structure_called("left_kidney", ["kidney", "left kidney"], []) == ("", "left kidney")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("p1/1/ct.nii.gz", "p1/1/{}.nii.gz"),
        ("p1/1/ct.nii.gz", "p1/1/segmentations/{}.nii.gz"),
        ("p1/1/ct.nii.gz", "p1/1/organs/{}.nii.gz"),
        ("p1/1/ct.nii.gz", "p1/1/ct_{}.nii.gz"),
        ("p1/1/ct_image.nii.gz", "p1/1/ct_{}_mask.nii.gz"),
        ("p1/1/image.nii.gz", "p1/1/{}.nii.gz"),
        ("p1_1.nii.gz", "p1_1_{}.nii.gz"),
        ("images/p1_1.nii.gz", "labels/p1_1_{}.nii.gz"),
        ("images/p1_1.nii.gz", "labels/p1_1/{}.nii.gz"),
        ("imagesTr/p1_1_0000.nii.gz", "labelsTr/p1_1_{}.nii.gz"),
    ],
)
def test_masks_of_one_structure_each_are_joined(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any, image: str, mask: str
) -> None:
    root = tmp_path / "mine"
    for visit in ("1", "2"):
        shapes.save_volume(root / image.replace("/1/", f"/{visit}/").replace("p1_1", f"p1_{visit}"))
    for name, array in masks.items():
        shapes.save_volume(root / mask.format(name), array)
    datalist, report = indexed("folder", root, labels=LABELS)
    assert [case.label is None for case in datalist.cases] == [False, True]
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))
    assert "1 label maps were joined from masks of one structure each (liver, left kidney)" in report
    assert "skipped: nothing" in report


def test_a_mask_alone_is_of_the_structure_it_is_called_as(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "1" / "ct.nii.gz")
    shapes.save_volume(root / "p1" / "1" / "left_kidney.nii.gz", masks["left_kidney"])  # of ones, and 1 is the liver
    datalist, _ = indexed("folder", root, labels=LABELS)
    assert np.array_equal(read_label(datalist.cases[0].label), 2 * masks["left_kidney"])


def test_a_mask_of_the_right_value_is_listed_as_it_is(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "1" / "ct.nii.gz")
    shapes.save_volume(root / "p1" / "1" / "liver.nii.gz", masks["liver"])
    datalist, report = indexed("folder", root, labels=LABELS)
    assert Path(datalist.cases[0].label) == root / "p1" / "1" / "liver.nii.gz"
    assert "joined" not in report


def test_label_maps_that_are_called_as_a_structure_stay_label_maps(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any
) -> None:
    root = tmp_path / "mine"
    for patient, values in (("p1", (1, 2)), ("p2", (2,))):
        shapes.save_volume(root / patient / "1" / "ct.nii.gz")
        shapes.save_volume(root / patient / "1" / "liver.nii.gz", shapes.rings(values))
    datalist, _ = indexed("folder", root, labels=LABELS)
    assert [Path(case.label).name for case in datalist.cases] == ["liver.nii.gz"] * 2


def test_structures_that_are_not_asked_for_are_left_out(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "1" / "ct.nii.gz")
    for name in (*masks, "aorta", "kidney_right"):
        folder = root / "p1" / "1" / "segmentations"
        shapes.save_volume(folder / f"{name}.nii.gz", masks.get(name, masks["liver"]))
    datalist, report = indexed("folder", root, labels=LABELS)
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))
    assert "aorta.nii.gz" in report
    assert "called as no structure of --labels" in report


def test_overlap_is_told(tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1.nii.gz")
    shapes.save_volume(root / "p1_liver.nii.gz", np.maximum(masks["liver"], masks["left_kidney"]))
    shapes.save_volume(root / "p1_left_kidney.nii.gz", masks["left_kidney"])
    datalist, report = indexed("folder", root, labels=LABELS)
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))
    assert f"{masks['left_kidney'].sum()} voxels of left kidney are in the mask of another structure" in report


def test_values_of_a_mask_other_than_one_count(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1.nii.gz")
    for name, array in masks.items():
        shapes.save_volume(root / f"p1_{name}.nii.gz", array * 255)
    datalist, _ = indexed("folder", root, labels=LABELS)
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda mask: np.where(np.arange(mask.size).reshape(mask.shape) % 2, mask, 2 * mask),
            "called as one structure",
        ),
        (lambda mask: mask[:, :, :-1], "lies on another grid than"),
    ],
)
def test_masks_that_do_not_fit_skip_their_case(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any, change: Any, sentence: str
) -> None:
    root = tmp_path / "mine"
    for patient in ("p1", "p2"):
        shapes.save_volume(root / f"{patient}.nii.gz")
        for name, array in masks.items():
            spoilt = patient == "p2" and name == "left_kidney"
            shapes.save_volume(root / f"{patient}_{name}.nii.gz", change(array) if spoilt else array)
    datalist, report = indexed("folder", root, labels=LABELS)
    assert [case.case for case in datalist.cases] == ["p1"]
    assert sentence in report


def test_a_label_map_beside_masks_of_one_structure_is_not_guessed(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "1" / "ct.nii.gz")
    shapes.save_volume(root / "p1" / "1" / "seg.nii.gz", shapes.rings((1, 2)))
    for name, array in masks.items():
        shapes.save_volume(root / "p1" / "1" / f"{name}.nii.gz", array)
    with pytest.raises(UserError, match=r"seg.nii.gz: of the same image as masks of one structure each"):
        indexed("folder", root, labels=LABELS)
    datalist, _ = indexed(
        "folder", root, labels=LABELS, label_pattern=re.compile("seg"), image_pattern=re.compile("ct")
    )
    assert Path(datalist.cases[0].label).name == "seg.nii.gz"


def test_two_masks_of_one_structure_are_not_guessed(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "1" / "ct.nii.gz")
    for name in ("liver", "liver_mask"):
        shapes.save_volume(root / "p1" / "1" / f"{name}.nii.gz", masks["liver"])
    with pytest.raises(UserError, match="of the same structure as"):
        indexed("folder", root, labels=LABELS)


def test_pictures_are_joined_too(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "mine"
    shapes.save_picture(root / "p1" / "1" / "frame.png", shapes.photo())
    size = shapes.photo().shape[:2]
    for number, name in enumerate(("liver", "left_kidney")):
        mask = np.zeros(size, np.uint8)
        mask[4 + 10 * number : 10 + 10 * number, 4:10] = 255
        shapes.save_picture(root / "p1" / "1" / f"{name}.png", mask)
    datalist, _ = indexed("folder", root, labels=LABELS)
    assert sorted(np.unique(read_label(datalist.cases[0].label))) == [0, 1, 2]


def test_masks_of_bids_name_their_structure(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "bids"
    (root / "derivatives").mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.9.0"}))
    for subject in ("01", "02"):
        shapes.save_volume(root / f"sub-{subject}" / "anat" / f"sub-{subject}_T2w.nii.gz")
        folder = root / "derivatives" / "manual" / f"sub-{subject}" / "anat"
        for name, array in masks.items():
            if subject == "01" or name == "left_kidney":
                label = name.title().replace("_", "")
                shapes.save_volume(folder / f"sub-{subject}_T2w_label-{label}_mask.nii.gz", array)
    datalist, _ = indexed("bids", root, labels=LABELS)
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))
    assert np.array_equal(read_label(datalist.cases[1].label), 2 * masks["left_kidney"])
