"""What a person looks at between rounds: pictures of the pseudo-labels, and their Dice where dense labels exist.

Nothing written here is read again by a run: no choice depends on a dense label.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from monai_ext.data.pseudo_labels import PseudoLabels
from monai_ext.data.slice_store import StoredCase
from monai_ext.data.text import read_table
from monai_ext.files import atomic_path
from monai_ext.handlers.overlay import DPI, Scene, draw
from monai_ext.metrics.dice import dice

TABLE = "pseudo_label_dice.csv"


class PseudoLabelOverlays:
    """Writes ``overlays/<case>.png``: filled the pseudo-label, as a contour the dense label, stars on scribbles.

    Args:
        labels: name -> value of the structures.
        max_slices: slices shown of a case.
    """

    def __init__(self, labels: Mapping[str, int], max_slices: int = 12) -> None:
        self.names, self.max_slices = list(labels), max_slices

    def __call__(self, folder: Path, case: StoredCase, found: PseudoLabels) -> None:
        """Draw one case of the round whose folder is given."""
        points: dict[int, list[tuple[str, float, float, bool]]] = {}
        for row in found.points:
            stars = [(row["label"], x, y, True) for x, y, positive in row["points"] if positive]
            points.setdefault(row["slice"], []).extend(stars)
        truth = {} if not case.has("label") else self._masks(np.asarray(case.load("label")))
        scene = Scene(
            title=f"{folder.name}, {case.case}",
            image=case.grey().transpose(1, 2, 0)[None],
            predictions=self._masks(found.labels),
            truths=truth,
            spacing=(1.0, 1.0),
            points=points,
        )
        with atomic_path(folder / "overlays" / f"{case.case}.png") as temporary:
            draw(scene, self.max_slices).savefig(temporary, dpi=DPI, facecolor="black", metadata={"Software": None})

    def _masks(self, classes: np.ndarray) -> dict[str, np.ndarray]:
        return {name: (classes == c).transpose(1, 2, 0) for c, name in enumerate(self.names, start=1)}


class PseudoLabelDice:
    """Keeps ``pseudo_label_dice.csv``: Dice of each case and label on the grid of the slices; empty if both are empty.

    Rows of a case replace those of an earlier start.

    Args:
        labels: name -> value of the structures.
    """

    def __init__(self, labels: Mapping[str, int]) -> None:
        self.names = list(labels)

    def __call__(self, folder: Path, case: StoredCase, found: PseudoLabels) -> None:
        """Measure one case of the round whose folder is given, where it has a dense label."""
        if not case.has("label"):
            return
        truth, path = np.asarray(case.load("label")), folder / TABLE
        rows: list[dict[str, str]] = []
        if path.is_file():
            header, *lines = read_table(path, "remove it and start the training again") or [[]]
            rows = [row for line in lines if (row := dict(zip(header, line, strict=True)))["case"] != case.case]
        for c, name in enumerate(self.names, start=1):
            value = dice(truth == c, found.labels == c)
            rows.append({"case": case.case, "label": name, "dice": "" if math.isnan(value) else f"{value:.6f}"})
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["case", "label", "dice"])
            writer.writeheader()
            writer.writerows(rows)
