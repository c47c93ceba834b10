"""A table of all cases, which grows case by case and is written when the run ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from monai_ext import processes
from monai_ext.evaluation.case_record import table_rows
from monai_ext.evaluation.table import write_table
from monai_ext.handlers.finished_cases import FinishedCases


class CaseRows:
    """Keeps the rows of a table in the record of each case, or in memory where there are no records.

    Args:
        output_dir: folder of the table.
        table: file name, such as ``prompts.csv``.
        columns: of the table.
        finished: the records; None: rows are kept in memory until the run ends.

    Example:
        >>> rows = CaseRows("OUT", "volumes.csv", ("case", "label", "volume_ml"))
        >>> rows.add("patient001_visit2", [["patient001_visit2", "LV", "91.230"]])
        >>> rows.write()  # OUT/volumes.csv
    """

    def __init__(
        self, output_dir: str | Path, table: str, columns: Sequence[str], finished: FinishedCases | None = None
    ) -> None:
        self.path, self.table, self.columns, self.finished = Path(output_dir) / table, table, tuple(columns), finished
        self._rows: list[Sequence[Any]] = []

    def clear(self) -> None:
        """Forget rows that are in memory: a run begins."""
        self._rows = []

    def add(self, case: str, rows: Iterable[Sequence[Any]]) -> None:
        """Add the rows of a case."""
        if self.finished is None:
            self._rows += list(rows)
        else:
            self.finished.record(case).add_rows(self.table, self.columns, rows)

    def all(self) -> list[Sequence[Any]]:
        """Return the rows of all cases, in the order of the data list."""
        return list(self._rows if self.finished is None else table_rows(self.finished.records(), self.table))

    def write(self) -> None:
        """Write the table; of several processes, the first one does."""
        if processes.is_first():
            write_table(self.path, self.columns, self.all())


def cell_text(value: Any) -> str:
    """Return an entry of a case as the text of a cell: whole numbers without decimals, nothing for None."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)
