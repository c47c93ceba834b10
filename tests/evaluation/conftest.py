"""Rows of a made-up evaluation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from monai_ext.evaluation.table import Row


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
