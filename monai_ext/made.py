"""Folders and files that a run makes before its first case or step; they are removed where a mistake ends the run.

Stored slices stay: they are whole, and the next start takes them over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from monai_ext.files import ensure_writable_folder

_folders: list[Path] = []  # removed if they are empty
_contents: list[Path] = []  # removed with all that is in them
_files: list[Path] = []


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder where there is none, and try whether it takes a file; see :func:`ensure_writable_folder`."""
    folder = Path(path).expanduser().absolute()
    missing = [one for one in (folder, *folder.parents) if not os.path.exists(one)]  # also of names that are too long
    try:
        return ensure_writable_folder(folder)
    finally:
        _folders.extend(one for one in missing if os.path.isdir(one))


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Make a folder and fill it; one that was there before is left alone by :func:`remove_made`."""
    is_new = not folder.exists()
    make_folder(folder)
    if is_new:
        _contents.append(folder)
    yield folder


def note_file(path: str | os.PathLike) -> None:
    """Say that a file is about to be written; one that is there already is left alone by :func:`remove_made`."""
    file = Path(path).expanduser().absolute()
    if not file.exists():
        _files.append(file)
        _folders.extend(one for one in file.parents if not one.exists())


def keep_made() -> None:
    """Keep what has been made: the first case or step begins."""
    _folders.clear()
    _contents.clear()
    _files.clear()


def remove_made() -> None:
    """Remove what has been made since the process began or :func:`keep_made`."""
    for file in _files:
        with suppress(OSError):
            file.unlink()
    for folder in _contents:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in sorted(_folders, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):  # somebody else has put something there
            folder.rmdir()
    keep_made()
