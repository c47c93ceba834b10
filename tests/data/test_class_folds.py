"""Folds of classes."""

from __future__ import annotations

import pytest

from monai_ext.data.cards import load_card
from monai_ext.data.class_folds import FOLDS, STRIDED, novel_classes
from monai_ext.errors import UserError


def test_folds_are_those_of_the_papers():
    assert novel_classes("pascal_5i", 3) == ["pottedplant", "sheep", "sofa", "train", "tvmonitor"]
    assert novel_classes("coco_20i", 0)[:3] == ["person", "airplane", "boat"]
    assert novel_classes("coco_20i", 3)[-1] == "toothbrush"


@pytest.mark.parametrize("name", STRIDED)
def test_each_class_is_tested_once(name):
    tested = [one for fold in range(FOLDS) for one in novel_classes(name, fold)]
    assert sorted(tested) == sorted(load_card(name).labels)


@pytest.mark.parametrize(("name", "fold", "words"), [("acdc", 0, "'acdc' has no folds"), ("coco_20i", 4, "is 4")])
def test_others_are_refused(name, fold, words):
    with pytest.raises(UserError, match=words):
        novel_classes(name, fold)
