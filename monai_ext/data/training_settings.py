"""``settings.json`` of a training's folder: what the training was made of, for a start that goes on with it.

:func:`monai_ext.session.keep_training` compares it; the records of the weights take from it what the training was made
with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_ext.data.text import read_json
from monai_ext.errors import UserError
from monai_ext.files import atomic_path

SETTINGS_FILE = "settings.json"
PARTS = ("config", "data", "cases", "weights", "processes", "made_with", "accepted")


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a training, whole or not at all."""
    with atomic_path(folder / SETTINGS_FILE) as temporary:
        temporary.write_text(as_text(settings), encoding="utf-8")


def as_text(settings: Mapping[str, Any]) -> str:
    """Return settings as JSON; what JSON cannot hold as its text."""
    return json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of a training.

    Raises:
        UserError: there are none that can be used, so that nobody knows what the folder's files were made of.
    """
    path = folder / SETTINGS_FILE
    try:
        settings = read_json(path)
        if all(part in settings for part in PARTS):
            return settings
    except (OSError, ValueError, TypeError):
        pass
    raise UserError(
        f"{folder} holds a training without a usable {SETTINGS_FILE}, so what it was made of is not known: give a new "
        "--output_dir."
    )
