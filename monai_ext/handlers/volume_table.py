"""Writes ``volumes.csv``: how large each structure is, and how much that differs from the patient's reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from scipy import ndimage

from monai_ext.data.images import Geometry, read_geometry, read_label
from monai_ext.handlers.case_rows import CaseRows, cell_text
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.mask_writer import decollated, label_masks
from monai_ext.metrics.diameters import longest_diameters
from monai_ext.metrics.volume import volume_ml
from monai_ext.transforms.sam_input import display_spacing, to_display

TABLE = "volumes.csv"
COLUMNS = (
    *("case", "patient", "visit", "label", "volume_ml", "change_percent", "longest_mm", "perpendicular_mm"),
    *("parts", "slices"),
)


class VolumeTable:
    """Measures the predicted masks of every case; no label of a target is read.

    Columns: ``volume_ml``; ``change_percent``, against the same structure in the case's latest reference, empty where
    there is no reference, it lacks the structure or is another patient's (a support); ``longest_mm``, the longest
    diameter in the plane of a slice, and ``perpendicular_mm``, the width across it
    (:func:`monai_ext.metrics.diameters.longest_diameters`); ``parts``, the number of connected pieces (over sides,
    edges and corners); ``slices`` that hold the structure. A frame has no mm: its change is that of the area, empty
    where its reference has another size, and the other measures are empty.

    Args:
        output_dir: folder of ``volumes.csv``.
        labels: name -> value in the masks.
        slice_axis: "R", "A" or "S" where slices are cut orthogonal to it; None: as the image was cut.
        finished: keeps the rows of finished cases; None: they are kept in memory until the end.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Mapping[str, int],
        slice_axis: str | None = None,
        finished: FinishedCases | None = None,
    ) -> None:
        self.labels, self.slice_axis = dict(labels), slice_axis
        self._rows = CaseRows(output_dir, TABLE, COLUMNS, finished)
        self._references: tuple[str, tuple[int, ...], dict[str, float]] | None = None

    def attach(self, engine: Engine) -> None:
        """Attach after postprocessing, before a handler that ends the case."""
        engine.add_event_handler(Events.STARTED, lambda: self._rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, lambda: self._rows.write())

    def _measure(self, engine: Engine) -> None:
        for case, output in decollated(engine):
            geometry = read_geometry(case["image"].meta["filename_or_obj"])
            masks = label_masks(output["pred"].cpu().numpy(), self.labels)
            before = self._reference_sizes(case, geometry)
            rows = [self._row(case, label, mask, geometry, before.get(label)) for label, mask in masks.items()]
            self._rows.add(case["case"], rows)

    def _row(
        self, case: Mapping[str, Any], label: str, mask: np.ndarray, geometry: Geometry, before: float | None
    ) -> list[str]:
        slice_axis = self.slice_axis or case["image"].meta.get("slice_axis") or None
        size = _size(mask, geometry)
        change = "" if not before else f"{100 * (size / before - 1):.1f}"
        upright = to_display(mask, geometry.affine, slice_axis)
        lengths = ["", ""]
        if geometry.spacing is not None:
            spacing = display_spacing(mask.shape, geometry.affine, slice_axis).tolist()
            lengths = [f"{length:.1f}" for length in longest_diameters(upright, spacing)]
        parts = ndimage.label(mask, np.ones((3,) * mask.ndim, dtype=int))[1]
        slices = int(upright.any(axis=(0, 1)).sum())
        volume = "" if geometry.spacing is None else f"{size:.3f}"
        names = [cell_text(case.get(key)) for key in ("case", "patient", "visit")]
        return [*names, label, volume, change, *lengths, str(parts), str(slices)]

    def _reference_sizes(self, case: Mapping[str, Any], own: Geometry) -> dict[str, float]:
        """Size of each structure in the patient's latest reference, by label; of one patient's cases read once."""
        paths = _paths(case.get("reference_label"))
        if not paths or case.get("reference_patient", case.get("patient")) != case.get("patient"):
            return {}
        if self._references is None or self._references[0] != paths[-1]:
            images = _paths(case.get("reference_image")) or paths  # masks often state no unit of length
            mask, geometry = read_label(paths[-1]), read_geometry(images[-1])
            sizes = {name: _size(mask == v, geometry) for name, v in self.labels.items()}
            self._references = paths[-1], mask.shape, sizes
        _, shape, sizes = self._references
        return {} if own.spacing is None and shape != own.shape else sizes  # pixels of two pictures may differ in size


def _size(mask: np.ndarray, geometry: Geometry) -> float:
    """Volume in ml; of a frame its number of pixels."""
    return float(mask.sum()) if geometry.spacing is None else volume_ml(mask, geometry.spacing)


def _paths(value: Any) -> Sequence[str]:
    """Flatten what collation makes of one path or several."""
    if value is None:
        return []
    return [str(value)] if isinstance(value, (str, Path)) else [path for part in value for path in _paths(part)]
