"""Checksums of files and of this package's source."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 checksum of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


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
