"""Checksums, and what is remembered of a file."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

import monai_ext
from monai_ext.errors import UserError
from monai_ext.files import (
    FileMemory,
    atomic_path,
    ensure_writable_folder,
    file_state,
    hash_source,
    note_sha256,
    sha256_of,
    source_sha256,
)


def written(path: Path, text: str, seconds_ago: float = 10.0) -> Path:
    """A file that looks as if it had been written some time ago."""
    path.write_text(text)
    then = time.time() - seconds_ago
    os.utime(path, (then, then))
    return path


@pytest.fixture
def read() -> list[str]:
    return []


@pytest.fixture
def text_of(read, monkeypatch):
    """Read a text through a memory that takes every file for old enough."""
    monkeypatch.setattr("monai_ext.files.CLOCK_TICK", 0)
    memory: FileMemory[str] = FileMemory()

    def look(path) -> str:
        read.append(str(path))
        return Path(path).read_text()

    return lambda path: memory.find(path, look)


def test_a_file_is_read_once(tmp_path, text_of, read, monkeypatch):
    path = written(tmp_path / "file", "one")
    monkeypatch.chdir(tmp_path)
    assert [text_of(path), text_of(str(path)), text_of("file")] == ["one"] * 3
    assert read == [str(path)]


@pytest.mark.parametrize("text", ["two", "three"])
def test_a_file_that_changed_is_read_again(tmp_path, text_of, text):
    path = written(tmp_path / "file", "one")
    assert text_of(path) == "one"
    written(path, text, seconds_ago=5)
    assert text_of(path) == text


def test_a_file_that_was_replaced_by_one_of_its_age_is_read_again(tmp_path, text_of):
    path, other = written(tmp_path / "file", "one"), written(tmp_path / "other", "two")
    assert text_of(path) == "one"
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert text_of(path) == "two"


def test_a_file_that_was_overwritten_and_given_its_old_time_is_read_again(tmp_path, text_of):
    path = written(tmp_path / "file", "one")
    assert text_of(path) == "one"
    stat = path.stat()
    time.sleep(0.02)  # a tick of the kernel's clock
    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert text_of(path) == "two"


def test_what_changes_while_it_is_read_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_ext.files.CLOCK_TICK", 0)
    path, memory = written(tmp_path / "file", "one"), FileMemory[str]()

    def slowly(path) -> str:
        text = Path(path).read_text()
        written(Path(path), "two", seconds_ago=5)
        return text

    assert memory.find(path, slowly) == "one"
    assert memory.find(path, lambda path: Path(path).read_text()) == "two"


def test_a_file_written_just_now_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_ext.files.CLOCK_TICK", 60)
    path = written(tmp_path / "file", "one")
    assert file_state(path) is None
    assert file_state(tmp_path / "none") is None
    monkeypatch.setattr("monai_ext.files.CLOCK_TICK", 0)
    assert file_state(path) is not None


def test_a_missing_file_raises_each_time(tmp_path, text_of, read):
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            text_of(tmp_path / "none")
    assert len(read) == 2


def test_the_checksum_of_an_open_file_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_ext.files.CLOCK_TICK", 0)
    path = written(tmp_path / "file", "one")
    state = file_state(path)
    with open(path, "rb") as stream:
        stream.read(2)
        note_sha256(path, state, stream)
    monkeypatch.setattr("builtins.open", None)
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()


def test_checksum_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_source_counts_as_a_whole(tmp_path):
    keys = []
    for name, text in (("losses/a.py", "x"), ("losses/a.py", "y"), ("losses/b.py", "y"), ("notes.txt", "z")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        keys.append(hash_source(tmp_path))
    (tmp_path / "losses" / "b.py").rename(tmp_path / "losses" / "c.py")
    keys.append(hash_source(tmp_path))
    assert len(set(keys)) == 4
    assert keys[2] == keys[3], "not Python"


def test_the_source_is_that_of_the_package():
    assert source_sha256() == hash_source(Path(monai_ext.__file__).parent)


def write_half(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stopped")


def test_atomic_path_leaves_the_whole_file_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "mask.v1.nii.gz"
    with atomic_path(path) as temporary:
        assert (temporary.parent, temporary.suffixes) == (path.parent, path.suffixes)
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="stopped"):
        write_half(path)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["mask.v1.nii.gz"]


def test_folder_that_takes_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file.out: .*; write somewhere else"):
        ensure_writable_folder(tmp_path / "file" / "out")
    with (
        pytest.raises(UserError, match=r"cannot write .*mask\.nii: .*; write somewhere else"),
        atomic_path(tmp_path / "file" / "mask.nii") as temporary,
    ):
        temporary.touch()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_folder_that_nobody_can_make() -> None:
    with pytest.raises(UserError, match=r"cannot write /proc/x/mask\.nii: .*"), atomic_path("/proc/x/mask.nii"):
        pass


def test_a_missing_source_is_no_failure_to_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "mask.nii") as temporary:
        shutil.copy(tmp_path / "source.nii", temporary)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(UserError, match="no write permission; write somewhere else"):
            ensure_writable_folder(folder)


def test_permission_error_becomes_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UserError, match="no write permission"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    with pytest.raises(UserError, match="no write permission"):
        ensure_writable_folder(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_writable_folder_is_made_and_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = ensure_writable_folder("a/b")
    assert folder == tmp_path / "a" / "b"
    assert os.listdir(folder) == []
