from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.images import read_label
from monai_ext.data.pairs import pair_with_reference
from monai_ext.errors import UserError

PATTERN = re.compile(r"(?P<patient>p[0-9]+)_(?P<visit>[0-9]+)")


@pytest.fixture
def tree(tmp_path: Path, shapes: Any) -> Path:
    """Two patients; p1 has an annotated first visit and a second without label."""
    root = tmp_path / "mine"
    for name in ("p1_20230415", "p1_20231001", "p2_20220101"):
        shapes.save_volume(root / "images" / f"{name}.nii.gz")
    for name in ("p1_20230415", "p2_20220101"):
        shapes.save_volume(root / "labels" / f"{name}.nii.gz", shapes.rings((1, 2)))
    return root


def test_images_and_labels_of_one_name_belong_together(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, report = indexed("folder", tree, labels={"liver": 1, "tumour": 2})
    assert [(case.case, case.label is None) for case in datalist.cases] == [
        ("p1_20230415", False),
        ("p1_20231001", True),
        ("p2_20220101", False),
    ]
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.rings((1, 2)))
    assert "liver 2, tumour 2" in report
    assert "--patient_pattern finds them" in report


def test_an_image_without_label_is_served_by_an_earlier_visit(tree: Path, indexed: Callable[..., Any]) -> None:
    datalist, _ = indexed("folder", tree, labels={"liver": 1, "tumour": 2}, patient_pattern=PATTERN)
    assert datalist.cases[0].visit == datetime.date(2023, 4, 15)
    (pair,) = pair_with_reference(datalist)
    assert (pair["case"], pair["reference"]) == ("p1_20231001", ["p1_20230415"])


def test_structures_are_named_after_their_values_where_nothing_is_said(tree: Path, indexed: Callable[..., Any]) -> None:
    datalist, report = indexed("folder", tree)
    assert datalist.labels == {"label_1": 1, "label_2": 2}
    assert "name them with --labels" in report


@pytest.mark.parametrize("name", ["p1_20230415_seg", "p1_20230415_mask", "p1_20230415_gt"])
def test_labels_may_end_as_people_end_them(tree: Path, indexed: Callable[..., Any], name: str) -> None:
    (tree / "labels" / "p1_20230415.nii.gz").rename(tree / "labels" / f"{name}.nii.gz")
    assert Path(indexed("folder", tree)[0].cases[0].label).name == f"{name}.nii.gz"


def test_subfolders_become_part_of_the_name(tree: Path, indexed: Callable[..., Any]) -> None:
    for part in ("images", "labels"):
        (tree / part / "site A").mkdir()
        (tree / part / "p2_20220101.nii.gz").rename(tree / part / "site A" / "p2_20220101.nii.gz")
    assert [case.case for case in indexed("folder", tree)[0].cases][-1] == "site A_p2_20220101"


def test_a_label_without_image_is_reported(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(tree / "labels" / "p9.nii.gz", shapes.rings((1,)))
    assert "p9.nii.gz: a label without an image of this name" in indexed("folder", tree)[1]


def test_images_and_labels_may_lie_in_one_folder(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "flat"
    shapes.save_volume(root / "a_image.nii.gz")
    shapes.save_volume(root / "a_label.nii.gz", shapes.rings((1,)))
    shapes.save_volume(root / "a_scribble.nii.gz", np.full(shapes.SHAPE, 4, np.int16))
    datalist, _ = indexed("folder", root, labels={"liver": 1}, ignore=4)
    (case,) = datalist.cases
    assert (case.case, Path(case.label).name, Path(case.scribble).name) == ("a", "a_label.nii.gz", "a_scribble.nii.gz")
    assert datalist.ignore == 4


def test_patterns_choose_files(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(tree / "labels" / "second reader" / "p1_20230415.nii.gz", shapes.rings((2,)))
    patterns = {"image_pattern": re.compile("p1"), "label_pattern": re.compile("^labels/p")}
    datalist, _ = indexed("folder", tree, **patterns)
    assert [case.case for case in datalist.cases] == ["p1_20230415", "p1_20231001"]
    assert Path(datalist.cases[0].label).parent.name == "labels"


# nnU-Net


@pytest.fixture
def nnunet(tmp_path: Path, shapes: Any) -> Path:
    root = tmp_path / "Dataset001_Liver"
    for name in ("liver_01_0000", "liver_01_0001", "liver_02_0000"):
        shapes.save_volume(root / "imagesTr" / f"{name}.nii.gz")
    for name in ("liver_01", "liver_02"):
        shapes.save_volume(root / "labelsTr" / f"{name}.nii.gz", shapes.rings((1, 2)))
    shapes.save_volume(root / "imagesTs" / "liver_03_0000.nii.gz")
    shapes.save_volume(root / "labelsTs" / "liver_03.nii.gz", shapes.rings((1,)))
    return root


@pytest.mark.parametrize(
    "content",
    [
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}},
        {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "tumour", "3": "ignore"}},
    ],
)
def test_nnunet_folders_bring_their_labels(nnunet: Path, indexed: Callable[..., Any], content: dict[str, Any]) -> None:
    (nnunet / "dataset.json").write_text(json.dumps(content))
    datalist, report = indexed("folder", nnunet)
    assert (datalist.labels, datalist.ignore, datalist.modality) == ({"liver": 1, "tumour": 2}, 3, "CT")
    assert [(case.case, case.split, case.label is None) for case in datalist.cases] == [
        ("liver_01", None, False),
        ("liver_02", None, False),
        ("liver_03", "test", False),
    ]
    assert "liver_01_0001.nii.gz: a further channel" in report


