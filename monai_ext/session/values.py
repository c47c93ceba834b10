"""Whether a value of the command line is of the kind that its option takes, which the option's default shows.

``python -m monai.bundle run`` hands over what fire makes of a word: ``1.5`` is a number; ``true`` and ``null``, which
YAML knows, stay text (and text counts as true). :func:`read_value` reads a word as YAML would, and refuses what no
value of the default's kind can be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from monai_ext.errors import UserError

WORDS = {"true": True, "false": False, "null": None}
"""YAML's words that fire leaves as text."""

RANGES = re.compile(r"[0-9 ,-]+")
"""Numbers and spans of numbers in text, such as "1,5-10"."""


class _UnfitError(Exception):
    """The value is of another kind; says what is expected."""


def is_expression(value: object) -> bool:
    """Whether MONAI evaluates or looks up the value: ``$...``, ``@...``, ``%...``."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def read_value(option: str, value: Any, default: Any, text: str | None = None) -> Any:
    """Return a value of the command line as the option takes it.

    Args:
        option: its name, for the sentence of an error.
        value: what fire made of it.
        default: what the config declares: its kind is the option's. None, an expression or a component takes anything.
        text: the word as it was typed, where there is one.

    Raises:
        UserError: the value cannot be of the default's kind.
    """
    if is_expression(value):
        return value
    try:
        return _read(value, default, str(value) if text is None else text)
    except _UnfitError as expected:
        shown = value if text is None else text
        raise UserError(f"--{option} is {shown}: {expected} is expected, such as {_example(default)}.") from None


def _read(value: Any, default: Any, text: str) -> Any:
    if default is None or is_expression(default) or (isinstance(default, Mapping) and "_target_" in default):
        return WORDS.get(value.lower(), value) if isinstance(value, str) else value
    if isinstance(default, bool):
        return _read_switch(value)
    if isinstance(default, (int, float)):
        return _read_number(value, whole=isinstance(default, int))
    if isinstance(default, str):
        return _read_text(value, text)
    if isinstance(default, Mapping):
        return _read_mapping(value, default)
    return _read_list(value, default) if isinstance(default, (list, tuple)) else value


def _read_switch(value: Any) -> bool:
    found = WORDS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise _UnfitError("true or false")
    return found


def _read_number(value: Any, whole: bool) -> Any:
    """Read a number; ``1e5`` and ``2.0`` are whole."""
    if is_expression(value):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _UnfitError("a whole number" if whole else "a number")
    if whole and value != int(value):
        raise _UnfitError("a whole number")
    return int(value) if whole else value


def _read_text(value: Any, text: str) -> str:
    """Read text: fire makes a number of ``2024`` and a tuple of ``visit,patient``."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list) or value is None or text.startswith("("):
        raise _UnfitError("text")
    return text


def _read_mapping(value: Any, default: Mapping[str, Any]) -> Any:
    if not isinstance(value, Mapping):
        raise _UnfitError("an object of names and values")
    if default and all(map(_is_number, default.values())):
        for entry in value.values():
            _expect(_is_number(entry) or is_expression(entry), "an object of names and numbers")
    return value


def _read_list(value: Any, default: Sequence[Any]) -> Any:
    """Read a list; a single number or text such as ``1,5-10`` is left to the function that takes it."""
    if not default:
        return value
    if all(map(_is_number, default)):
        whole = not any(isinstance(entry, float) for entry in default)
        expected = "a list of whole numbers" if whole else "a list of numbers"
        if isinstance(value, str):
            _expect(RANGES.fullmatch(value) is not None, expected)
            return value
        for entry in value if isinstance(value, (list, tuple)) else [value]:
            fits = _is_number(entry) and (not whole or entry == int(entry))
            _expect(fits or is_expression(entry), expected)
        return value
    _expect(not isinstance(value, Mapping | bool), "a list")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _expect(fits: bool, expected: str) -> None:
    if not fits:
        raise _UnfitError(expected)


def _example(default: Any) -> str:
    """Return a default as one would type it."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (list, tuple, dict)):
        return f'"{default}"'
    return str(default)
