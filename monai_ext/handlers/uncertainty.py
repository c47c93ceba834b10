"""Writes how sure a method is of each case: maps in ``uncertainty/``, and numbers in ``uncertainty.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from monai_ext.data.case_details import DETAILS
from monai_ext.data.images import write_fractions
from monai_ext.handlers.case_rows import CaseRows
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.mask_writer import decollated

FOLDER = "uncertainty"
TABLE = "uncertainty.csv"
COLUMNS = (
    *("case", "label", "slice", "status"),
    *("agreement", "entropy", "variance_ratio", "predicted_iou", "sigma"),
)
VARIANCE = "variance"
LARGEST_VARIANCE = 0.25
"""Of a probability; written as 1."""


class UncertaintyWriter:
    """Writes ``<output_dir>/uncertainty/<case>.nii.gz`` (``.png`` for a frame) in the image's own geometry.

    A voxel's value is its variance by the largest that a probability can have, 0 to 1, and the largest over the
    structures; 0 where no structure was sought. ``uncertainty.csv`` has a line for each structure and slice. They come
    from the case's details: the map ``variance``, of each pixel's probability, and the rows.

    Args:
        output_dir: folder of the run's outputs.
        preprocessing: of the image, which is inverted.
        finished: is told of each file and keeps the rows.
    """

    def __init__(self, output_dir: str | Path, preprocessing: Compose, finished: FinishedCases) -> None:
        self.output_dir, self.finished = Path(output_dir), finished
        self._rows = CaseRows(output_dir, TABLE, COLUMNS, finished)
        self.back = Invertd("uncertainty", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, before a :class:`FinishedCases`."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_map)
        engine.add_event_handler(Events.COMPLETED, lambda: self._rows.write())

    def _write_map(self, engine: Engine) -> None:
        for case, output in decollated(engine):
            details = output[DETAILS]
            self._rows.add(case["case"], _cells(case["case"], details.rows))
            if VARIANCE not in details.maps:
                continue
            image = case["image"]
            frame = MetaTensor(details.maps[VARIANCE].amax(dim=0, keepdim=True) / LARGEST_VARIANCE)
            found = self.back({"image": image, "uncertainty": frame})["uncertainty"]
            values = np.asarray(found)[0].clip(0, 1)
            suffix = ".png" if values.ndim == 2 else ".nii.gz"
            path = self.output_dir / FOLDER / f"{case['case']}{suffix}"
            write_fractions(path, values, like=image.meta["filename_or_obj"])
            self.finished.record(case["case"]).add_file(self.output_dir, path)


def _cells(case: str, rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        yield [_text({"case": case, **row}, column) for column in COLUMNS]


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
