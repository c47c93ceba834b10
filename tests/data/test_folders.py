from __future__ import annotations

from pathlib import Path

import pytest

from monai_ext.data.folders import files_below, folders_below, natural, walk
from monai_ext.errors import UserError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def found(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in files_below(root)]


def test_names_sort_by_their_numbers() -> None:
    assert sorted(["10.tif", "2.tif", "1.tif", "a2b10", "a2b9"], key=natural) == [
        "1.tif",
        "2.tif",
        "10.tif",
        "a2b9",
        "a2b10",
    ]


def test_what_is_hidden_or_converted_is_not_found_again(tmp_path: Path) -> None:
    for name in ("a/1.nii.gz", "list_files/2.nii.gz", "other_files/3.nii", "__MACOSX/4.nii", ".git/5.nii", "a/._1.nii"):
        touch(tmp_path / name)
    touch(tmp_path / "list.json")
    assert found(tmp_path) == ["a/1.nii.gz", "other_files/3.nii"]


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    root, far = tmp_path / "root", tmp_path / "far"
    touch(far / "1.nii")
    root.mkdir()
    (root / "near").symlink_to(far)
    (far / "circle").symlink_to(root)
    (far / "itself").symlink_to(far)
    (root / "up").symlink_to(root)
    assert found(root) == ["near/1.nii"]


def test_links_to_files_keep_their_own_names(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(tmp_path / "objects" / "MD5-abc.nii")
    root.mkdir()
    (root / "visit 1.nii").symlink_to(tmp_path / "objects" / "MD5-abc.nii")
    assert found(root) == ["visit 1.nii"]


def test_a_link_that_leads_nowhere_is_found_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "1.nii").symlink_to(tmp_path / "gone.nii")
    assert found(tmp_path) == ["1.nii"]


def test_two_links_to_one_folder_show_its_files_twice_unless_each_counts_once(tmp_path: Path) -> None:
    root, far = tmp_path / "root", tmp_path / "far"
    touch(far / "1.nii")
    root.mkdir()
    for name in ("a", "b"):
        (root / name).symlink_to(far)
    assert found(root) == ["a/1.nii", "b/1.nii"]
    assert [path for _, files in walk(root, once=True) for path in files] == [root / "a" / "1.nii"]


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "far" / "anat" / "1.nii")
    (tmp_path / "root").symlink_to(tmp_path / "far")
    assert found(tmp_path / "root") == ["anat/1.nii"]
    assert folders_below(tmp_path / "root", "anat") == [tmp_path / "root" / "anat"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: there is no such folder"):
        files_below(tmp_path / "none")
