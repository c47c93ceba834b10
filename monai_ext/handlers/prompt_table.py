"""Writes ``prompts.csv``: what a method chose for each structure on each slice, and how sure it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_ext.data.case_details import DETAILS
from monai_ext.handlers.case_rows import CaseRows
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
        self._rows = CaseRows(output_dir, TABLE, COLUMNS, finished)

    def attach(self, engine: Engine) -> None:
        """Attach to a :class:`~monai_ext.engines.case_evaluator.CaseEvaluator`."""
        engine.add_event_handler(Events.STARTED, lambda: self._rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, lambda: self._rows.write())

    def _collect(self, engine: Engine) -> None:
        for case, output in decollated(engine):
            self._rows.add(case["case"], [_cells({"case": case["case"], **row}) for row in output[DETAILS].rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [_text(row.get(column)) for column in COLUMNS[:-1]] + [_points(row.get("points", []))]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _points(points: list[list[float]]) -> str:
    return "; ".join(f"{x:g} {y:g} {'+' if label else '-'}" for x, y, label in points)
