"""Writes ``interaction.csv``: how good the masks of every case were after each interaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.data.case_details import DETAILS
from monai_ext.errors import UserError
from monai_ext.evaluation.case_metrics import VoxelCounts, voxel_counts
from monai_ext.evaluation.curves import COLUMNS, StepRow
from monai_ext.handlers.case_rows import CaseRows
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.mask_writer import decollated, label_masks

TABLE = "interaction.csv"
METRIC = "dice"


class InteractionTable:
    """Measures every step of every case by Dice on the grid of the file, as ``metrics.csv`` does, and writes the table.

    Step k is the state after k interactions on every slice and structure that gets any; the last step is the mask that
    is written and that ``metrics.csv`` is of. The states are the ``steps`` of each case's details. Columns: see
    :class:`monai_ext.evaluation.curves.StepRow`, statuses: :mod:`monai_ext.evaluation.case_metrics`.
    :mod:`monai_ext.evaluation.curves` draws the curves.

    Args:
        output_dir: folder of ``interaction.csv``.
        labels: value in the masks by name.
        dataset: column ``task``.
        algorithm: column ``algorithm``.
        postprocessing: of the evaluator: takes the batch item with ``pred`` [L, H, W, D] to masks on the grid of the
            file.
        ignore: value of the label whose voxels are left out of both masks.
        run: column ``run``, numbers repeated runs.
        finished: keeps the rows of finished cases; None: they are kept in memory until the end.

    Raises:
        UserError: (while running) where a case has no label.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Mapping[str, int],
        dataset: str,
        algorithm: str,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        ignore: int | None = None,
        run: int = 0,
        finished: FinishedCases | None = None,
    ) -> None:
        self.labels = dict(labels)
        self.dataset, self.algorithm, self.run = dataset, algorithm, run
        self.postprocessing = postprocessing
        self.ignore = ignore
        self._rows = CaseRows(output_dir, TABLE, COLUMNS, finished)

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator, before the handlers that record the run."""
        engine.add_event_handler(Events.STARTED, lambda: self._rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, lambda: self._rows.write())

    def _measure(self, engine: Engine) -> None:
        for item, output in decollated(engine):
            self._rows.add(item["case"], map(astuple, self._measure_steps(item, output[DETAILS].steps)))

    def _measure_steps(self, item: Mapping[str, Any], steps: Sequence[Tensor]) -> Iterator[StepRow]:
        case = str(item["case"])
        if item.get("label") is None:
            raise UserError(f"case {case} has no label, so it cannot be evaluated; add one to the data list")
        reference = torch.as_tensor(item["label"]).cpu().numpy()[0]
        for step, logits in enumerate(steps, start=1):
            pred = self.postprocessing({**item, "pred": MetaTensor(logits)})["pred"].cpu().numpy()
            masks = np.stack(list(label_masks(pred, self.labels).values()))
            for label, counts in voxel_counts(reference, masks, self.labels, ignore=self.ignore).items():
                value, status = dice_and_status(counts)
                yield StepRow(
                    task=self.dataset,
                    algorithm=self.algorithm,
                    case=case,
                    patient=str(item.get("patient") or ""),
                    run=str(self.run),
                    label=label,
                    step=step,
                    metric=METRIC,
                    value=value,
                    status=status,
                )


def dice_and_status(counts: VoxelCounts) -> tuple[float | None, str]:
    """Return Dice and status of a label, as :func:`monai_ext.evaluation.case_metrics.case_rows` has them."""
    total = 2 * counts.tp + counts.fp + counts.fn
    if not total:
        return None, "both_empty"
    if not counts.tp + counts.fp:
        return 0.0, "pred_empty"
    if not counts.tp + counts.fn:
        return 0.0, "ref_empty"
    return 2.0 * counts.tp / total, "ok"
