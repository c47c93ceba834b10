"""Text files that somebody may have edited: one way to read them, whatever program saved them.

UTF-8 with or without a byte-order mark (Excel and Windows' editors write one), lines ended as on any system.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from monai_ext.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    return Path(path).read_bytes().decode("utf-8-sig")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or not JSON.
        RecursionError: it is nested too deep.
    """
    return json.loads(read_text(path))


def read_table(path: str | os.PathLike[str], fix: str, separator: str = ",") -> list[list[str]]:
    """Read a table: the cells of each line, the header first. Empty lines at the end, as Excel leaves them, are none.

    Args:
        path: of the file, which is there.
        fix: what to do about a file that is no table, for the sentence.
        separator: of the columns.

    Raises:
        UserError: it is not a table of text, or its columns are separated by something else.
    """
    try:
        text = read_text(path)
        told = re.match(r"sep=(.)\r?\n", text)  # a line that Excel understands and may leave in the file
        stream = io.StringIO(text[told.end() :] if told else text, newline="")
        lines = list(csv.reader(stream, delimiter=separator, strict=separator == ","))  # tabs: quotes are but text
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of text ({error}); {fix}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {fix}") from error
    while lines and not any(lines[-1]):
        lines.pop()
    other = told[1] if told else next((mark for mark in SEPARATORS if lines and _is_one(lines[0], mark)), separator)
    if other != separator:
        found, wanted = SEPARATORS.get(other, repr(other)), SEPARATORS[separator]
        raise UserError(f"{path}: its columns are separated by {found}; save it with {wanted} between the columns")
    return lines


def _is_one(header: list[str], mark: str) -> bool:
    """Tell whether a header was read as one column, but is several with another separator."""
    return len(header) == 1 and mark in header[0]
