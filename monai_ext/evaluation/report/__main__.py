"""Write a report: ``python -m monai_ext.evaluation.report OUT_A [OUT_B ...] --output report.html``.

Each ``OUT`` is the output folder of an evaluation (``metrics.csv``; where there, ``summary.json``, ``run.json``,
``overlays`` and ``interaction.csv``), all of the same cases; the first is compared with the others. The page holds
everything it needs. Pictures of patients are in it unless ``--overlays none``.

A folder without ``metrics.csv``, or ``--follow_up``, gives the page of a follow-up run instead: each patient over time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from monai_ext.errors import UserError, report_user_errors
from monai_ext.evaluation.report.follow_up import render_follow_ups
from monai_ext.evaluation.report.page import Choices, render
from monai_ext.evaluation.report.sources import read_evaluations
from monai_ext.evaluation.report.wording import size
from monai_ext.evaluation.table import write_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m monai_ext.evaluation.report", description=__doc__)
    parser.add_argument(
        "folders", nargs="+", metavar="OUT", help="output folder of an evaluation; the first is compared"
    )
    parser.add_argument("--output", default="report.html", metavar="FILE", help="page to write (default: report.html)")
    parser.add_argument(
        "--overlays",
        nargs="+",
        default=["worst", "5"],
        metavar="WHICH",
        help="none: no pictures, to publish; worst N: of the N worst cases (default: worst 5)",
    )
    parser.add_argument("--metric", nargs="+", help="metrics that are compared (default: dice)")
    parser.add_argument("--names", nargs="+", help="what the methods are called (default: by their algorithm)")
    parser.add_argument("--title", help="of the page (default: the data set)")
    parser.add_argument("--follow_up", action="store_true", help="each patient over time, also where there are metrics")
    parser.add_argument("--datalist", help="of a follow-up whose data list has moved")
    options = parser.parse_args(arguments)

    worst, overlays = parse_overlays(options.overlays)
    page = _follow_up(options, overlays) or _evaluations(options, worst, overlays)
    write_text(options.output, page)
    print(f"written to {options.output} ({size(len(page.encode()))})")


def _follow_up(options: argparse.Namespace, overlays: bool) -> str | None:
    """Return the page of a follow-up, or None where the folders are evaluations."""
    folder = Path(options.folders[0])
    without_metrics = (folder / "volumes.csv").is_file() and not (folder / "metrics.csv").is_file()
    if not options.follow_up and not without_metrics:
        return None
    if len(options.folders) > 1:
        raise UserError(f"{folder}: the page of a follow-up is of one run; name one folder")
    return render_follow_ups(folder, overlays, options.title, options.datalist)


def _evaluations(options: argparse.Namespace, worst: int, overlays: bool) -> str:
    evaluations = read_evaluations(options.folders, options.names)
    compared = tuple(options.metric) if options.metric else None
    return render(evaluations, Choices(worst=worst, overlays=overlays, compared=compared, title=options.title))


def parse_overlays(words: Sequence[str]) -> tuple[int, bool]:
    """Read ``none`` or ``worst N``: how many worst cases to show, and whether with pictures.

    Raises:
        UserError: where it is neither.
    """
    if list(words) == ["none"]:
        return 5, False
    if len(words) == 2 and words[0] == "worst" and words[1].isdecimal():
        return int(words[1]), True
    raise UserError(f"--overlays {' '.join(words)}: say none, or worst and a number, after the folders")


if __name__ == "__main__":
    report_user_errors()
    main()
