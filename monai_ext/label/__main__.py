"""MONAI Label on a data list: ``python -m monai_ext.label LIST.json --output_dir DIR`` prepares it.

The command prints how to start the server; ``--demo`` starts it on a phantom patient, asks for one mask, compares it
with ``python -m monai.bundle run`` and stays up for a viewer; ``--check`` ends it there. ``--online`` prepares an app
that learns from each submitted label, for the bundle of an online method.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from monai_ext.errors import UserError, report_user_errors
from monai_ext.label.demo import demo, online_demo
from monai_ext.label.layout import prepare, prepare_online
from monai_ext.label.server import server_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, or run the demo."""
    report_user_errors()
    parser = argparse.ArgumentParser(prog="python -m monai_ext.label", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("datalist", nargs="?", help="data list whose cases become studies")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/label"))
    parser.add_argument("--bundle", type=Path, default=Path("bundles/p2sam"))
    parser.add_argument("--weights", metavar="NAME", help="of the bundle's models, such as compact_acdc; else model.pt")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--demo", action="store_true", help="serve a phantom patient and check its mask")
    parser.add_argument("--check", action="store_true", help="with --demo: end after the comparison")
    parser.add_argument("--online", action="store_true", help="an app that learns from each submitted label")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="with --online: of inference.yaml"
    )
    given = parser.parse_args(arguments)
    options = _read_options(given.option)
    if not (given.bundle / "configs" / "inference.yaml").is_file():
        raise UserError(f"{given.bundle} is no bundle: give --bundle the folder that holds configs/inference.yaml.")
    if options and not given.online:
        raise UserError("--option is of --online: the options of another app are those of its bundle's config.")
    if given.weights and (given.online or given.demo):
        raise UserError("--weights is of a data list that is served: leave it out with --online and --demo.")
    if given.demo and given.online:
        online_demo(given.output_dir.absolute(), given.bundle.absolute(), options)
    elif given.demo:
        demo(given.output_dir.absolute(), given.bundle.absolute(), stay=not given.check)
    elif given.datalist is None:
        raise UserError("no data list: name one, or --demo for a phantom patient.")
    else:
        make = partial(prepare_online, options=options) if given.online else partial(prepare, weights=given.weights)
        app = make(given.datalist, given.output_dir, given.bundle)
        print(shlex.join(server_command(app, given.output_dir.absolute() / "studies", given.port, given.bundle.name)))


def _read_options(words: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE, values as YAML."""
    found = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise UserError(f"--option {word}: write KEY=VALUE.")
        found[name] = yaml.safe_load(value)
    return found


if __name__ == "__main__":
    main()
