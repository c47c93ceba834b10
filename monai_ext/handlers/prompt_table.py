"""Writes ``prompts.csv``: what a method chose for each structure on each slice, and how sure it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_ext import processes
from monai_ext.data.case_details import DETAILS
from monai_ext.evaluation.case_record import table_rows
from monai_ext.evaluation.table import write_table
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.mask_writer import decollated

TABLE = "prompts.csv"
COLUMNS = (
    *("case", "label", "slice", "reference", "reference_slice", "status", "recovered"),
    *("n_pos", "n_neg", "distance", "margin", "points"),
)


class PromptTable:
    """Collects the rows of each case's details and writes them when the run ends.

    Columns: ``case, label, slice, reference`` (names of the references that served), ``reference_slice`` (along the
    slice axis of the input frame), ``status`` (see :class:`monai_ext.inferers.reference_inferer.SliceResult`),
    ``recovered`` (1 where the reference's structure was too small for the feature grid), the chosen counts ``n_pos,
    n_neg``, the Wasserstein ``distance`` and the ``margin`` to the runner-up, and ``points``, "x y +" or "x y -" in
    input-frame pixels, separated by semicolons.

    Args:
        output_dir: folder of ``prompts.csv``.
        finished: keeps the rows of finished cases; None: they are kept in memory until the end.
    """

    def __init__(self, output_dir: str | Path, finished: FinishedCases | None = None) -> None:
        self.output_dir, self.finished = Path(output_dir), finished
        self._cells: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a :class:`~monai_ext.engines.case_evaluator.CaseEvaluator`."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._cells = []

    def _collect(self, engine: Engine) -> None:
        for case, output in decollated(engine):
            cells = [_cells({"case": case["case"], **row}) for row in output[DETAILS].rows]
            if self.finished is None:
                self._cells += cells
            else:
                self.finished.record(case["case"]).add_rows(TABLE, COLUMNS, cells)

    def _write(self, engine: Engine) -> None:
        if not processes.is_first():
            return
        rows = self._cells if self.finished is None else table_rows(self.finished.records(), TABLE)
        write_table(self.output_dir / TABLE, COLUMNS, rows)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [_text(row.get(column)) for column in COLUMNS[:-1]] + [_points(row.get("points", []))]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _points(points: list[list[float]]) -> str:
    return "; ".join(f"{x:g} {y:g} {'+' if label else '-'}" for x, y, label in points)
