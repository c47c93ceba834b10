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


def test_annotated_images_of_one_visit_are_told(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    """A pattern that passes over the folder takes the p2 of another site for the same person."""
    shapes.save_volume(tree / "images" / "site B" / "p2_20220101.nii.gz")
    shapes.save_volume(tree / "labels" / "site B" / "p2_20220101.nii.gz", shapes.rings((1, 2)))
    report = indexed("folder", tree, patient_pattern=PATTERN)[1]
    assert "p2 has 2 annotated images of visit 2022-01-01" in report
    assert "p1 has" not in report


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


@pytest.mark.parametrize(
    ("image", "label", "case"),
    [
        ("p1.nii.gz", "p1_seg.nii.gz", "p1"),
        ("p1_img.nii", "p1_manual.nii.gz", "p1"),
        ("p1/week 0/image.nii.gz", "p1/week 0/mask.nii.gz", "p1_week 0"),
        ("Images/p1.nii.gz", "Labels/p1.nii.gz", "p1"),
        ("images/p1_image.nii.gz", "labels/p1_label.nii.gz", "p1_image"),
    ],
)
def test_common_layouts_are_known(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, image: str, label: str, case: str
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / image)
    shapes.save_volume(root / label, shapes.rings((1,)))
    (found,) = indexed("folder", root, labels={"liver": 1})[0].cases
    assert (found.case, Path(found.image), Path(found.label)) == (case, root / image, root / label)


def test_a_later_image_without_label_lies_beside_the_others(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any
) -> None:
    root = tmp_path / "mine"
    for name in ("p1_1", "p1_2"):
        shapes.save_volume(root / f"{name}.nii.gz")
    shapes.save_volume(root / "p1_1_seg.nii.gz", shapes.rings((1,)))
    shapes.save_picture(root / "screenshot.png", shapes.photo())
    datalist, _ = indexed("folder", root, labels={"liver": 1})
    assert [(case.case, case.label is None) for case in datalist.cases] == [("p1_1", False), ("p1_2", True)]


def test_two_label_maps_of_an_image_are_not_guessed(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "a.nii.gz")
    for name in ("a_seg", "a_mask"):
        shapes.save_volume(root / f"{name}.nii.gz", shapes.rings((1,)))
    with pytest.raises(UserError, match="of the same image as"):
        indexed("folder", root)
    datalist, _ = indexed("folder", root, label_pattern=re.compile("_seg"))
    assert [Path(case.label).name for case in datalist.cases] == ["a_seg.nii.gz"]


def test_it_is_said_when_no_label_matches(tree: Path, indexed: Callable[..., Any]) -> None:
    for path in list((tree / "labels").iterdir()):
        path.rename(path.with_name(f"label of {path.name}"))
    assert "no label map has the name of an image" in indexed("folder", tree, labels={"liver": 1})[1]


def test_files_of_other_kinds_are_reported(tree: Path, indexed: Callable[..., Any]) -> None:
    (tree / "images" / "p3.nrrd").write_text("NRRD0004")
    assert "p3.nrrd: this kind of file cannot be read" in indexed("folder", tree)[1]


def test_one_bad_label_map_does_not_hide_the_values_of_the_others(
    tree: Path, indexed: Callable[..., Any], shapes: Any
) -> None:
    shapes.save_volume(tree / "labels" / "p2_20220101.nii.gz", shapes.rings((1,)) * np.float32(0.5))
    datalist, report = indexed("folder", tree)
    assert datalist.labels == {"label_1": 1, "label_2": 2}
    assert "p2_20220101.nii.gz: label values must be whole numbers" in report


def test_the_value_of_what_nobody_drew_is_asked_for(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(tree / "scribbles" / "p1_20230415.nii.gz", np.full(shapes.SHAPE, 4, np.int16))
    assert "add --ignore 4" in indexed("folder", tree)[1]
    assert "add --ignore" not in indexed("folder", tree, ignore=4)[1]


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
        ("liver_01", "train", False),
        ("liver_02", "train", False),
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


def test_jpeg_masks_without_a_threshold_are_not_structures(
    pictures: Path, indexed: Callable[..., Any], shapes: Any
) -> None:
    (pictures / "masks" / "a.png").unlink()
    shapes.save_picture(pictures / "masks" / "a.jpg", np.uint8(255) * shapes.ball((40, 30), 8.5))
    with pytest.raises(UserError, match=r"a\.jpg: a JPEG blurs .* --threshold 128"):
        indexed("folder", pictures)
    assert indexed("folder", pictures, threshold=128)[0].labels == {"foreground": 255}


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


# patient/visit/


def listed(datalist: Any, root: Path) -> list[tuple[Any, ...]]:
    """Case, patient, visit, and the files below the root."""
    files = [
        [None if file is None else Path(file).relative_to(root).as_posix() for file in (case.image, case.label)]
        for case in datalist.cases
    ]
    return [(c.case, c.patient, c.visit, *paths) for c, paths in zip(datalist.cases, files, strict=True)]


@pytest.mark.parametrize(
    "mask", ["mask", "Mask", "seg", "label", "segmentation", "lesion_mask", "lesionMask", "mask_lesion", "lesion", "GT"]
)
def test_visits_with_an_image_and_its_mask(tmp_path: Path, indexed: Callable[..., Any], shapes: Any, mask: str) -> None:
    root = tmp_path / "mine"
    for visit in ("2024-01-15", "2024-02-26"):
        shapes.save_volume(root / "p1" / visit / "cine.nii.gz")
    shapes.save_volume(root / "p1" / "2024-01-15" / f"{mask}.nii.gz", shapes.rings((1,)))
    datalist, report = indexed("folder", root, labels={"lesion": 1})
    first, second = datetime.date(2024, 1, 15), datetime.date(2024, 2, 26)
    assert listed(datalist, root) == [
        ("p1_2024-01-15", "p1", first, "p1/2024-01-15/cine.nii.gz", f"p1/2024-01-15/{mask}.nii.gz"),
        ("p1_2024-02-26", "p1", second, "p1/2024-02-26/cine.nii.gz", None),
    ]
    (pair,) = pair_with_reference(datalist)
    assert pair["reference"] == ["p1_2024-01-15"]
    assert "2 cases, 1 patient" in report


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("p1/{}/cine.nii", "p1/{}/mask.nii.gz"),
        ("p1/{}/image.nii.gz", "p1/{}/mask.nii.gz"),
        ("p1/{}/images/cine.nii.gz", "p1/{}/labels/cine.nii.gz"),
        ("p1/{}/image/cine.nii.gz", "p1/{}/mask/lesion.nii.gz"),
        ("p1/{}/cine.nii.gz", "p1/{}/seg/lesion.nii.gz"),
        ("study/p1/{}/cine.nii.gz", "study/p1/{}/mask.nii.gz"),
        ("p1/{}/anat/T1.nii.gz", "p1/{}/anat/T1_lesion_mask.nii.gz"),
        ("p1/week {}/cine.nii.gz", "p1/week {}/mask.nii.gz"),
        ("p1/{}/cine_2.nii.gz", "p1/{}/seg_cine_2.nii.gz"),
    ],
)
def test_layouts_of_visits(tmp_path: Path, indexed: Callable[..., Any], shapes: Any, image: str, label: str) -> None:
    root = tmp_path / "mine"
    for number in (2, 10):
        shapes.save_volume(root / image.format(number))
    shapes.save_volume(root / label.format(2), shapes.rings((1,)))
    datalist, _ = indexed("folder", root, labels={"lesion": 1})
    cases = sorted(datalist.cases, key=lambda case: case.visit)
    assert [Path(case.image) for case in cases] == [root / image.format(number) for number in (2, 10)]
    assert [case.label and Path(case.label) for case in cases] == [root / label.format(2), None]
    assert [(case.patient, case.visit) for case in cases] == [("p1", 2), ("p1", 10)]


