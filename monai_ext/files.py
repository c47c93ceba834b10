"""Files: written completely or not at all, checksums, and a memory of what was read of them.

A run needs header and checksum of each of its files in several places: in the checks before the first case, in the key
of a finished case, beside each mask and in ``run.json``. They are read once and remembered, as long as the file is the
same.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, Generic, TypeAlias, TypeVar

from monai_ext.errors import UserError

PathLike: TypeAlias = str | os.PathLike[str]
FileState: TypeAlias = tuple[int, ...]
T = TypeVar("T")

CLOCK_TICK = 0.05
"""Seconds after which a file that is written again has another time stamp: kernels' clocks tick every 1 to 10 ms."""
COARSE_TICK = 2.0
"""The same for file systems that count in whole seconds (FAT: in twos)."""

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_WRITE_ERRORS = (
    *_NOT_WRITABLE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


def file_state(path: PathLike) -> FileState | None:
    """Return what changes when a file is written again or replaced: device, inode, size and times.

    None for a file that does not exist, or that was written just now: it could be written again without a trace, since
    time stamps have ticks.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return None
    tick = COARSE_TICK if stat.st_mtime.is_integer() and stat.st_ctime.is_integer() else CLOCK_TICK
    if time.time() - max(stat.st_mtime, stat.st_ctime) < tick:
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class FileMemory(Generic[T]):
    """Remembers one thing about each file, such as its checksum, until the file changes; for this process alone.

    Example:
        >>> memory: FileMemory[str] = FileMemory()
        >>> memory.find("list.json", read_text)  # reads the file
        >>> memory.find("list.json", read_text)  # does not, unless it has changed
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[FileState, T]] = {}

    def find(self, path: PathLike, read: Callable[[PathLike], T]) -> T:
        """Return what is known of a file as it is now; ``read`` it if nothing is."""
        state = file_state(path)
        known = self._known.get(os.path.abspath(path))
        if known is not None and known[0] == state:
            return known[1]
        value = read(path)
        self.note(path, state, value)
        return value

    def note(self, path: PathLike, state: FileState | None, value: T) -> None:
        """Remember what was read of a file, unless it has changed meanwhile.

        Args:
            path: the file.
            state: :func:`file_state` before it was opened; None: do not remember it.
            value: what was read.
        """
        if state is not None and file_state(path) == state:
            self._known[os.path.abspath(path)] = (state, value)


_CHECKSUMS: FileMemory[str] = FileMemory()


def sha256_of(path: PathLike) -> str:
    """Return the SHA-256 checksum of a file in hexadecimal digits; a file that has not changed is read once."""
    return _CHECKSUMS.find(path, _read_sha256)


def note_sha256(path: PathLike, state: FileState | None, stream: BinaryIO) -> None:
    """Let :func:`sha256_of` know the checksum of a file that is open anyway.

    Args:
        path: the file.
        state: :func:`file_state` before it was opened.
        stream: the open file; it is read from its beginning to its end.
    """
    stream.seek(0)
    _CHECKSUMS.note(path, state, _hash(stream))


def _read_sha256(path: PathLike) -> str:
    with open(path, "rb") as stream:
        return _hash(stream)


def _hash(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Write a file completely or not at all.

    Yields a temporary path in the same folder with the same suffixes (so that libraries choose the right
    format), renamed to ``path`` when the block ends well and removed when it does not. The folder is made if
    need be.

    Raises:
        UserError: the folder does not take the file (permission, space, name).
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        elsewhere = error.errno == errno.ENOENT and str(error.filename) not in map(
            str, (temporary, path, *path.parents)
        )  # a file that the caller reads
        if error.errno not in _WRITE_ERRORS or elsewhere:
            raise
        raise UserError(f"cannot write {path}: {_reason(error)}; write somewhere else") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def ensure_writable_folder(path: PathLike) -> Path:
    """Make a folder where there is none, and try before a long run whether it takes a file.

    Returns:
        The folder's absolute path.

    Raises:
        UserError: it cannot be made, or nothing can be written into it.
    """
    folder = Path(path).expanduser().absolute()
    probe = folder / f".{uuid.uuid4().hex[:8]}-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {_reason(error)}; write somewhere else") from error
    return folder


@cache
def source_sha256() -> str:
    """Return a hash of this package's source as a whole: who changes it wants results made anew."""
    return hash_source(Path(__file__).parent)


def hash_source(folder: Path) -> str:
    """Return a hash over the names and contents of all Python files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _reason(error: OSError) -> str:
    return "no write permission" if error.errno in _NOT_WRITABLE else error.strerror or str(error)