def test_another_dataset_json_is_refused(nnunet: Path, indexed: Callable[..., Any]) -> None:
    (nnunet / "dataset.json").write_text("[]")
    with pytest.raises(UserError, match=r"dataset\.json: this is no dataset\.json of nnU-Net"):
        indexed("folder", nnunet)


# Pictures


@pytest.fixture
def pictures(tmp_path: Path, shapes: Any) -> Path:
    root = tmp_path / "photos"
    soft = np.clip(255 * (9 - np.hypot(*(np.indices((40, 30)) - np.array([[[19.5]], [[14.5]]])))), 0, 255)
    shapes.save_picture(root / "images" / "a.jpg", shapes.photo())
    shapes.save_picture(root / "masks" / "a.png", soft.astype(np.uint8) // 4 * 4)
    return root


def test_grey_masks_are_cut_where_the_user_says(pictures: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, report = indexed("folder", pictures, labels={"polyp": 1}, threshold=128)
    assert np.array_equal(read_label(datalist.cases[0].label), shapes.ball((40, 30), 8.5).astype(int))
    assert "1 masks were cut at grey value 128" in report


def test_grey_masks_without_a_threshold_are_not_guessed(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any
) -> None:
    shapes.save_picture(tmp_path / "images" / "a.png", shapes.photo())
    shapes.save_picture(tmp_path / "masks" / "a.png", shapes.photo()[..., 0])
    with pytest.raises(UserError, match=r"different values besides 0: .* add --threshold 128"):
        indexed("folder", tmp_path)


# Mistakes


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("p[0-9]+", r"has no group \(\?P<patient>"),
        ("(?P<patient>x[0-9]+)", "does not match the case 'p1_20230415'"),
        ("(?P<patient>p1|p2)_(?P<visit>20)", None),
        ("(?P<patient>p[0-9])(?P<visit>_2)", "the visit '_2' of case 'p1_20230415' is neither a number nor a date"),
    ],
)
def test_patterns_that_fail_name_the_case(
    tree: Path, indexed: Callable[..., Any], pattern: str, message: str | None
) -> None:
    if message is None:
        assert indexed("folder", tree, patient_pattern=re.compile(pattern))[0].cases[0].visit == 20
        return
    with pytest.raises(UserError, match=message):
        indexed("folder", tree, patient_pattern=re.compile(pattern))


def test_two_images_of_one_name_are_refused(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(tree / "images" / "p1_20230415.nii")
    with pytest.raises(UserError, match="the same name as"):
        indexed("folder", tree)


def test_an_empty_folder_says_what_is_expected(tmp_path: Path, indexed: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="neither a folder images/ nor files NAME_image"):
        indexed("folder", tmp_path)


def test_values_must_be_said_where_no_label_is_read(tree: Path, indexed: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="--labels NAME=VALUE"):
        indexed("folder", tree, headers_only=True)
