"""Writes the tables of a stream: each prompt, the Dice of each case when it came, and the learners' places.

``feedback.csv`` has one row a prompt: Dice on the slice of the fused mask and of SAM's, in the input frame, of what was
learned alone within its crop, alpha, whether the answer was corrected, losses. ``interaction.csv`` has one row a case,
label and algorithm (the method's and SAM's, from one pass), on the grid of the file, with the case's place in the
stream as its step. ``stream.csv`` is what a run that goes on needs: images seen and places in the journals after each
case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from monai_ext.data.case_details import DETAILS, CaseDetails
from monai_ext.evaluation.case_metrics import voxel_counts
from monai_ext.evaluation.case_record import table_rows
from monai_ext.evaluation.curves import COLUMNS as STEP_COLUMNS
from monai_ext.evaluation.curves import StepRow
from monai_ext.evaluation.table import write_table
from monai_ext.handlers.finished_stream import FinishedStream
from monai_ext.handlers.interaction_table import dice_and_status
from monai_ext.handlers.mask_writer import decollated, label_masks

FEEDBACK = "feedback.csv"
INTERACTION = "interaction.csv"
STREAM = "stream.csv"
STREAM_COLUMNS = ("case", "images", "group", "label", "position")


class Online(Protocol):
    """An inferer that learns from case to case."""

    COLUMNS: tuple[str, ...]
    images: int
    group: str | None

    def positions(self) -> dict[str, int]: ...

    def go_on(self, images: int, positions: Mapping[str, int], group: str | None = None) -> None: ...


class Feedback:
    """Measures a stream, and resumes it where it was killed.

    At the start of a run the learners go back to where they were after the last case of the finished beginning. After
    each case their states are written before the case's record.

    Args:
        output_dir: folder of the tables.
        labels: value in the masks by name.
        dataset: column ``task``.
        algorithm: of the method, column ``algorithm``; SAM's rows have ``sam`` there.
        inferer: what learns.
        postprocessing: of the evaluator: brings logits to the grid of the file.
        finished: the stream.
        ignore: value of the label whose voxels are left out.
        run: column ``run``: the number of the order.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Mapping[str, int],
        dataset: str,
        algorithm: str,
        inferer: Online,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        finished: FinishedStream,
        ignore: int | None = None,
        run: int | None = None,
    ) -> None:
        self.output_dir, self.labels = Path(output_dir), dict(labels)
        self.dataset, self.algorithm = dataset, algorithm
        self.inferer, self.postprocessing, self.finished = inferer, postprocessing, finished
        self.ignore, self.run = ignore, "0" if run is None else str(run)
        self._places: dict[str, int] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator, before the handlers that record the run."""
        engine.add_event_handler(Events.STARTED, self._go_on)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _go_on(self, engine: Engine) -> None:
        self._places = {case["case"]: place for place, case in enumerate(self.finished.cases, start=1)}
        if not self.finished.left:
            return
        last = self.finished.last()
        rows = [] if last is None else list(table_rows([last], STREAM))
        images, group = (int(rows[0][1]), rows[0][2] or None) if rows else (0, None)
        self.inferer.go_on(images, {row[3]: int(row[4]) for row in rows}, group)

    def _measure(self, engine: Engine) -> None:
        for item, output in decollated(engine):
            case = item["case"]
            record = self.finished.record(case)
            record.add_rows(FEEDBACK, self._columns, self._prompt_rows(item, output[DETAILS]))
            record.add_rows(INTERACTION, STEP_COLUMNS, (astuple(row) for row in self._steps(item, output)))
            place = (case, self.inferer.images, self.inferer.group or "")
            record.add_rows(STREAM, STREAM_COLUMNS, ([*place, *one] for one in self.inferer.positions().items()))

    @property
    def _columns(self) -> tuple[str, ...]:
        return ("case", "patient", "step", *self.inferer.COLUMNS)

    def _prompt_rows(self, item: Mapping[str, Any], details: CaseDetails) -> Iterator[list[Any]]:
        case = item["case"]
        for row in details.rows:
            yield [case, str(item.get("patient") or ""), self._places[case], *row.values()]

    def _steps(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> Iterator[StepRow]:
        if item.get("label") is None:
            return
        masks = {self.algorithm: output["pred"]}
        if self.algorithm != "sam":
            masks["sam"] = self.postprocessing({**item, "pred": MetaTensor(output[DETAILS].maps["sam"])})["pred"]
        for algorithm, pred in masks.items():
            yield from self._rows_of(item, algorithm, torch.as_tensor(pred).cpu().numpy())

    def _rows_of(self, item: Mapping[str, Any], algorithm: str, pred: np.ndarray) -> Iterator[StepRow]:
        reference = torch.as_tensor(item["label"]).cpu().numpy()[0]
        masks = np.stack(list(label_masks(pred, self.labels).values()))
        for label, counts in voxel_counts(reference, masks, self.labels, ignore=self.ignore).items():
            value, status = dice_and_status(counts)
            yield StepRow(
                task=self.dataset,
                algorithm=algorithm,
                case=item["case"],
                patient=str(item.get("patient") or ""),
                run=self.run,
                label=label,
                step=self._places[item["case"]],
                metric="dice",
                value=value,
                status=status,
            )

    def _write(self, engine: Engine) -> None:
        columns = {FEEDBACK: self._columns, INTERACTION: STEP_COLUMNS, STREAM: STREAM_COLUMNS}
        for table, names in columns.items():
            write_table(self.output_dir / table, names, table_rows(self.finished.records(), table))
