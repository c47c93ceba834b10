"""The last lines of a run: number of cases, their volumes, masks to review, and the files."""

from __future__ import annotations

from pathlib import Path

from monai_ext.cli.steps import say
from monai_ext.data.text import read_table

SHOWN = 12  # lines of volumes or flags

PLACES = {"masks": "masks", "dicom": "DICOM", "overlays": "pictures", "volumes.csv": "volumes", "review.csv": "review"}


def summarise(folder: Path) -> None:
    """Print what a run has left in its folder.

    Volumes and flags are those of ``volumes.csv`` and ``review.csv``; nothing is computed here.
    """
    masks = sorted((folder / "masks").glob("*")) if (folder / "masks").is_dir() else []
    say("segmented", f"{len(masks)} case{'' if len(masks) == 1 else 's'}")
    _lines("volume", [_volume(row) for row in _rows(folder / "volumes.csv")], folder / "volumes.csv")
    flagged = [row for row in _rows(folder / "review.csv") if row.get("flag") not in ("", "0", "no", "ok", None)]
    _lines("look at", [_flag(row) for row in flagged], folder / "review.csv")
    for name, what in PLACES.items():
        if (folder / name).exists():
            say(what, str(folder / name))
    say("", "For research only, not for clinical decisions.")


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
    change = f", {float(row['change_percent']):+.0f} % against the reference" if row.get("change_percent") else ""
    size = f"{float(row['volume_ml']):.1f} ml" if row.get("volume_ml") else "no volume in ml"
    return f"{row['case']} {row['label']}: {size}{change}"


def _flag(row: dict[str, str]) -> str:
    place = f" slice {row['slice']}" if row.get("slice") else ""
    return f"{row['case']} {row['label']}{place}: {row.get('reason') or row['flag']} (score {row.get('score')})"
