from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monai_ext.data.indexing import INDEXERS
from monai_ext.data.indexing.index import Options
from monai_ext.data.indexing.writing import index
from monai_ext.data.manifest import load_datalist
from monai_ext.errors import UserError


@pytest.fixture
def tree(tmp_path: Path, shapes: Any) -> Path:
    root = tmp_path / "data" / "mine"
    shapes.save_volume(root / "images" / "a.nii.gz")
    shapes.save_volume(root / "labels" / "a.nii.gz", shapes.rings((1,)))
    return root


def test_files_below_the_list_are_relative_and_move_with_it(tree: Path, tmp_path: Path) -> None:
    index("folder", tree, tree.parent / "mine.json", Options(labels={"liver": 1}))
    assert json.loads((tree.parent / "mine.json").read_text())["cases"][0]["image"] == "mine/images/a.nii.gz"
    tree.parent.rename(tmp_path / "moved")
    assert load_datalist(tmp_path / "moved" / "mine.json").cases[0].label


def test_files_elsewhere_are_absolute_and_it_is_said(tree: Path, tmp_path: Path) -> None:
    report = index("folder", tree, tmp_path / "lists" / "mine.json", Options(labels={"liver": 1}))
    assert "paths are absolute" in report
    assert os.path.isabs(json.loads((tmp_path / "lists" / "mine.json").read_text())["cases"][0]["image"])


def test_a_link_that_leaves_the_list_s_folder_is_named_in_full(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "link").symlink_to(tree)
    index("folder", tmp_path / "project" / "link", tmp_path / "project" / "l.json", Options(labels={"liver": 1}))
    assert load_datalist(tmp_path / "project" / "l.json").cases


def test_what_was_skipped_stands_in_the_list(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(tree / "labels" / "lonely.nii.gz", shapes.rings((1,)))
    datalist, _ = indexed("folder", tree)
    (skipped,) = datalist.model_extra["indexing"]["skipped"]
    assert skipped["what"].endswith("lonely.nii.gz")
    assert skipped["why"] == "a label without an image of this name"


def test_each_reason_is_said_where_nothing_is_left(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    shapes.save_volume(tree / "labels" / "lonely.nii.gz", shapes.rings((1,)))
    shapes.save_volume(tree / "labels" / "a.nii.gz", shapes.rings((9,)))
    with pytest.raises(UserError, match=r"skipped 2; .*a label without an image.*; a: .* holds the value 9"):
        indexed("folder", tree, labels={"liver": 1})


def test_many_reasons_are_cut_short(tree: Path, indexed: Callable[..., Any], shapes: Any) -> None:
    for number in range(15):
        shapes.save_volume(tree / "images" / f"b{number}.nii.gz")
        shapes.save_volume(tree / "labels" / f"b{number}.nii.gz", shapes.rings((100 + number,)))
    _, report = indexed("folder", tree, labels={"liver": 1})
    assert "skipped: 15" in report
    assert "and 5 further reasons" in report


def test_the_same_tree_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        index("folder", tree, tmp_path / name, Options(labels={"liver": 1}))
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


# Mistakes


@pytest.mark.parametrize("name", sorted(INDEXERS))
def test_an_empty_folder_is_one_sentence_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        index(name, tmp_path / "empty", tmp_path / "list.json")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_nothing_usable_is_an_error_with_the_first_reason(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no case of folder can be used \(skipped 1; a: .*holds the value 1"):
        index("folder", tree, tmp_path / "list.json", Options(labels={"liver": 2}))
    assert not (tmp_path / "list.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["ACDC", "CHAOS_T2", "CVC_ClinicDB"])
def test_real_cases_are_indexed_as_a_folder(real_data: Path, indexed: Callable[..., Any], dataset: str) -> None:
    given = load_datalist(real_data / f"{dataset}.json")
    found, report = indexed("folder", real_data / dataset, labels=given.labels, ignore=given.ignore)
    assert {Path(case.label).resolve() for case in found.cases} == {Path(case.label).resolve() for case in given.cases}
    assert "skipped: nothing" in report
