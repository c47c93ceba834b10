"""Writes the predicted mask of every case in the geometry of the case's own image file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from monai_ext.data.images import write_mask
from monai_ext.data.mask_names import refuse_shared_files, structure_file
from monai_ext.handlers.finished_cases import FinishedCases


class MaskWriter:
    """Writes ``<output_dir>/masks/<case>.nii.gz`` (``.png`` for a frame) after each iteration.

    The evaluator must decollate; its output item "pred" lies on the grid of the file that ``image.meta``
    names, as after ``Invertd``. It is either one integer mask [1, *spatial], or one channel a label [L,
    *spatial] that is not 0 where the label is; the latter, which may overlap, give one file a label,
    ``<case>_<label>.nii.gz``. Values in the files are those of ``labels``.

    Args:
        output_dir: folder of the run's outputs.
        labels: name -> value in the mask, in the order of the channels.
        finished: is told of each file.

    Raises:
        UserError: at the first of overlapping masks, where two of the run would have one file's name.
    """

    def __init__(
        self, output_dir: str | Path, labels: Mapping[str, int], finished: FinishedCases | None = None
    ) -> None:
        self.folder = Path(output_dir) / "masks"
        self.labels = dict(labels)
        self.finished = finished
        self._names_checked = False

    def attach(self, engine: Engine) -> None:
        """Register with ``engine``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for case, output in decollated(engine):
            pred = output["pred"].cpu().numpy()
            image_path = case["image"].meta["filename_or_obj"]
            suffix = ".png" if pred.ndim == 3 else ".nii.gz"
            for name, mask in self._masks(case["case"], pred):
                path = self.folder / f"{name}{suffix}"
                write_mask(path, mask, like=image_path)
                if self.finished is not None:
                    self.finished.record(case["case"]).add_file(self.finished.output_dir, path)

    def _masks(self, case: str, pred: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Return (file name without suffix, integer mask on the spatial grid) of each file to write."""
        if len(pred) == 1 and len(self.labels) > 1:
            return [(case, pred[0].astype(np.int64))]
        masks = {label: mask.astype(np.int64) for label, mask in label_masks(pred, self.labels).items()}
        if len(masks) == 1:
            return [(case, mask * self.labels[label]) for label, mask in masks.items()]
        if not self._names_checked:
            refuse_shared_files([{"case": case}] if self.finished is None else self.finished.cases, self.labels)
            self._names_checked = True
        return [(structure_file(case, label), mask * self.labels[label]) for label, mask in masks.items()]


def decollated(engine: Engine) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (batch item, output item) of each case of the iteration of an engine that decollates.

    Raises:
        ValueError: the engine was built with ``decollate=False``.
    """
    state: Any = engine.state
    if not isinstance(state.batch, list) or not isinstance(state.output, list):
        raise ValueError("the engine must be built with decollate=True")
    yield from zip(state.batch, state.output, strict=True)


def label_masks(pred: np.ndarray, labels: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Split a prediction into one boolean mask [*spatial] a label.

    Args:
        pred: integer mask [1, *spatial] with the values of ``labels`` (of a single label: not 0 where it is),
            or [L, *spatial], not 0 where a label is.
        labels: name -> value, in the order of the channels.

    Raises:
        ValueError: another number of channels.
    """
    if len(pred) == len(labels):
        return {label: channel != 0 for label, channel in zip(labels, pred, strict=True)}
    if len(pred) == 1:
        return {label: pred[0] == value for label, value in labels.items()}
    raise ValueError(f"the prediction has {len(pred)} channels but there are {len(labels)} labels")
