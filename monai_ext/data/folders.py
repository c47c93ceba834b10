"""What lies in a folder and below: one way to look, which follows links."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from monai_ext.data.images import VOLUME_SUFFIXES
from monai_ext.errors import UserError

_NUMBERS = re.compile(r"([0-9]+)")


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Return a sorting key under which "frame2" comes before "frame10"."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in _NUMBERS.split(text)]


def walk(root: Path, *, once: bool = False) -> Iterator[tuple[Path, list[Path]]]:
    """Go through a folder and all below it, in the order of their names.

    Links to folders and files are followed, and paths are those that a user sees: a file that two links lead to is
    there twice. A folder is not entered again from within itself, so a circle of links ends. A link that leads nowhere
    counts as a file, so that it is named when it is opened. Left out are hidden files and folders, what macOS adds to
    archives, and what a former run has converted (a folder ``NAME_files`` beside ``NAME.json``).

    Args:
        root: the folder.
        once: enter each real folder once, whatever links lead to it, for files that say themselves what they are of,
            as DICOM does.

    Yields:
        Each folder and the files in it.

    Raises:
        UserError: there is no such folder, or one below cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; correct its name")
    yield from _walk(root, (), set() if once else None)


def _walk(folder: Path, above: tuple[str, ...], seen: set[str] | None) -> Iterator[tuple[Path, list[Path]]]:
    real = os.path.realpath(folder)
    if real in above or (seen is not None and real in seen):
        return
    if seen is not None:
        seen.add(real)
    try:
        entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}); make it readable") from error
    folders = [entry.name for entry in entries if entry.is_dir()]
    files = [entry.name for entry in entries if entry.is_file() or (entry.is_symlink() and not entry.is_dir())]
    yield folder, [folder / name for name in files]
    apart = {"__MACOSX", *(f"{name[:-5]}_files" for name in files if name.endswith(".json"))}
    for name in folders:
        if name not in apart:
            yield from _walk(folder / name, (*above, real), seen)


def files_below(root: Path, suffixes: tuple[str, ...] = VOLUME_SUFFIXES) -> list[Path]:
    """Return all files with one of the suffixes in a folder and below (:func:`walk`), in natural order of their paths.

    Raises:
        UserError: there is no such folder.
    """
    found = (path for _, files in walk(root) for path in files if path.name.lower().endswith(suffixes))
    return sorted(found, key=lambda path: natural(str(path)))


def folders_below(root: Path, name: str) -> list[Path]:
    """Return all folders of a name below another (:func:`walk`), in natural order of their paths.

    Raises:
        UserError: there is no such folder.
    """
    return sorted((folder for folder, _ in walk(root) if folder.name == name), key=lambda path: natural(str(path)))
