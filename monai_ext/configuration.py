"""The MONAI config that is running: what it holds with its overlays and the command line's options.

MONAI hands its parser to no expression of a config, so :func:`running_parser` looks for it among the callers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

PROGRAM = frozenset({"_meta_", "imports", "initialize", "run", "finalize"})
"""Entries that say what is done, not with what."""

PLACES = frozenset(
    {
        *("bundle_root", "datalist", "datalist_file", "data_root", "dataset_dir", "output_dir", "run_dir", "shard"),
        *("checkpoint", "weights", "device", "threads"),
    }
)
"""Entries, the same in all bundles, that say where things are and what computes. The contents of the files decide a
result, not where they lie."""


def running_parser() -> ConfigParser | None:
    """Return the parser whose ``$`` expression or ``_target_`` is making this call; None outside of one."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            return caller
        frame = frame.f_back
    return None


def deciding_config(parser: ConfigParser | None, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Return what a config holds that decides a result: references to plain values replaced, expressions as text.

    An expression stays the text that it is: what it refers to stands beside it, and the code that it calls and the
    files that it reads are for the caller to compare.

    Args:
        parser: of the config; None gives an empty dictionary.
        leave_out: names of entries, besides :data:`PROGRAM` and :data:`PLACES`; references to them stay as text.
    """
    hidden = {*PROGRAM, *PLACES, *leave_out}
    content = {} if parser is None else parser.get()
    return {key: _resolve(parser, value, hidden) for key, value in content.items() if key not in hidden}


def described_config(parser: ConfigParser | None) -> dict[str, Any]:
    """Return what a config holds for a reader: as :func:`deciding_config`, :data:`PLACES` and known values besides.

    An expression that has been evaluated to a plain value (``$list(@labels)``) is replaced by it; others stay as text,
    as do references to components and to :data:`PLACES`.

    Args:
        parser: of the config, after the run; None gives an empty dictionary.
    """
    content = {} if parser is None else parser.get()
    return {
        key: _resolve(parser, value, () if key in PLACES else PLACES, key, values=True)
        for key, value in content.items()
        if key not in PROGRAM
    }


def _resolve(
    parser: ConfigParser | None, value: Any, hidden: Collection[str], name: str = "", values: bool = False
) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolve(parser, entry, hidden, f"{name}::{key}", values) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolve(parser, entry, hidden, f"{name}::{place}", values) for place, entry in enumerate(value)]
    if not isinstance(value, str) or parser is None:
        return value
    if re.fullmatch(r"@[\w:#]+", value):
        target = value[1:].replace("#", "::")
        if target.partition("::")[0] in hidden or target not in parser:
            return value
        found = _resolve(parser, parser[target], hidden, target, values)
        return value if is_program(found) else found
    if value.startswith("$") and values:
        known = _plain(parser.ref_resolver.resolved_content.get(name, parser))
        return value if known is None else known[0]
    return value


def is_program(value: Any) -> bool:
    """Whether an entry of a config holds a component, an expression or a reference that could not be replaced."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(is_program, value.values()))
    if isinstance(value, list):
        return any(map(is_program, value))
    return isinstance(value, str) and value[:1] in ("$", "@")


def _plain(value: Any) -> tuple[Any] | None:
    """Return a value as a reader wants it, in a tuple; None where it is an object, or holds objects or nothing."""
    if isinstance(value, (Path, torch.device, torch.dtype)):
        return (str(value),)
    if isinstance(value, (Mapping, list, tuple)) and not value:
        return None  # a list of cases, perhaps, in a run that has none
    if isinstance(value, Mapping):
        return (dict(value),) if all(map(_is_number_or_text, value.values())) else None
    return (value,) if _is_number_or_text(value) else None


def _is_number_or_text(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_number_or_text, value))
    return value is None or isinstance(value, (bool, int, float, str))


def first_difference(one: Any, other: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Name the first entry in which two nested settings differ, and what it is in both."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}, key=str):
            found = first_difference(one.get(key), other.get(key), f"{name}#{key}" if name else str(key))
            if found:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((found for i, (a, b) in pairs if (found := first_difference(a, b, f"{name}#{i}"))), None)
    return None if one == other else (name, one, other)
