"""Options of a `python -m monai.bundle run` command line: which are known, of what kind, and what they mean.

`python -m monai.bundle run --sead 3` adds an unused key ``sead`` to the config and runs with the old seed, exit code 0.
:func:`check_options` refuses such options, arguments that a component does not have, and values of another kind than
the default's. :func:`describe_options` is what ``--help`` prints beside a ``--config_file``.
"""

from __future__ import annotations

import difflib
import inspect
import pydoc
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow, run, run_workflow
from monai.bundle.config_item import ComponentLocator
from monai.bundle.utils import merge_kv
from monai.utils import ensure_tuple

from monai_ext.configuration import PLACES
from monai_ext.data.text import read_text
from monai_ext.errors import UserError
from monai_ext.session.values import is_expression, read_value

HELP = ("h", "help")

PROGRAM = ("imports", "initialize", "run", "finalize")
"""Entries of a config that are no options."""

COMPONENT_KEYS = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_")
"""MONAI's own keys of a component."""


def check_options(argv: Sequence[str]) -> dict[str, Any]:
    """Refuse options of a `python -m monai.bundle run` command line that would be ignored, or make no sense.

    An option is known if it is an argument of MONAI's ``run`` or its workflow, an id of the given config files, or an
    argument of a component there (`--preprocessing#image_size 512`). Its value must be of the kind of the default, in
    the config or in the component's signature. Other programs' command lines are left alone. ``--help`` prints the
    options of the config files.

    Returns:
        id -> value of the options that MONAI has read as text and that mean something else: ``true``, ``null``.

    Raises:
        UserError: names the unknown option and the nearest known one, or the kind of value that is expected.
        SystemExit: after ``--help``, with exit code 0.
    """
    if len(argv) < 2 or Path(argv[0]).parts[-3:-1] != ("monai", "bundle") or argv[1] not in ("run", "run_workflow"):
        return {}
    words = [word for word in argv[2:] if word != "--"]  # fire's own flags follow "--"
    texts = _flags(words)
    given = {name: DefaultParseValue(text) if isinstance(text, str) else text for name, text in texts.items()}
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(str(given.pop("args_file"))), **given}
    files = given.get("config_file")
    if files is None:
        return {}
    if any(name in given for name in HELP):
        print(describe_options(files))
        raise SystemExit(0)
    arguments = {name for call in (run, run_workflow, ConfigWorkflow) for name in inspect.signature(call).parameters}
    arguments -= {"override", "kwargs"}
    config = _Config(files, arguments)
    read = {}
    for option, value in given.items():
        if option in arguments:
            continue
        text = texts.get(option)
        found = config.read(option, value, text if isinstance(text, str) else None)
        cut = isinstance(text, str) and isinstance(found, str) and text != found and text.startswith(f"{found}#")
        if cut or _holds_separator(found):  # fire, too, reads "a#1" as Python would: a, and a comment
            told = text or value
            raise UserError(f"--{option} is {told}: MONAI takes '#' for '::' in options; give a name without it.")
        if found is not value:
            read[option.replace("#", "::")] = found
    return read


def _holds_separator(value: Any) -> bool:
    """Whether an option's text, no reference or expression, holds what MONAI replaces: it would name another file."""
    if isinstance(value, Mapping):
        return any(map(_holds_separator, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_separator, value))
    return isinstance(value, str) and "#" in value and not is_expression(value)


