"""The long table ``metrics.csv``: one row per case, label and metric, no aggregate rows."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from monai_ext.data.text import read_table
from monai_ext.errors import UserError
from monai_ext.files import atomic_path

STATUSES = ("ok", "pred_empty", "ref_empty", "both_empty", "missing", "failed")


@dataclass(frozen=True)
class Row:
    """One row of ``metrics.csv``, its fields in the order of the columns.

    ``reference`` names the cases that served as reference, joined by ``+``; ``value`` is None where the
    metric is undefined (status ``both_empty``). What is not known is the empty string.
    """

    task: str
    algorithm: str
    case: str
    patient: str
    visit: str
    reference: str
    fold: str
    run: str
    label: str
    metric: str
    value: float | None
    status: str

    @property
    def cluster(self) -> str:
        """What a bootstrap resamples: the patient, or the case where no patient is named."""
        return self.patient or self.case


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write ``metrics.csv``: rows in the given order, floats with as many digits as read back exactly."""
    write_table(path, COLUMNS, ([getattr(row, name) for name in COLUMNS] for row in rows))


def read_rows(path: str | Path) -> list[Row]:
    """Read what :func:`write_rows` wrote.

    Raises:
        UserError: where the file is absent or not such a table, or has two rows of one case, run, label and metric.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; name the metrics.csv of an evaluation")
    header, *lines = read_table(path, "name the metrics.csv of an evaluation") or [[]]
    if tuple(header) != COLUMNS:
        raise UserError(f"{path}: not a metrics.csv, whose columns are {','.join(COLUMNS)}; name another file")
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=2)]
    _refuse_repeated(path, rows)
    return rows


def write_table(path: str | Path, columns: Iterable[str], lines: Iterable[Iterable[object]]) -> None:
    """Write a CSV file whole or not at all; floats as ``repr``, line ends ``\\n``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in line] for line in lines)
    write_text(path, text.getvalue())


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8, line ends as given) whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def _refuse_repeated(path: Path, rows: Iterable[Row]) -> None:
    seen = set()
    for row in rows:
        key = (row.task, row.algorithm, row.case, row.run, row.label, row.metric)
        if key in seen:
            raise UserError(
                f"{path}: case {row.case} has several rows of label {row.label}, run {row.run or 'unnamed'}; "
                "number the runs in the column run"
            )
        seen.add(key)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _row(path: Path, number: int, line: list[str]) -> Row:
    problem = None
    cells: dict[str, str] = dict(zip(COLUMNS, line, strict=False))
    value: float | None = None
    if len(line) != len(COLUMNS):
        problem = f"{len(line)} cells instead of {len(COLUMNS)}"
    elif cells["status"] not in STATUSES:
        problem = f"the unknown status {cells['status']!r}"
    elif cells["value"] and cells["status"] == "both_empty":
        problem = f"the value {cells['value']!r} at status both_empty, which has none"
    elif cells["value"]:
        try:
            value = float(cells["value"])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            problem = f"the value {cells['value']!r}, which is not a number"
    elif cells["status"] != "both_empty":
        problem = f"no value at status {cells['status']}"
    if problem:
        raise UserError(f"{path}: line {number} has {problem}; run the evaluation again")
    texts = {name: cell for name, cell in cells.items() if name != "value"}
    return Row(value=value, **texts)