def test_visits_of_pictures_beside_visits_of_volumes(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "mine"
    for visit in ("1", "2"):
        shapes.save_volume(root / "p1" / visit / "cine.nii.gz")
        shapes.save_picture(root / "p1" / visit / "preview.png", shapes.photo())
        shapes.save_picture(root / "p2" / visit / "frame.png", shapes.photo())
    shapes.save_volume(root / "p1" / "1" / "mask.nii.gz", shapes.rings((1,)))
    shapes.save_picture(root / "p2" / "1" / "mask.png", shapes.ball((40, 30), 8.5).astype(np.uint8))
    datalist, report = indexed("folder", root, labels={"lesion": 1})
    assert [Path(case.image).name for case in datalist.cases] == ["cine.nii.gz"] * 2 + ["frame.png"] * 2
    assert "a picture, where label maps are volumes" in report


@pytest.mark.parametrize("where", ["1", "2"])
def test_several_images_of_a_visit_are_not_guessed(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any, where: str
) -> None:
    root = tmp_path / "mine"
    for visit in ("1", "2"):
        shapes.save_volume(root / "p1" / visit / "cine.nii.gz")
    shapes.save_volume(root / "p1" / "1" / "mask.nii.gz", shapes.rings((1,)))
    shapes.save_volume(root / "p1" / where / "t2.nii.gz")
    with pytest.raises(UserError, match=rf"p1/{where}: holds several images .*t2.* --image_pattern"):
        indexed("folder", root, labels={"lesion": 1})
    datalist, _ = indexed("folder", root, labels={"lesion": 1}, image_pattern=re.compile("cine"))
    assert [Path(case.image).name for case in datalist.cases] == ["cine.nii.gz"] * 2


def test_several_masks_of_a_visit_are_not_guessed(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "1" / "cine.nii.gz")
    for reader in ("mask_A", "mask_B"):
        shapes.save_volume(root / "p1" / "1" / f"{reader}.nii.gz", shapes.rings((1,)))
    with pytest.raises(UserError, match=r"holds several label maps .* --label_pattern"):
        indexed("folder", root, labels={"lesion": 1})
    datalist, _ = indexed("folder", root, labels={"lesion": 1}, label_pattern=re.compile("_B"))
    assert Path(datalist.cases[0].label).name == "mask_B.nii.gz"


def test_a_pattern_takes_patients_from_the_names_of_visits(
    tmp_path: Path, indexed: Callable[..., Any], shapes: Any
) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "3" / "cine.nii.gz")
    shapes.save_volume(root / "p1" / "3" / "mask.nii.gz", shapes.rings((1,)))
    pattern = re.compile(r"p(?P<patient>[0-9]+)_(?P<visit>[0-9]+)")
    assert listed(indexed("folder", root, labels={"lesion": 1}, patient_pattern=pattern)[0], root)[0][:3] == (
        "p1_3",
        "1",
        3,
    )