class _Config:
    """The config files of a command line, before its options change them.

    Args:
        files: as given to ``--config_file``.
        arguments: of MONAI's ``run``, which stand beside the options.
    """

    def __init__(self, files: Any, arguments: set[str]) -> None:
        layers = [ConfigParser.load_config_file(file) for file in _split(files)]
        self.options = {name for file in _split(files) for name, _, _ in _declared(Path(file))}
        self.kinds = [{key: type(value) for key, value in layer.items()} for layer in layers]
        self.parser = ConfigParser({})
        for layer in layers:
            for key, value in layer.items():
                merge_kv(self.parser, key, value)
        self.arguments = arguments

    def read(self, option: str, value: Any, text: str | None) -> Any:
        """Return the value of an option; see :func:`read_value`.

        Raises:
            UserError: the option is unknown, its value is of another kind, or MONAI would ignore it.
        """
        name = option.replace("#", "::")
        self._check_place(option, name)
        self._check_part(option, name, value)
        default = self._default(name) if name in self.parser else self._argument_default(option)
        if value is None and default is not None:
            raise UserError(f"--{option} None is ignored by MONAI: write --{option} null.")
        return read_value(option, value, default, text)

    def _check_place(self, option: str, name: str) -> None:
        """Refuse to replace one use of a file or folder: records and other components would go on with the other one.

        Raises:
            UserError: the option is a component's argument that refers to one of :data:`PLACES`; names the option to
                give instead.
        """
        declared = self.parser[name] if "::" in name and name in self.parser else None
        reference = re.fullmatch(r"@(\w+)", str(declared))
        if reference is None or reference[1] not in PLACES:
            return
        value = self.parser.get(reference[1])
        computed = re.search(r"@(\w+)", str(value)) if is_expression(value) else None
        raise UserError(
            f"--{option} would replace one use of {reference[1]!r} while the run's record names the other one: give "
            f"--{(computed or reference)[1]}."
        )

    def _check_part(self, option: str, name: str, value: Any) -> None:
        """Refuse a plain value for a part of the config that is no option.

        Another expression, or a mapping that is a component or holds expressions, may replace it.

        Raises:
            UserError: names the options that a computed value comes from, or how a component is changed.
        """
        if name in self.options or "::" in name or name not in self.parser:
            return
        declared = self.parser[name]
        plain = isinstance(declared, Mapping) and "_target_" not in declared
        if is_expression(value) or (isinstance(value, Mapping) and (plain or _builds(value))):
            return
        if _is_computed(declared) or str(declared).startswith("@"):
            sources = [f"--{source}" for source in self._sources(name)[:5]]
            told = f"from {', '.join(sources)}: give one of these" if sources else "as it needs it: leave it out"
            raise UserError(f"--{option} is no option, the config computes it {told}.")
        if str(value).lower() in ("none", "null") or (isinstance(declared, list) and isinstance(value, (list, tuple))):
            return
        if isinstance(declared, Mapping):
            told = f"give its arguments by their names, --{option}#NAME VALUE, or a config file that replaces it"
            raise UserError(f"--{option} is no option but a part of the config: {told}.")
        if isinstance(declared, list):
            raise UserError(f"--{option} is no option but a list of the config: give a config file that replaces it.")

    def _sources(self, name: str) -> list[str]:
        """Return the options that an entry is computed from, by way of other entries too; the nearest ones first."""
        found: dict[str, None] = {}
        seen, left = set(), [name]
        while left:
            one = left.pop(0)
            for source in re.findall(r"@(\w+)", str(self.parser[one])):
                if source in self.options:
                    found[source] = None
                elif source in self.parser and source not in seen:
                    seen.add(source)
                    left.append(source)
        return list(found)

    def _default(self, name: str) -> Any:
        """Return the declared value of an id; None, of any kind, where it is computed or files differ in its kind."""
        kinds = {layer[name] for layer in self.kinds if name in layer}
        if len(kinds) > 1:
            return 0.0 if kinds == {int, float} else None
        parent, _, key = name.rpartition("::")
        component = self.parser[parent] if parent else None
        if isinstance(component, Mapping) and "_target_" in component:
            parameter = (_parameters(component) or {}).get(key)
            if parameter is not None and _kind(parameter) is None and not is_expression(self.parser[name]):
                return None
        value, seen = self.parser[name], {name}
        while isinstance(value, str) and value.startswith("@"):
            name = value[1:].replace("#", "::")
            if name in seen or name not in self.parser:
                return None
            seen.add(name)
            value = self.parser[name]
        return None if is_expression(value) else value

    def _argument_default(self, option: str) -> Any:
        """Return the default of a component's argument that the config leaves out.

        Raises:
            UserError: no component has such an argument.
        """
        separator = "#" if "#" in option else "::"
        parent, _, key = option.rpartition(separator)
        names = parent.replace("#", "::")
        component = self.parser[names] if parent and names in self.parser else None
        if not isinstance(component, Mapping) or "_target_" not in component:
            raise UserError(f"unknown option --{option}, {self._hint(option, separator)}")
        parameters = _parameters(component)
        if parameters is None or key in COMPONENT_KEYS:
            return None
        taken = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if key not in taken:
            if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                return None
            near = difflib.get_close_matches(key, taken, n=1)
            target = str(component["_target_"]).rpartition(".")[2]
            hint = f"did you mean --{parent}{separator}{near[0]}?" if near else f"{target} takes {', '.join(taken)}."
            raise UserError(f"unknown option --{option}, {hint}")
        return _simple_default(parameters[key])

    def _hint(self, option: str, separator: str) -> str:
        """Say which known option is nearest: the first part of the id that does not exist is the mistaken one."""
        parts = option.split(separator)
        there = 0
        while there < len(parts) and "::".join(parts[: there + 1]) in self.parser:
            there += 1
        parent = self.parser["::".join(parts[:there])] if there else self.parser.get() or {}
        known = {str(key) for key in parent} if isinstance(parent, Mapping) else set()
        known |= set() if there else self.arguments
        near = difflib.get_close_matches(parts[there], sorted(known), n=1)
        if near:
            return f"did you mean --{separator.join([*parts[:there], near[0], *parts[there + 1 :]])}?"
        if there:
            return f"did you mean --{separator.join(parts[:there])}?"
        return "see the block of options on top of the config file, or --help."


