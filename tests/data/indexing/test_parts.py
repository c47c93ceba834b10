"""Masks of one structure each are joined into the label map of their image."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.images import read_label
from monai_ext.data.indexing.parts import structure_called, structures_in
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
        ("mask_ct_liver", ("ct", "liver")),
        ("seg_1-liver-mask", ("", "liver")),
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


def test_names_of_macos_are_those_that_are_typed() -> None:
    assert structure_called(unicodedata.normalize("NFD", "Läsion"), ["läsion"], []) == ("", "läsion")


def test_a_name_of_two_structures_is_not_guessed() -> None:
    with pytest.raises(UserError, match="may be the mask of 'left kidney' or of 'Left_Kidney'"):
        structure_called("left_kidney", ["left kidney", "Left_Kidney"], [])


def test_numbers_are_no_names_of_files() -> None:
    assert structure_called("p1_2", ["1", "2"], []) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("spleen_p1_mask", {"spleen"}),
        ("LEFT-kidney_2", {"left kidney"}),
        ("kidney and spleen", {"kidney", "spleen"}),
        ("kidneys", set()),
    ],
)
def test_structures_that_a_name_names(name: str, expected: set[str]) -> None:
    assert structures_in(name, ["spleen", "kidney", "left kidney"]) == expected


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


def test_masks_of_bids_of_several_images_stay_apart(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "bids"
    folder = root / "derivatives" / "manual" / "sub-01" / "anat"
    for contrast in ("T1w", "T2w"):
        shapes.save_volume(root / "sub-01" / "anat" / f"sub-01_{contrast}.nii.gz")
    shapes.save_volume(folder / "sub-01_label-liver_mask.nii.gz", masks["liver"])
    shapes.save_volume(folder / "sub-01_space-T1w_label-leftkidney_mask.nii.gz", masks["left_kidney"])
    datalist, report = indexed("bids", root, labels=LABELS)
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))
    assert np.array_equal(read_label(datalist.cases[1].label), masks["liver"])
    assert "none of left kidney (sub-01_T2w): it counts as not there" in report


def test_masks_of_bids_that_name_another_structure_are_none_of_these(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "bids"
    for subject in ("01", "02"):
        shapes.save_volume(root / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz")
    folder = root / "derivatives" / "manual"
    shapes.save_volume(folder / "sub-01" / "sub-01_label-aorta_mask.nii.gz", masks["liver"])
    for label in ("liver", "leftkidney", "aorta"):
        array = masks["left_kidney" if label == "leftkidney" else "liver"]
        shapes.save_volume(folder / "sub-02" / f"sub-02_label-{label}_mask.nii.gz", array)
    datalist, report = indexed("bids", root, labels=LABELS)
    assert datalist.cases[0].label is None
    assert np.array_equal(read_label(datalist.cases[1].label), shapes.rings((1, 2)))
    assert "and 1 more: names no structure of --labels" in report


def test_two_masks_of_one_structure_leave_out_their_image_alone(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "bids"
    for subject in ("01", "02"):
        shapes.save_volume(root / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz")
    folder = root / "derivatives" / "manual"
    for name in ("sub-01_desc-a", "sub-01_desc-b", "sub-02_desc-a"):
        shapes.save_volume(folder / name[:6] / f"{name}_label-liver_mask.nii.gz", masks["liver"])
    datalist, report = indexed("bids", root, labels=LABELS)
    assert [case.case for case in datalist.cases] == ["sub-02_T1w"]
    assert "has several label maps" in report


def test_a_mask_of_bids_without_a_name_is_of_no_structure_in_other_letters(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "bids"
    shapes.save_volume(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    label = root / "derivatives" / "manual" / "sub-01_desc-brain_mask.nii.gz"
    shapes.save_volume(label, masks["liver"])
    datalist, _ = indexed("bids", root, labels={"liver": 1, "печень": 2})
    assert Path(datalist.cases[0].label) == label


@pytest.mark.parametrize("names", [("ct_liver", "left_kidney"), ("liver", "CT_left_kidney")])
def test_masks_of_the_only_image_are_its_own_however_they_are_called(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any, names: tuple[str, str]
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "1" / "ct.nii.gz")
    for name, array in zip(names, masks.values(), strict=True):
        shapes.save_volume(root / "p1" / "1" / f"{name}.nii.gz", array)
    datalist, _ = indexed("folder", root, labels=LABELS)
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))


@pytest.mark.parametrize("name", ["{}.nii.gz", "p1/1/{}.nii.gz"])
def test_masks_of_other_structures_are_no_images(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any, name: str
) -> None:
    root = tmp_path / "mine"
    image, prefix = ("p1", "p1_") if name == "{}.nii.gz" else ("ct", "")
    shapes.save_volume(root / name.format(image))
    for structure in (*masks, "aorta", "liver_2"):
        shapes.save_volume(root / name.format(f"{prefix}{structure}"), masks.get(structure, masks["liver"]))
    datalist, report = indexed("folder", root, labels=LABELS)
    assert len(datalist.cases) == 1
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))
    assert "and 1 more: a mask (it holds two values at most)" in report


def test_an_image_called_as_another_one_and_more_stays_an_image(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    for name in ("p1", "p1_2"):
        shapes.save_volume(root / f"{name}.nii.gz")
    for name, array in masks.items():
        shapes.save_volume(root / f"p1_{name}.nii.gz", array)
    datalist, _ = indexed("folder", root, labels=LABELS)
    assert [case.case for case in datalist.cases] == ["p1", "p1_2"]


def test_masks_that_the_pattern_passes_over_are_no_images(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1.nii.gz")
    for name, array in masks.items():
        shapes.save_volume(root / f"p1_{name}.nii.gz", array)
    datalist, _ = indexed("folder", root, labels=LABELS, label_pattern=re.compile("kidney"))
    assert [case.case for case in datalist.cases] == ["p1"]
    assert np.array_equal(read_label(datalist.cases[0].label), 2 * masks["left_kidney"])


@pytest.mark.parametrize("visit", ["followup", "week 6", "2024-03-01"])
def test_masks_of_a_visit_without_image_are_not_those_of_the_image_above(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any, visit: str
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "ct.nii.gz")
    for name, array in masks.items():
        shapes.save_volume(root / "p1" / visit / f"{name}.nii.gz", array)
    datalist, report = indexed("folder", root, labels=LABELS)
    assert datalist.cases[0].label is None
    assert "and 1 more: a mask without an image that it belongs to" in report


def test_one_mask_of_two_values_leaves_the_others_masks(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    for patient in ("p1", "p2", "p3"):
        shapes.save_volume(root / patient / "1" / "ct.nii.gz")
    for name, array in masks.items():
        shapes.save_volume(root / "p1" / "1" / f"{name}.nii.gz", array)
    shapes.save_volume(root / "p2" / "1" / "left_kidney.nii.gz", masks["left_kidney"])
    shapes.save_volume(root / "p3" / "1" / "left_kidney.nii.gz", shapes.rings((1, 2)))
    datalist, report = indexed("folder", root, labels=LABELS)
    assert [case.case for case in datalist.cases] == ["p1_1", "p2_1"]
    assert np.array_equal(read_label(datalist.cases[1].label), 2 * masks["left_kidney"])
    assert "but holds the values 1, 2" in report


def test_a_broken_mask_alone_skips_its_case(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any
) -> None:
    root = tmp_path / "mine"
    for patient in ("p1", "p2"):
        shapes.save_volume(root / patient / "1" / "ct.nii.gz")
        shapes.save_volume(root / patient / "1" / "liver.nii.gz", masks["liver"])
    (root / "p2" / "1" / "liver.nii.gz").write_bytes(b"broken")
    datalist, report = indexed("folder", root, labels=LABELS)
    assert [case.case for case in datalist.cases] == ["p1_1"]
    assert "not a sound gzip file" in report


@pytest.mark.parametrize("name", ["left_kidney_p1_mask", "p1_left_kidney_2_mask"])
def test_a_label_map_called_as_another_structure_than_it_holds_is_refused(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any, name: str
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1.nii.gz")
    shapes.save_volume(root / f"{name}.nii.gz", masks["left_kidney"])  # of ones, and 1 is the liver
    with pytest.raises(UserError, match="is called left kidney, but holds the value 1 alone, which is liver"):
        indexed("folder", root, labels=LABELS)


def test_the_ignore_value_is_no_structure(tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1.nii.gz")
    for name, array in masks.items():
        shapes.save_volume(root / f"p1_{name}.nii.gz", array * 255)
    with pytest.raises(UserError, match="holds the value 255 of --ignore"):
        indexed("folder", root, labels=LABELS, ignore=255)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": {"liver": 1, "left kidney": 1}}, "'liver' and 'left kidney' have the same value 1"),
        ({"labels": LABELS, "ignore": 2}, "--ignore 2: this is the value of 'left kidney'"),
    ],
)
def test_values_that_a_list_cannot_have_leave_the_former_label_maps(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, masks: Any, options: Any, sentence: str
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1.nii.gz")
    for name, array in masks.items():
        shapes.save_volume(root / f"p1_{name}.nii.gz", array)
    datalist, _ = indexed("folder", root, labels=LABELS)
    with pytest.raises(UserError, match=sentence):
        indexed("folder", root, **options)
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))
