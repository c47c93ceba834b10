from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.images import read_label
from monai_ext.data.indexing.pictures import MaskCleaner, read_grades
from monai_ext.errors import UserError

SIZE = (40, 30)


def white(mask: np.ndarray) -> np.ndarray:
    return (mask * 255).astype(np.uint8)


# CVC-ClinicDB


@pytest.fixture
def clinic(tmp_path: Path, shapes: Any) -> Path:
    """Frames around the border of the first two sequences, as TIFF in Original/ and Ground Truth/."""
    root = tmp_path / "CVC-ClinicDB"
    for frame in (1, 3, 4, 10, 25, 26, 28, 612):
        shapes.save_picture(root / "Original" / f"{frame}.tif", shapes.photo(SIZE))
        shapes.save_picture(root / "Ground Truth" / f"{frame}.tif", white(shapes.ball(SIZE, 8, frame % 5)))
    return root


def test_sequences_are_patients_and_frames_visits(clinic: Path, indexed: Callable[..., Any]) -> None:
    datalist, _ = indexed("cvc_clinicdb", clinic)
    assert [(c.extra["frame"], c.patient, c.visit, c.extra["scored"]) for c in datalist.cases] == [
        (1, "sequence01", 1, False),
        (3, "sequence01", 3, False),
        (4, "sequence01", 4, True),
        (10, "sequence01", 10, True),
        (25, "sequence01", 25, True),
        (26, "sequence02", 1, False),
        (28, "sequence02", 3, False),
        (612, "sequence29", 21, True),
    ]


def test_clean_masks_are_listed_as_they_are(
    clinic: Path, indexed: Callable[..., Any], tmp_path: Path, shapes: Any
) -> None:
    datalist, report = indexed("cvc_clinicdb", clinic)
    for case in datalist.cases:
        assert np.array_equal(read_label(case.label), white(shapes.ball(SIZE, 8, case.extra["frame"] % 5)))
        assert "Ground Truth" in case.label
    assert not (tmp_path / "list_files").exists()
    assert "written anew" not in report


def test_a_folder_around_the_download_is_looked_into(clinic: Path, indexed: Callable[..., Any]) -> None:
    (clinic.parent / "outer" / "PNG").mkdir(parents=True)
    clinic.rename(clinic.parent / "outer" / "CVC-ClinicDB")
    assert len(indexed("cvc_clinicdb", clinic.parent / "outer")[0].cases) == 8