def _parameters(component: Mapping[str, Any]) -> Mapping[str, inspect.Parameter] | None:
    """Return the arguments of a component's target; None where they cannot be known."""
    if not isinstance(component["_target_"], str) or is_expression(component["_target_"]):
        return None
    path = ConfigComponent(dict(component), "", ComponentLocator()).resolve_module_name()
    try:
        return inspect.signature(pydoc.locate(path)).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError, ImportError, pydoc.ErrorDuringImport):
        return None


def _kind(parameter: inspect.Parameter) -> type | None:
    """Return the type of an argument that is annotated as a plain number, text, or true and false; else None."""
    name = getattr(parameter.annotation, "__name__", parameter.annotation)
    return {"bool": bool, "int": int, "float": float, "str": str}.get(str(name))


def _simple_default(parameter: inspect.Parameter) -> Any:
    """Return an argument's default, of the annotated type; None, of any kind, where the annotation allows several."""
    kind = _kind(parameter)
    return kind(parameter.default) if kind is not None and isinstance(parameter.default, (int, float, str)) else None


# ---- what --help prints ----------------------------------------------------------------------------------------------


def describe_options(files: Any) -> str:
    """List the options that config files declare, with their values and the comments beside them.

    Args:
        files: as given to ``--config_file``; where several declare an option, the last one's value counts.
    """
    found: dict[str, tuple[str, str]] = {}
    for file in _split(files):
        for name, value, comment in _declared(Path(file)):
            found[name] = (value, comment or found.get(name, ("", ""))[1])
    entries = {f"  --{name} {value}": comment for name, (value, comment) in found.items()}
    width = min(max(map(len, entries), default=0), 40)
    return "\n".join(
        [
            f"options of {', '.join(Path(file).name for file in _split(files))}, with their defaults:",
            "",
            *(f"{entry.ljust(width)}  {comment}".rstrip() for entry, comment in entries.items()),
            "",
            "Arguments of components go by their ids, --preprocessing#image_size 512.",
            "MONAI's own options: python -m monai.bundle run -- --help",
        ]
    )


def _declared(path: Path) -> list[tuple[str, str, str]]:
    """Read (name, value, comment) of the options of one file: entries up to the heading after them.

    Entries that are computed from others are options where they stand below the heading ``# ---- options``.
    """
    content = ConfigParser.load_config_file(path)
    lines = read_text(path).splitlines()
    headed = any(line.startswith("# ---- options") for line in lines)
    found: list[tuple[str, str, str]] = []
    for line in lines:
        if found and line.startswith("# ---"):
            break
        entry = re.match(r"(\w+):(.*)", line)
        more = re.match(r" +# *(.*)", line)
        if entry and _is_option(entry[1], content, headed):
            value, _, comment = entry[2].partition("  #") if "  #" in entry[2] else entry[2].partition(" # ")
            computed = _is_computed(content[entry[1]])
            found.append((entry[1], "(computed)" if computed else value.strip(), comment.strip()))
        elif more and found:
            name, value, comment = found[-1]
            found[-1] = (name, value, f"{comment} {more[1]}".strip())
    return found


def _is_option(name: str, content: Mapping[str, Any], headed: bool) -> bool:
    value = content.get(name)
    component = isinstance(value, Mapping) and "_target_" in value
    return name in content and name not in PROGRAM and not component and (headed or not _is_computed(value))


def _is_computed(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("$") and "@" in value and "(" in value


def _builds(value: Mapping[str, Any]) -> bool:
    """Whether a mapping is a component, or has an expression or reference among its values."""
    return "_target_" in value or any(
        _builds(part) if isinstance(part, Mapping) else is_expression(part) for part in value.values()
    )


def _split(files: Any) -> list[str]:
    """Return the single files of ``--config_file``; MONAI takes a list, or names with commas between."""
    if isinstance(files, str) and not Path(files).is_file():
        return files.split(",")
    return [str(file) for file in ensure_tuple(files)]


# ---- the command line ------------------------------------------------------------------------------------------------


def _flags(words: Sequence[str]) -> dict[str, str | bool]:
    """Read ``--key value`` and ``--key=value`` as fire does; a bare ``--key`` is True, a bare ``--nokey`` False."""
    flags: dict[str, str | bool] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_flag(word):
            continue
        key, equals, text = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if equals:
            flags[key] = text
        elif position < len(words) and not _is_flag(words[position]):
            flags[key] = words[position]
            position += 1
        elif key.startswith("no"):
            flags[key[2:]] = False
        else:
            flags[key] = True
    return flags


def _is_flag(word: str) -> bool:
    return word.startswith("--") or re.match("-[a-zA-Z]", word) is not None
