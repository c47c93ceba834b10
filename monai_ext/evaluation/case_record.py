"""One small file a finished case, ``cases/<case>.json``: what a killed run need not do again, what shards give.

It holds the case's key (a hash of all that decides its result), its rows of each table, and the sha256 of each file
written for it. It is written after all of these, whole or not at all: a case with a record is finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from monai_ext.data.text import read_json
from monai_ext.evaluation.case_metrics import VoxelCounts
from monai_ext.evaluation.formats import CaseDetail, CaseKey
from monai_ext.evaluation.outputs import write_outputs
from monai_ext.evaluation.table import COLUMNS, Row, write_text
from monai_ext.files import sha256_of

FOLDER = "cases"
SHARD_FILE = "shard.json"
METRICS = "metrics.csv"
COUNTS = "voxel counts"
COUNT_COLUMNS = ("case", "run", "label", "tp", "fp", "fn", "tn")


@dataclass
class Table:
    """A case's part of a table: cells are text, numbers or None."""

    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)


@dataclass
class CaseRecord:
    """What is left of a finished case.

    Args:
        case: its name.
        key: hash of all that decides its result.
        tables: its rows by the table's file name.
        files: sha256 of each file written for it, by the path relative to the output folder.
    """

    case: str
    key: str
    tables: dict[str, Table] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def add_rows(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Append rows to a table."""
        self.tables.setdefault(table, Table(list(columns))).rows += [list(row) for row in rows]

    def add_file(self, output_dir: Path, path: Path) -> None:
        """Note a file that has been written."""
        self.files[path.relative_to(output_dir).as_posix()] = sha256_of(path)

    def write(self, output_dir: Path) -> None:
        """Write ``cases/<case>.json`` whole or not at all."""
        text = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        write_text(record_path(output_dir, self.case), text + "\n")

    def find_change(self, output_dir: Path) -> str | None:
        """Return the first file that is missing or altered; None where all are as written."""
        for name, digest in self.files.items():
            path = output_dir / name
            if not path.is_file() or sha256_of(path) != digest:
                return name
        return None


def record_path(output_dir: Path, case: str) -> Path:
    """Return where the record of a case lies."""
    return output_dir / FOLDER / f"{case}.json"


def read_case_record(output_dir: Path, case: str) -> CaseRecord | None:
    """Read the record of a case; None where there is none that can be used."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = read_json(record_path(output_dir, case))
        tables = {str(name): Table(list(one["columns"]), list(one["rows"])) for name, one in content["tables"].items()}
        record = CaseRecord(content["case"], content["key"], tables, dict(content["files"]))
        below = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in record.files)
        return record if record.case == case and below and all(map(_is_table, tables, tables.values())) else None
    return None


def _is_table(name: str, table: Table) -> bool:
    """Tell whether a table has a plain name, its own columns and rows of as many cells."""
    own = {METRICS: COLUMNS, COUNTS: COUNT_COLUMNS}.get(name)
    whole = all(isinstance(row, list) and len(row) == len(table.columns) for row in table.rows)
    return Path(name).name == name and whole and (own is None or tuple(table.columns) == own)


def table_rows(records: Iterable[CaseRecord], table: str) -> Iterator[list[Any]]:
    """Yield the rows of one table, case after case."""
    for record in records:
        if table in record.tables:
            yield from record.tables[table].rows


def add_metrics(record: CaseRecord, rows: Sequence[Row], counts: Mapping[str, VoxelCounts]) -> None:
    """Add what one case gives to ``metrics.csv`` and, from its voxel counts by label, to nnU-Net's summary."""
    record.add_rows(METRICS, COLUMNS, ([getattr(row, name) for name in COLUMNS] for row in rows))
    run = rows[0].run
    record.add_rows(COUNTS, COUNT_COLUMNS, ([record.case, run, label, *astuple(of)] for label, of in counts.items()))


def write_metrics(
    records: Iterable[CaseRecord], output_dir: Path, options: Mapping[str, Any]
) -> tuple[list[Row], dict[str, Any]] | None:
    """Write ``metrics.csv``, ``summary.json`` and the formats that others read.

    Args:
        records: of all cases, in the order of the table.
        output_dir: folder of the files.
        options: of :func:`monai_ext.evaluation.outputs.write_outputs`.

    Returns:
        Rows and summary; None where there are no rows, and nothing is written.
    """
    rows: list[Row] = []
    counts: dict[CaseKey, dict[str, VoxelCounts]] = {}
    for record in records:
        rows += [Row(*cells) for cells in table_rows([record], METRICS)]
        for case, run, label, *numbers in table_rows([record], COUNTS):
            counts.setdefault((case, run), {})[label] = VoxelCounts(*numbers)
    if not rows:
        return None
    details = {key: CaseDetail(counts=of_case) for key, of_case in counts.items()}
    return rows, write_outputs(rows, output_dir, details=details, **options)
