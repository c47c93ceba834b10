"""Runs of a bundle from Python, one after the other: its configs by name, options that they declare, the run itself."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from monai_ext.configuration import deciding_config
from monai_ext.errors import UserError


def read_configs(option: str, files: Sequence[str]) -> ConfigParser:
    """Read configs and overlays that belong together.

    Args:
        option: of the command line that names them.
        files: their paths.

    Raises:
        UserError: they cannot be read.
    """
    try:
        return ConfigParser(ConfigParser.load_config_files(list(files)))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{option} {', '.join(files)} cannot be read together ({error})") from error


def run_bundle(files: Sequence[str], kind: str, options: Mapping[str, Any]) -> None:
    """Do as ``python -m monai.bundle run`` does; ``kind`` is ``infer`` or ``train``."""
    workflow = ConfigWorkflow(list(files), logging_file=False, workflow_type=kind, **options)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def meaning(parser: ConfigParser, options: Mapping[str, Any]) -> str:
    """Return the configuration that decides a run, as text: options that come to the same have the same."""
    config = ConfigParser(deepcopy(parser.get()))
    config.update({name.replace("#", "::"): value for name, value in options.items()})
    return json.dumps(deciding_config(config, {"algorithm"}), sort_keys=True, default=str)


def refuse_unknown(option: str, parser: ConfigParser, options: Mapping[str, Any]) -> None:
    """Refuse options that no config declares.

    Args:
        option: of the command line that names the configs.
        parser: of the configs.
        options: a component's argument by ``component#argument``.

    Raises:
        UserError: for the first that is unknown; names one that is alike.
    """
    for name in options:
        if not _is_declared(parser, name):
            near = difflib.get_close_matches(name, [str(key) for key in parser.get()], n=1)
            hint = f"; did you mean {near[0]}?" if near else ": see the block of options on top of the first config"
            raise UserError(f"no config of {option} has the option {name!r}{hint}")


def _is_declared(parser: ConfigParser, name: str) -> bool:
    """Tell whether an option is there, or a further argument of a component that is."""
    path = name.replace("#", "::")
    parent = path.rpartition("::")[0]
    component = parser[parent] if parent and parent in parser else None
    return path in parser or (isinstance(component, dict) and "_target_" in component)


def find_config(bundle_root: Path, name: str) -> Path:
    """Return the file of a config, given as a path or by its name in the bundle's ``configs``.

    Raises:
        UserError: there is none.
    """
    folder = bundle_root / "configs"
    for path in (Path(name), folder / name, folder / f"{name}.yaml"):
        if path.is_file():
            return path
    there = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
    raise UserError(f"there is no config {name!r} in {folder} ({there}); is --bundle_root right?")
