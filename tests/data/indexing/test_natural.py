from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from monai_ext.data.images import read_label
from monai_ext.errors import UserError

SIZE = (40, 30)


def class_map(shapes: Any, *values: int) -> np.ndarray:
    """[W, H]: a ball of each value, side by side, with VOC's outline of 255 around the first."""
    found = np.zeros(SIZE, np.uint8)
    found[shapes.ball(SIZE, 8, -8)] = 255
    for number, value in enumerate(values):
        found[shapes.ball(SIZE, 6, -8 + 16 * number)] = value
    return found


@pytest.fixture
def pascal(tmp_path: Path, shapes: Any) -> Path:
    """Three masks, one of them in colours of a palette, and a fourth image without a mask."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2007_000032", "2007_000033", "2008_000001", "2008_000002"):
        shapes.save_picture(root / "JPEGImages" / f"{name}.jpg", shapes.photo(SIZE))
    for name in ("2007_000032", "2007_000033"):
        shapes.save_picture(root / "SegmentationClassAug" / f"{name}.png", class_map(shapes, 1, 15))
    picture = Image.fromarray(class_map(shapes, 20).T, mode="P")
    picture.putpalette([channel for k in range(256) for channel in (k, 255 - k, k // 2)])
    picture.save(root / "SegmentationClassAug" / "2008_000001.png")
    names = root / "ImageSets" / "Segmentation" / "val.txt"
    names.parent.mkdir(parents=True)
    names.write_text("2007_000033\n2009_000009\n")
    return tmp_path


def test_pascal_has_classes_an_ignored_value_and_splits(pascal: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    datalist, report = indexed("pascal_5i", pascal)
    assert [(case.case, case.split) for case in datalist.cases] == [
        ("voc_2007_000032", "train"),
        ("voc_2007_000033", "val"),
        ("voc_2008_000001", "train"),
    ]
    assert (datalist.labels["aeroplane"], datalist.labels["tvmonitor"], datalist.ignore) == (1, 20, 255)
    assert np.array_equal(read_label(datalist.cases[2].label), class_map(shapes, 20)), "numbers, not colours"
    assert "skipped: nothing" in report


def test_the_official_masks_alone_are_told(pascal: Path, indexed: Callable[..., Any]) -> None:
    home = pascal / "VOCdevkit" / "VOC2012"
    (home / "SegmentationClassAug").rename(home / "SegmentationClass")
    (home / "JPEGImages" / "2007_000032.jpg").unlink()
    datalist, report = indexed("pascal_5i", pascal)
    assert len(datalist.cases) == 2
    assert "SegmentationClass: the official masks alone" in report
    assert "2007_000032.png: there is no image of this name" in report


def test_what_is_missing_is_named(pascal: Path, indexed: Callable[..., Any]) -> None:
    home = pascal / "VOCdevkit" / "VOC2012"
    (home / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(UserError, match=r"ImageSets/Segmentation/val.txt is missing"):
        indexed("pascal_5i", pascal)
    with pytest.raises(UserError, match="nothing there looks like COCO-20i"):
        indexed("coco_20i", pascal)


def test_coco_s_folders_are_its_splits(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    root = tmp_path / "COCO2014"
    for split in ("train2014", "val2014"):
        name = f"COCO_{split}_000000000042"
        shapes.save_picture(root / split / f"{name}.jpg", shapes.photo(SIZE))
        mask = class_map(shapes, 1, 80)
        mask[mask == 255] = 0
        shapes.save_picture(root / "annotations" / split / f"{name}.png", mask)
    datalist, report = indexed("coco_20i", root)
    assert [(case.case, case.split) for case in datalist.cases] == [
        ("COCO_train2014_000000000042", "train"),
        ("COCO_val2014_000000000042", "val"),
    ]
    assert datalist.labels["toothbrush"] == 80
    assert "skipped: nothing" in report


def test_coco_s_own_outlines_are_not_read(tmp_path: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_picture(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg", shapes.photo(SIZE))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_text("{}")
    with pytest.raises(UserError, match="no masks as pictures"):
        indexed("coco_20i", tmp_path)
