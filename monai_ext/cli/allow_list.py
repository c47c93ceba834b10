"""What a bundle's config may name: looked at before anything of it is executed.

MONAI imports whatever a config names by ``_target_`` and evaluates every text that begins with ``$``; it only warns.
:func:`refuse_foreign` reads the files as data and refuses what is not in the lists below. It is a check of names, not a
sandbox: what the listed functions do with their arguments, such as reading a file, is not looked at.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from monai_ext.data.text import read_text
from monai_ext.errors import UserError

IMPORTS = ("monai_ext",)
"""Packages that ``imports`` may name."""

TARGETS = (
    "monai_ext.",
    *(f"monai.{part}." for part in ("data", "engines", "handlers", "inferers", "losses", "metrics")),
    *("monai.networks.", "monai.optimizers.", "monai.transforms.", "torch.nn.", "torch.optim.", "torch.utils.data."),
)
"""What a ``_target_`` with dots may begin with. One without dots is a component of MONAI."""

BUILTINS = frozenset(
    {"dict", "list", "tuple", "len", "str", "int", "float", "bool", "min", "max", "sum", "range", "set"}
)
"""Python's own functions that a ``$`` expression may call."""

_REFERENCE = re.compile(r"@[\w#:]+")
_PLAIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_NODES = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Attribute, ast.Name, ast.Load, ast.Constant, ast.Starred),
    *(ast.Subscript, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop),
)


def refuse_foreign(files: Iterable[Path], trust: bool = False) -> None:
    """Refuse config files that name what is not in the lists.

    Args:
        files: YAML or JSON.
        trust: the user trusts them: nothing is refused.

    Raises:
        UserError: names the file, the entry and what it names.
    """
    if trust:
        return
    contents = {file: _read(file) for file in files}
    aliases = {alias for content in contents.values() for alias in _aliases(content)}
    for file, content in contents.items():
        for place, value in leaves(content):
            what = _foreign(place, value, aliases)
            if what:
                raise UserError(
                    f"{file}: {place} names {what}, which is not allowed in a config: read the file, and give --trust "
                    "if you trust who wrote it."
                )


def leaves(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every (place, value) of a config, and its keys, that is neither a list nor a dictionary."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, f"{place}#{key}" if place else str(key))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from leaves(value, f"{place}#{number}")
    else:
        yield place, content


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(read_text(file))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: the config cannot be read ({type(error).__name__}); correct it.") from error


def _aliases(content: Any) -> Iterator[str]:
    """Yield the names under which a config's imports are known in its expressions."""
    for _, value in leaves(content):
        for node in _statements(value):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)


def _statements(value: Any) -> list[ast.Import | ast.ImportFrom]:
    if not (isinstance(value, str) and re.match(r"\$\s*(import|from)\b", value)):
        return []
    try:
        return [node for node in ast.parse(value[1:].strip()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    except SyntaxError:
        return []


def _foreign(place: str, value: Any, aliases: set[str]) -> str | None:
    """Return what an entry names that it may not; None where all is well."""
    if not isinstance(value, str):
        return None
    if place.rpartition("#")[2] == "_target_":
        return None if is_allowed_target(value) else repr(value)
    if value.startswith("%"):
        return f"another file, {value!r}"
    if not value.startswith("$"):
        return None
    if re.match(r"\$\s*(import|from)\b", value):
        return None if is_allowed_import(value) else repr(value)
    return _foreign_name(value, aliases)


def is_allowed_target(value: str) -> bool:
    """Whether a ``_target_`` is a component of MONAI, or lies in one of :data:`TARGETS`.

    No part may be private, or a module that another one has imported, as in ``monai_ext.session.launch.os.system``.
    """
    parts = value.split(".")
    through = {*sys.stdlib_module_names, "torch", "monai", "numpy"} & set(parts[1:-1])
    if not _PLAIN.fullmatch(value) or any(part.startswith("_") for part in parts) or through:
        return False
    return "." not in value or value.startswith(TARGETS)


def is_allowed_import(value: str) -> bool:
    """Whether an import statement, ``$import ...``, names :data:`IMPORTS` alone."""
    statements = _statements(value)
    names = [alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in statements if isinstance(node, ast.ImportFrom)]
    whole = ast.parse(value[1:].strip()).body if statements else []
    return bool(names) and len(whole) == len(statements) and all(n.partition(".")[0] in IMPORTS for n in names)


def _foreign_name(value: str, aliases: set[str]) -> str | None:
    """Return what a ``$`` expression names besides references, imports and :data:`BUILTINS`."""
    try:
        tree = ast.parse(_REFERENCE.sub("_reference", value[1:].strip()), mode="eval")
    except SyntaxError:
        return f"an expression that cannot be read, {value!r}"
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return f"a program, {value!r}"
        if isinstance(node, ast.Name) and node.id not in {"_reference", *aliases, *BUILTINS}:
            return repr(node.id)
        if isinstance(node, ast.Attribute) and (node.attr.startswith("_") or _reaches_through(node, aliases)):
            return f"{ast.unparse(node)!r}"
    return None


def _reaches_through(node: ast.Attribute, aliases: set[str]) -> bool:
    """Whether ``alias.a.b`` goes through a module to what that module itself has imported, such as ``os``."""
    inner = node.value
    return isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id in aliases
