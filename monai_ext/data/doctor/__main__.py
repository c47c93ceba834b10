"""Examine a data list or a folder of DICOM files: ``python -m monai_ext.data.doctor list.json``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_ext.data.doctor.dicom import read_folder
from monai_ext.data.doctor.examine import FOLDER_CHECKS, LIST_CHECKS, WORKERS, all_checks, read_facts_of
from monai_ext.data.doctor.findings import Finding, run_checks, stops
from monai_ext.data.doctor.report import describe, folder_summary, list_summary, to_json, to_text
from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES
from monai_ext.errors import UserError, report_user_errors

_EXAMPLES = """\
examples:
  python -m monai_ext.data.doctor acdc.json                 read every file once, list all that is wrong
  python -m monai_ext.data.doctor acdc.json --fast          headers only
  python -m monai_ext.data.doctor acdc.json --split test --json > findings.json
  python -m monai_ext.data.doctor downloads/patient1/       a folder of DICOM files
  python -m monai_ext.data.doctor --list_checks             what is looked for, and why

The exit code is 0 when nothing stops a run, 1 when something does.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    report_user_errors()
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.list_checks:
        print(describe(all_checks()))
        return
    if given.source is None:
        parser.error("name a data list or a folder of DICOM files")
    started = time.perf_counter()
    summary, findings = _examine(given)
    seconds = time.perf_counter() - started
    text = to_json(summary, findings, seconds) if given.json else to_text(summary, findings, seconds, given.all)
    try:
        print(text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"), flush=True)
    except BrokenPipeError:  # as of "| head": the exit code is still that of the findings
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if stops(findings):
        sys.exit(1)


def _examine(given: argparse.Namespace) -> tuple[dict[str, Any], list[Finding]]:
    source = Path(given.source).expanduser()
    if source.is_dir():
        folder = read_folder(source)
        return folder_summary(folder), run_checks(FOLDER_CHECKS, folder)
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder; name a data list or a folder of DICOM files")
    if source.name.lower().endswith(VOLUME_SUFFIXES + FRAME_SUFFIXES):
        raise UserError(f"{source}: this is an image; name a data list (JSON) or a folder of DICOM files")
    facts = read_facts_of(
        source,
        given.data_root,
        split=given.split,
        fold=given.fold,
        fast=given.fast,
        follow_up=None if given.follow_up is None else given.follow_up == "yes",
        workers=given.workers,
        progress=sys.stderr.isatty(),
    )
    return list_summary(facts), run_checks(LIST_CHECKS, facts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m monai_ext.data.doctor",
        description="Find what is wrong with a data list and its files, or with a folder of DICOM files.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="LIST|FOLDER", nargs="?", help="data list (JSON), or folder of DICOM files")
    parser.add_argument("--data_root", metavar="DIR", help="folder that relative paths refer to (default: the list's)")
    parser.add_argument("--split", help="examine the cases of this split")
    parser.add_argument("--fold", type=int, help="examine the cases of this fold")
    parser.add_argument(
        "--follow_up",
        choices=("yes", "no"),
        help="whether later visits shall be segmented from earlier ones, so that it is an error if there are none "
        "(default: if cases name patients, and no scribble, split or fold)",
    )
    parser.add_argument("--fast", action="store_true", help="read headers only")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--all", action="store_true", help="list every finding, also many of one kind")
    parser.add_argument("--workers", type=int, default=WORKERS, help="files read at a time (default: %(default)s)")
    parser.add_argument("--list_checks", action="store_true", help="list what is looked for, and stop")
    return parser


if __name__ == "__main__":
    main()
