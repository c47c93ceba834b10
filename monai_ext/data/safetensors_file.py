"""What a safetensors file says of itself: the record of its weights, and the checksum of its tensors.

One file holds both, so that it can lie beside the ``.pt`` that it was made of, whose record is another file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from monai_ext.files import FileMemory, PathLike

SUFFIX = ".safetensors"
RECORD = "record"
TENSORS_SHA256 = "tensors_sha256"
CHUNK = 2**20

_TENSORS: FileMemory[str] = FileMemory()


def read_metadata(path: PathLike) -> dict[str, str]:
    """Return the texts in the header of a safetensors file; none where it is no such file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            content = json.loads(file.read(length)) if length < 2**27 else {}
    except (OSError, ValueError):
        return {}
    return dict(content.get("__metadata__") or {}) if isinstance(content, dict) else {}


def tensors_sha256(path: PathLike) -> str:
    """Return the sha256 of all bytes behind the header of a safetensors file: its tensors."""
    return _TENSORS.find(path, _hash_tensors)


def _hash_tensors(path: PathLike) -> str:
    digest = hashlib.sha256()
    with open(Path(path), "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
