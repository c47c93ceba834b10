"""Options of a `python -m monai.bundle run` command line: which are known.

`python -m monai.bundle run --sead 3` adds an unused key ``sead`` to the config and runs with the old seed, exit code 0.
:func:`check_options` refuses such options.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow, run, run_workflow

from monai_ext.errors import UserError


def check_options(argv: Sequence[str]) -> None:
    """Refuse options of a `python -m monai.bundle run` command line that would be ignored.

    An option is known if it is an argument of MONAI's ``run`` or its workflow, an id of the given config files, or a
    further argument of a component there (`--evaluator#amp true`), which that component checks. Other programs'
    command lines are left alone.

    Raises:
        UserError: names the unknown option and the nearest known one.
    """
    if len(argv) < 2 or Path(argv[0]).parts[-3:-1] != ("monai", "bundle") or argv[1] not in ("run", "run_workflow"):
        return
    given = _flags(argv[2:])
    arguments = {name for call in (run, run_workflow, ConfigWorkflow) for name in inspect.signature(call).parameters}
    arguments -= {"override", "kwargs"}
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(str(given.pop("args_file"))), **given}
    files = given.get("config_file")
    if files is None:
        return
    parser = ConfigParser(ConfigParser.load_config_files(files))
    for option in given:
        if option not in arguments and not _is_declared(option, parser):
            known = sorted(arguments | {str(key) for key in parser.get() or {}})
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean --{near[0]}?" if near else "see the block of options on top of the config file."
            raise UserError(f"unknown option --{option}, {hint}")


def _is_declared(option: str, parser: ConfigParser) -> bool:
    name = option.replace("#", "::")
    if name in parser:
        return True
    parent = name.rpartition("::")[0]
    component = parser[parent] if parent and parent in parser else None
    return isinstance(component, dict) and "_target_" in component


def _flags(words: Sequence[str]) -> dict[str, Any]:
    """Read ``--key value`` and ``--key=value`` as fire does; a bare ``--key`` is True, a bare ``--nokey`` False."""
    flags: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_flag(word):
            continue
        key, equals, text = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if equals:
            flags[key] = DefaultParseValue(text)
        elif position < len(words) and not _is_flag(words[position]):
            flags[key] = DefaultParseValue(words[position])
            position += 1
        elif key.startswith("no"):
            flags[key[2:]] = False
        else:
            flags[key] = True
    return flags


def _is_flag(word: str) -> bool:
    return word.startswith("--") or re.match("-[a-zA-Z]", word) is not None
