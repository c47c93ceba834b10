"""MONAI Label on a data list: ``python -m monai_ext.label LIST.json --output_dir DIR`` prepares it.

The command prints how to start the server; ``--demo`` starts it on a phantom patient, asks for one mask and compares it
with ``python -m monai.bundle run``.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from monai_ext.errors import UserError, report_user_errors
from monai_ext.label.demo import demo
from monai_ext.label.layout import prepare
from monai_ext.label.server import server_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, or run the demo."""
    report_user_errors()
    parser = argparse.ArgumentParser(prog="python -m monai_ext.label", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("datalist", nargs="?", help="data list whose cases become studies")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/label"))
    parser.add_argument("--bundle", type=Path, default=Path("bundles/p2sam"))
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--demo", action="store_true", help="serve a phantom patient and check its mask")
    given = parser.parse_args(arguments)
    if not (given.bundle / "configs" / "inference.yaml").is_file():
        raise UserError(f"{given.bundle} is no bundle: give --bundle the folder that holds configs/inference.yaml.")
    if given.demo:
        demo(given.output_dir.absolute(), given.bundle.absolute())
    elif given.datalist is None:
        raise UserError("no data list: name one, or --demo for a phantom patient.")
    else:
        app = prepare(given.datalist, given.output_dir, given.bundle)
        print(shlex.join(server_command(app, given.output_dir.absolute() / "studies", given.port, given.bundle.name)))


if __name__ == "__main__":
    main()
