"""What a result was made of: hashes over options and over the contents of files, wherever these lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from monai_ext.data.manifest import FILE_KEYS
from monai_ext.errors import UserError
from monai_ext.files import sha256_of

FILES = (*FILE_KEYS, "kept_mask")
"""Entries of a case that name files whose contents decide its result."""


def content_key(content: Any) -> str:
    """Return the sha256 of anything that JSON can hold; what it cannot counts as its text."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def case_contents(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a case with its files replaced by their suffix and sha256, so that paths do not count.

    Args:
        case: entries of :data:`FILES` name a file or several, the others are kept.

    Raises:
        UserError: for a file that cannot be read.
    """
    return {key: _contents(value) if key in FILES else value for key, value in case.items()}


def _contents(files: Any) -> Any:
    if isinstance(files, (str, PurePath)):
        try:
            return [PurePath(files).suffix.lower(), sha256_of(files)]
        except OSError as error:
            raise UserError(f"{files}: cannot be read ({error.strerror}); check the file's permissions") from error
    return None if files is None else [_contents(file) for file in files]
