"""Writes the numbers of an evaluation: ``metrics.csv``, ``summary.json``, what others read, a table to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_ext import processes
from monai_ext.data.images import Geometry, read_geometry
from monai_ext.errors import UserError
from monai_ext.evaluation.bootstrap import refuse_seed
from monai_ext.evaluation.case_metrics import VoxelCounts, case_rows, refuse_tolerance, voxel_counts
from monai_ext.evaluation.case_record import METRICS, CaseRecord, add_metrics, write_metrics
from monai_ext.evaluation.levels import DEFAULT_LEVELS, parse_levels
from monai_ext.evaluation.summary import format_table
from monai_ext.evaluation.table import Row
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.mask_writer import decollated, label_masks
from monai_ext.transforms.sam_input import find_layout


class CaseTable:
    """Measures every case of a ``SupervisedEvaluator`` on its original grid and writes the tables at the end.

    After postprocessing it takes from ``engine.state.output`` (a list of dictionaries) ``pred`` as
    :class:`~monai_ext.handlers.mask_writer.MaskWriter` does: an integer mask [1, X, Y, Z] or [1, W, H], or
    one channel per label where labels overlap. From ``engine.state.batch`` it takes ``label`` [1, X, Y, Z] or
    [1, W, H] as stored, ``image`` for the path in its meta, and the case's ``case``, ``patient``, ``visit``,
    ``reference``, ``fold``. Spacing comes from the header of the image file, whatever happened to the
    tensors. Nothing is written before the last case is measured; the ``metrics.csv`` of an earlier run is removed when
    the run starts, since it is not of the masks that this one writes.

    Args:
        output_dir: folder of the files; see :func:`monai_ext.evaluation.outputs.write_outputs`.
        labels: value in the masks by name.
        dataset: column ``task``.
        algorithm: column ``algorithm``.
        ignore: value of the label whose voxels are left out of both masks.
        run: column ``run``, numbers repeated runs.
        fold: column ``fold``; None: each case's own ``fold``.
        seed: of the bootstrap.
        nsd_tolerance_mm: tolerance of the normalised surface Dice.
        slice_axis: "R", "A" or "S" where the inferer was forced to cut slices orthogonal to it.
        mean_of: levels of the mean; see :func:`monai_ext.evaluation.summary.summarise`.
        finished: keeps the rows of finished cases; None: they are kept in memory until the end.
        pooled_iou: add :func:`monai_ext.evaluation.pooled_iou.pooled_iou` to ``summary.json``.

    Raises:
        UserError: for an impossible seed or tolerance; (while running) where a case has no label, a mask is not on
            the image's grid, or no case was run.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Mapping[str, int],
        dataset: str,
        algorithm: str,
        ignore: int | None = None,
        run: int = 0,
        fold: int | None = None,
        seed: int = 0,
        nsd_tolerance_mm: float = 2.0,
        slice_axis: str | None = None,
        mean_of: str | Sequence[str] = DEFAULT_LEVELS,
        finished: FinishedCases | None = None,
        pooled_iou: bool = False,
    ) -> None:
        refuse_seed(seed)
        refuse_tolerance(nsd_tolerance_mm)
        parse_levels(mean_of)  # refuses bad levels now
        self.output_dir = Path(output_dir)
        self.labels = dict(labels)
        self.dataset = dataset
        self.algorithm = algorithm
        self.ignore = ignore
        self.run = run
        self.fold = fold
        self.nsd_tolerance_mm = nsd_tolerance_mm
        self.slice_axis = slice_axis
        self.finished = finished
        self.options: dict[str, Any] = {"seed": seed, "mean_of": mean_of, "label_values": self.labels}
        if pooled_iou:
            self.options["with_pooled_iou"] = True
        self._records: list[CaseRecord] = []
        if finished is not None:
            finished.summary_options = self.options

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator; before a :class:`~monai_ext.handlers.run_record.RunRecord`."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure_batch)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._records = []
        if processes.is_first():
            (self.output_dir / METRICS).unlink(missing_ok=True)

    def _measure_batch(self, engine: Engine) -> None:
        for item, output in decollated(engine):
            rows, counts = self._measure(item, _array(output["pred"]))
            add_metrics(self._record(rows[0].case), rows, counts)

    def _record(self, case: str) -> CaseRecord:
        if self.finished is not None:
            return self.finished.record(case)
        self._records.append(CaseRecord(case, key=""))
        return self._records[-1]

    def _write(self, engine: Engine) -> None:
        if not processes.is_first():
            return
        records = self._records if self.finished is None else self.finished.records()
        written = write_metrics(records, self.output_dir, self.options)
        if written is not None:
            print(f"\n{format_table(*written)}\n\nwritten to {self.output_dir}", flush=True)
        elif self.finished is None or self.finished.shard is None:
            raise UserError("no case was evaluated; give a data list with cases to evaluate")
        else:
            print(f"no patient falls into shard {self.finished.shard}", flush=True)

    def _measure(self, item: Mapping[str, Any], pred: np.ndarray) -> tuple[list[Row], dict[str, VoxelCounts]]:
        case = _text(item.get("case"))
        if item.get("label") is None:
            raise UserError(f"case {case} has no label, so it cannot be evaluated; add one to the data list")
        path = item["image"].meta["filename_or_obj"]
        geometry = read_geometry(path)
        reference = _array(item["label"])[0]
        for what, shape in (("label", reference.shape), ("prediction", pred.shape[1:])):
            if shape != tuple(geometry.shape):
                raise UserError(
                    f"case {case}: the {what} has shape {shape}, but the image {path} has shape "
                    f"{tuple(geometry.shape)}; bring it back to the image's grid"
                )
        prediction = np.stack(list(label_masks(pred, self.labels).values()))
        measured = case_rows(
            reference,
            prediction,
            self.labels,
            geometry.spacing,
            ignore=self.ignore,
            nsd_tolerance_mm=self.nsd_tolerance_mm,
            slice_axis=_stored_axis(geometry, self.slice_axis),
        )
        rows = [
            Row(
                task=self.dataset,
                algorithm=self.algorithm,
                case=case,
                patient=_text(item.get("patient")),
                visit=_text(item.get("visit")),
                reference=_text(item.get("reference")),
                fold=_text(item.get("fold") if self.fold is None else self.fold),
                run=str(self.run),
                label=label,
                metric=metric,
                value=value,
                status=status,
            )
            for label, metric, value, status in measured
        ]
        return rows, voxel_counts(reference, prediction, self.labels, ignore=self.ignore)


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)


def _stored_axis(geometry: Geometry, slice_axis: str | None) -> int | None:
    """Return the stored axis along which inferers cut slices: ``dice_slice_mean`` is of the same ones."""
    if geometry.affine is None:
        return None
    return find_layout(geometry.shape, geometry.affine, slice_axis).order[2]


def _text(value: Any) -> str:
    """Return a cell from what collating and decollating left of a value: lists are joined by ``+``."""
    if value is None:
        return ""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        value = value.tolist()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "+".join(_text(part) for part in value)
    return str(value)