def test_numbered_images_and_masks_of_one_folder(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "mine"
    for number in (1, 2):
        shapes.save_volume(root / f"image{number}.nii.gz")
        shapes.save_volume(root / f"mask{number}.nii.gz", shapes.rings((1,)))
    datalist, _ = indexed("folder", root, labels={"lesion": 1})
    assert [Path(case.label).name for case in datalist.cases] == ["mask1.nii.gz", "mask2.nii.gz"]


def test_an_image_and_its_mask_alone(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "cine.nii.gz")
    shapes.save_volume(root / "mask.nii.gz", shapes.rings((1,)))
    datalist, _ = indexed("folder", root, labels={"lesion": 1})
    assert listed(datalist, root) == [("cine", None, None, "cine.nii.gz", "mask.nii.gz")]


def test_the_label_map_of_no_image_is_reported(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "mine"
    shapes.save_volume(root / "p1" / "1" / "cine.nii.gz")
    for visit in ("1", "2"):
        shapes.save_volume(root / "p1" / visit / "mask.nii.gz", shapes.rings((1,)))
    datalist, report = indexed("folder", root, labels={"lesion": 1})
    assert len(datalist.cases) == 1
    assert "p1/2/mask.nii.gz: a label without an image" in report


def test_linked_patients_and_visits_are_found(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root, far = tmp_path / "mine", tmp_path / "far"
    shapes.save_volume(far / "a" / "cine.nii.gz")
    shapes.save_volume(far / "b" / "cine.nii.gz", np.random.default_rng(1).normal(100, 20, shapes.SHAPE))
    shapes.save_volume(far / "a" / "mask.nii.gz", shapes.rings((1,)))
    (root / "p1").mkdir(parents=True)
    (root / "p1" / "1").symlink_to(far / "a")
    (root / "p1" / "2").symlink_to(far / "b")
    (far / "a" / "back").symlink_to(root)
    datalist, _ = indexed("folder", root, labels={"lesion": 1})
    assert [(case.case, case.patient, case.visit) for case in datalist.cases] == [("p1_1", "p1", 1), ("p1_2", "p1", 2)]
