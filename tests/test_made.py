from __future__ import annotations

import pytest

from monai_ext import made
from monai_ext.errors import UserError


@pytest.fixture(autouse=True)
def _nothing_made():
    made.keep_made()
    yield
    made.keep_made()


def test_what_was_made_is_removed_up_to_the_first_folder_that_was_there(tmp_path):
    made.make_folder(tmp_path / "a" / "b")
    with made.making(tmp_path / "a" / "phantom") as folder:
        (folder / "list.json").write_text("")
    made.remove_made()
    assert list(tmp_path.iterdir()) == []


def test_what_others_made_stays(tmp_path):
    (tmp_path / "phantom").mkdir()
    (tmp_path / "phantom" / "old.json").write_text("")
    with made.making(tmp_path / "phantom"):
        pass
    made.make_folder(tmp_path / "out")
    (tmp_path / "out" / "of_another_run").write_text("")
    made.remove_made()
    assert (tmp_path / "phantom" / "old.json").is_file()
    assert (tmp_path / "out" / "of_another_run").is_file()


def test_a_run_that_has_begun_keeps_all(tmp_path):
    made.make_folder(tmp_path / "out")
    made.keep_made()
    made.remove_made()
    assert (tmp_path / "out").is_dir()


def test_folders_made_on_the_way_to_one_that_cannot_be_made_are_removed(tmp_path):
    with pytest.raises(UserError, match="cannot write to"):
        made.make_folder(tmp_path / "a" / ("x" * 300))
    made.remove_made()
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_is_removed_and_an_old_one_is_not(tmp_path):
    (tmp_path / "old.json").write_text("")
    for name in ("old.json", "new.json", "supports/mask.png"):
        made.note_file(tmp_path / name)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    made.remove_made()
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
