"""Rows of a made-up evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from monai_ext.evaluation.table import Row, write_rows


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """Return a function that makes a row from what matters to a test."""

    def make(case: str, label: str, value: float | None, **fields: str) -> Row:
        given = {
            "task": "toy",
            "algorithm": "method",
            "patient": case,
            "visit": "1",
            "reference": "",
            "fold": "",
        }
        given |= {"run": "0", "metric": "dice", "status": "both_empty" if value is None else "ok"}
        return Row(case=case, label=label, value=value, **(given | fields))

    return make


@pytest.fixture
def write_tables(tmp_path) -> Callable[[Mapping[str, Sequence[Row]]], list[Path]]:
    """Return a function that writes ``<name>/metrics.csv`` for each name and returns the paths."""

    def write(tables: Mapping[str, Sequence[Row]]) -> list[Path]:
        paths = [tmp_path / name / "metrics.csv" for name in tables]
        for path, rows in zip(paths, tables.values(), strict=True):
            write_rows(path, rows)
        return paths

    return write
