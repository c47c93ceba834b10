"""Answers that may be corrected, on disk: the last one of each structure and slice of a study."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from urllib.parse import quote

from monai_ext.engines.online.journal import read_tensors, write_tensors
from monai_ext.engines.online.learner import Pending
from monai_ext.engines.online.view import CroppedView
from monai_ext.inferers.slice_features import dice
from monai_ext.prompts.crops import Crop

MOST_STUDIES = 500
"""Studies whose answers are kept; those that were asked for longest ago go first."""


class Answers:
    """The answers of an app.

    Args:
        folder: of the app's state; ``answers/<study>/`` lies in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "answers"

    def keep(self, study: str, pending: Pending) -> None:
        """Keep an answer; it replaces the one of the same structure and slice."""
        folder = self._of(study)
        if not folder.is_dir():
            folder.mkdir(parents=True)
            self._forget_old()
        name = hashlib.sha256(pending.key.encode("utf-8")).hexdigest()[:20]
        write_answer(folder / f"{name}.safetensors", pending)

    def of(self, study: str) -> list[Path]:
        """Return the files of a study's answers."""
        return sorted(self._of(study).glob("*.safetensors"))

    def trust(self, study: str) -> float | None:
        """Return the least agreement of SAM and the fused mask in a study (Dice); None: it was not asked for."""
        found = [read_tensors(path)[1]["trust"] for path in self.of(study)]
        return min(found, default=None)

    def _of(self, study: str) -> Path:
        return self.folder / quote(study, safe="")

    def _forget_old(self) -> None:
        there = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in there[:-MOST_STUDIES]:
            shutil.rmtree(path, ignore_errors=True)


def trust(pending: Pending) -> float:
    """Return how far the answer agrees with SAM alone, Dice within the crop."""
    return dice(pending.logits > 0, pending.view.sam > 0)


def write_answer(path: Path, pending: Pending) -> None:
    """Write an answer."""
    view = pending.view
    tensors = {"image": view.image, "sam": view.sam, "logits": pending.logits}
    if view.features is not None:
        tensors["features"] = view.features
    values = {
        "key": pending.key,
        "case": dict(pending.case),
        "image_sha256": pending.image_sha256,
        "crop": list(view.crop),
        "size": list(view.size),
        "prompt": dict(view.prompt),
        "position": pending.position,
        "trust": trust(pending),
    }
    write_tensors(path, tensors, values)


def read_answer(path: Path) -> Pending:
    """Read an answer from its files, without what the method said of it."""
    tensors, values = read_tensors(path)
    size = (int(values["size"][0]), int(values["size"][1]))
    crop = Crop(*values["crop"])
    view = CroppedView(tensors["image"], tensors["sam"], crop, size, values["prompt"], tensors.get("features"))
    return Pending(
        view, values["key"], values["case"], values["image_sha256"], tensors["logits"], {}, values["position"]
    )