def test_a_missing_mask_and_a_wrong_name_are_skipped(clinic: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    (clinic / "Ground Truth" / "4.tif").unlink()
    shapes.save_picture(clinic / "Original" / "900.tif", shapes.photo(SIZE))
    datalist, report = indexed("cvc_clinicdb", clinic)
    assert len(datalist.cases) == 7
    assert "4.tif: there is no mask of this name" in report
    assert "900.tif: its name is no frame number from 1 to 612" in report


# Pairs


def test_jpeg_masks_are_cut_at_the_middle(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    """Kvasir-SEG: the edges of a JPEG mask are grey, the middle value is where the shape ends."""
    root = tmp_path / "Kvasir-SEG"
    truth = shapes.ball(SIZE, 9)
    shapes.save_picture(root / "images" / "cju0.jpg", shapes.photo(SIZE))
    shapes.save_picture(root / "masks" / "cju0.jpg", white(np.repeat(truth[..., None], 3, axis=2)), quality=90)
    datalist, report = indexed("kvasir_seg", root)
    assert np.array_equal(read_label(datalist.cases[0].label), white(truth))
    assert datalist.cases[0].label.endswith("list_files/kvasir_seg_cju0_mask.png")
    assert "1 masks were not pure black and white" in report
    assert "no splits: they are cut from the complete set, and 1 images are here" in report


def test_a_mask_of_another_size_is_skipped(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    for name, size in (("a", SIZE), ("b", (20, 20))):
        shapes.save_picture(tmp_path / "CVC-300" / "images" / f"{name}.png", shapes.photo(SIZE))
        shapes.save_picture(tmp_path / "CVC-300" / "masks" / f"{name}.png", white(shapes.ball(size, 5)))
    datalist, report = indexed("cvc_300", tmp_path)
    assert [case.case for case in datalist.cases] == ["cvc_300_a"]
    assert "CVC-300 (EndoScene test set) has 60 images, here are 2" in report
    assert "label grid differs from image grid: shape 20 x 20" in report


def test_the_right_one_of_several_sets_is_taken(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    for name in ("CVC-300", "CVC-ColonDB", "Kvasir"):
        shapes.save_picture(tmp_path / name / "images" / f"{name}.png", shapes.photo(SIZE))
        shapes.save_picture(tmp_path / name / "masks" / f"{name}.png", white(shapes.ball(SIZE, 5)))
    assert [case.case for case in indexed("colondb", tmp_path)[0].cases] == ["colondb_CVC-ColonDB"]
    with pytest.raises(UserError, match=r"several folders could be Kvasir-SEG \(CVC-300, CVC-ColonDB, Kvasir\)"):
        indexed("kvasir_seg", tmp_path)


def test_colondb_as_it_was_first_released(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_picture(tmp_path / "7.bmp", shapes.photo(SIZE))
    for letter in "psc":
        shapes.save_picture(tmp_path / f"{letter}7.bmp", white(shapes.ball(SIZE, 5)))
    datalist, report = indexed("colondb", tmp_path)
    assert [(case.case, Path(case.label).name) for case in datalist.cases] == [("colondb_7", "p7.bmp")]
    assert "skipped: nothing" in report


# PerSeg, BUSI, GlaS


def test_dark_red_annotations_become_the_object(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    for number in ("00", "02"):
        red = np.zeros((*SIZE, 3), np.uint8)
        red[shapes.ball(SIZE, 6)] = (128, 0, 0)
        shapes.save_picture(tmp_path / "Images" / "backpack" / f"{number}.jpg", shapes.photo(SIZE))
        shapes.save_picture(tmp_path / "Annotations" / "backpack" / f"{number}.png", red)
    datalist, _ = indexed("perseg", tmp_path)
    assert [(c.patient, c.visit, c.extra["scored"]) for c in datalist.cases] == [
        ("backpack", 0, False),
        ("backpack", 2, True),
    ]
    assert np.array_equal(read_label(datalist.cases[1].label), white(shapes.ball(SIZE, 6)))


def test_masks_of_several_lesions_are_joined(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "Dataset_BUSI_with_GT"
    left, right = white(shapes.ball(SIZE, 4, -9)), white(shapes.ball(SIZE, 3, 9))
    shapes.save_picture(root / "benign" / "benign (4).png", shapes.photo(SIZE))
    shapes.save_picture(root / "benign" / "benign (4)_mask.png", left)
    shapes.save_picture(root / "benign" / "benign (4)_mask_1.png", right)
    shapes.save_picture(root / "normal" / "normal (1).png", shapes.photo(SIZE))
    shapes.save_picture(root / "normal" / "normal (1)_mask.png", np.zeros(SIZE, np.uint8))
    shapes.save_picture(root / "malignant" / "malignant (2).png", shapes.photo(SIZE))
    datalist, report = indexed("busi", tmp_path)
    assert [(case.case, case.extra["group"]) for case in datalist.cases] == [
        ("benign_004", "benign"),
        ("normal_001", "normal"),
    ]
    assert np.array_equal(read_label(datalist.cases[0].label), np.maximum(left, right))
    assert not read_label(datalist.cases[1].label).any()
    assert "lesion 1" in report
    assert "malignant (2).png: there is no mask" in report


@pytest.fixture
def glands(tmp_path: Path, shapes: Any) -> Path:
    root = tmp_path / "Warwick QU Dataset (Released 2016_07_08)"
    for name in ("train_1", "testA_1", "testB_1"):
        instances = shapes.ball(SIZE, 4, -9).astype(np.uint8) + 2 * shapes.ball(SIZE, 4, 9).astype(np.uint8)
        shapes.save_picture(root / f"{name}.bmp", shapes.photo(SIZE))
        shapes.save_picture(root / f"{name}_anno.bmp", instances)
    (root / "Grade.csv").write_text(
        "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)\n"
        "testA_1,4, benign, adenomatous\ntestB_1,5, malignant, x\ntrain_1,6, benign, x\n"
    )
    return root


def test_gland_instances_become_one_label(glands: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, _ = indexed("glas", glands.parent)
    assert [(c.case, c.split, c.patient, c.extra["group"]) for c in datalist.cases] == [
        ("testA_1", "testA", "4", "benign"),
        ("testB_1", "testB", "5", "malignant"),
        ("train_1", "train", "6", "benign"),
    ]
    both = shapes.ball(SIZE, 4, -9) | shapes.ball(SIZE, 4, 9)
    assert all(np.array_equal(read_label(case.label), white(both)) for case in datalist.cases)


def test_a_patient_of_several_splits_becomes_the_slide(glands: Path, indexed: Callable[..., Any]) -> None:
    path = glands / "Grade.csv"
    path.write_text(path.read_text().replace("train_1,6", "train_1,4"))
    datalist, report = indexed("glas", glands)
    assert [(case.patient, case.extra["slide"]) for case in datalist.cases] == [(None, "4"), (None, "5"), (None, "4")]
    assert "1 patients stand in several of the official splits" in report


def test_grades_are_optional(tmp_path: Path) -> None:
    assert read_grades(tmp_path / "Grade.csv") == {}


# Masks


@pytest.mark.parametrize("mode", ["grey", "rgb", "palette", "bit"])
def test_any_kind_of_mask_becomes_clean(tmp_path: Path, shapes: Any, mode: str) -> None:
    from PIL import Image

    truth = shapes.ball(SIZE, 7)
    picture = Image.fromarray(white(truth).T.copy())
    picture = {"grey": picture, "rgb": picture.convert("RGB"), "bit": picture.convert("1")}.get(mode, picture)
    picture = picture.convert("P") if mode == "palette" else picture
    picture.save(tmp_path / "mask.png")
    cleaned = MaskCleaner(tmp_path / "out", 255, 128).clean([tmp_path / "mask.png"], "case")
    assert np.array_equal(read_label(cleaned), white(truth))


def test_masks_of_different_size_are_not_joined(tmp_path: Path, shapes: Any) -> None:
    paths = [shapes.save_picture(tmp_path / f"{n}.png", white(shapes.ball((n, 20), 4))) for n in (20, 21)]
    with pytest.raises(UserError, match="differ in size"):
        MaskCleaner(tmp_path, 255, 128).clean(paths, "case")


def test_a_damaged_mask_is_skipped(clinic: Path, indexed: Callable[..., Any]) -> None:
    (clinic / "Ground Truth" / "4.tif").write_bytes(b"no picture")
    datalist, report = indexed("cvc_clinicdb", clinic)
    assert len(datalist.cases) == 7
    assert "damaged or no picture" in report
