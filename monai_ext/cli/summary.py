"""The last lines of a run: number of cases, their volumes, masks to review, and the files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from monai_ext.cli.steps import say
from monai_ext.data.text import read_json, read_table
from monai_ext.data.volume_error import USUAL_ERROR_PERCENT

SHOWN = 12  # lines of volumes or flags

PLACES = {
    "report.html": "page",
    "masks": "masks",
    "dicom": "DICOM",
    "overlays": "pictures",
    "volumes.csv": "volumes",
    "review.csv": "review",
    "metrics.csv": "metrics",
    "uncertainty.csv": "doubt",
    "learners": "learned",
}
"""What a run can leave -> the name of its line."""


def summarise(folder: Path, made: Iterable[str] = ()) -> None:
    """Print what a run has left in its folder; what an earlier run has left there is not named.

    Volumes and flags are those of ``volumes.csv`` and ``review.csv``; nothing is computed here.

    Args:
        folder: of the run.
        made: names of files and folders that were made of the run's outputs, and are not in its record.
    """
    own = _outputs(folder)
    names = {name.partition("/")[0] for name in own} | set(made)
    cases = len([name for name in own if name.startswith("masks/")])
    say("segmented", f"{cases} case{'' if cases == 1 else 's'}")
    volumes, review = (_rows(folder / name) if name in names else [] for name in ("volumes.csv", "review.csv"))
    _lines("volume", [_volume(row) for row in volumes], folder / "volumes.csv")
    reviewed = [row for row in review if row["label"] and not row["slice"]]
    flagged = [row for row in reviewed if row["flag"] == "1"]
    _lines("look at", [_flag(row) for row in flagged], folder / "review.csv")
    if reviewed and not any(row["flag"] for row in reviewed):  # worst first
        worst = reviewed[0]
        say("look at", f"{worst['case']} {worst['label']} first, {worst['reason']} (not calibrated, nothing flagged)")
    elif reviewed and not flagged:
        say("review", f"flags none of {len(reviewed)} masks; a score is no promise")
    for name, what in PLACES.items():
        if name in names and (folder / name).exists():
            say(what, str(folder / name))
    say("", "For research only, not for clinical decisions.")


def _outputs(folder: Path) -> list[str]:
    """Return the files that the run's ``run.json`` names, relative to the folder; without one all that are there."""
    record = folder / "run.json"
    if record.is_file():
        return [entry["path"] for entry in read_json(record)["outputs"]]
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    header, *lines = read_table(path, "remove it and run again") or [[]]
    return [dict(zip(header, line, strict=True)) for line in lines]


def _lines(stage: str, lines: list[str], path: Path) -> None:
    for line in lines[:SHOWN]:
        say(stage, line)
    if len(lines) > SHOWN:
        say(stage, f"and {len(lines) - SHOWN} more: {path}")


def _volume(row: dict[str, str]) -> str:
    told = [f"{float(row['volume_ml']):.1f} ml" if row.get("volume_ml") else "no volume in ml"]
    if row.get("change_percent"):
        change = float(row["change_percent"])
        doubt = ", within the method's error" if abs(change) < USUAL_ERROR_PERCENT else ""
        told.append(f"{change:+.0f} % of the reference{doubt}")
    if row.get("longest_mm"):
        told.append(f"{float(row['longest_mm']):.0f} x {float(row['perpendicular_mm']):.0f} mm")
    told.append(f"{row['parts']} part{'' if row['parts'] == '1' else 's'} on {row['slices']} slices")
    return f"{row['case']} {row['label']}: {', '.join(told)}"


def _flag(row: dict[str, str]) -> str:
    return f"{row['case']} {row['label']}: score {float(row['score']):.2f}, {row['reason']}"
