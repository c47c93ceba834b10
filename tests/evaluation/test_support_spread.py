"""Tests of monai_ext.evaluation.support_spread."""

from __future__ import annotations

import json

import numpy as np
import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.support_spread import main, support_spread
from monai_ext.evaluation.table import Row, write_rows

VALUES = {
    ("s1", "liver"): {"a": 0.8, "b": 0.6},
    ("s1", "spleen"): {"a": 0.5},
    ("s2", "liver"): {"a": 0.7, "b": 0.9},
    ("s2", "spleen"): {"a": 0.2},
}


def row(support: str, label: str, case: str, value: float | None, metric: str = "dice") -> Row:
    status = "both_empty" if value is None else "ok"
    return Row("Toy", "apscl", case, case, "", support, "0", "", label, metric, value, status)


def rows() -> list[Row]:
    found = [row(s, label, case, v) for (s, label), cases in VALUES.items() for case, v in cases.items()]
    return [*found, row("s1", "spleen", "b", None), row("s1", "liver", "a", 9.0, "hd95_mm")]


def test_supports_are_averaged_by_scan_and_class_and_compared() -> None:
    found = support_spread(rows())
    assert found["supports"] == pytest.approx({"s1": (0.7 + 0.5) / 2, "s2": (0.8 + 0.2) / 2})
    means = list(found["supports"].values())
    assert found["mean"] == pytest.approx(np.mean(means))
    assert found["std"] == pytest.approx(np.std(means, ddof=1))
    assert (found["n"], found["min"], found["max"]) == (2, pytest.approx(min(means)), pytest.approx(max(means)))


def test_all_cases_together() -> None:
    assert support_spread(rows(), levels="case")["supports"]["s1"] == pytest.approx((0.8 + 0.6 + 0.5) / 3)


def test_one_support_has_no_spread() -> None:
    assert support_spread([r for r in rows() if r.reference == "s1"])["std"] is None


def test_mistakes() -> None:
    with pytest.raises(UserError, match="no row has a value of nsd"):
        support_spread(rows(), metric="nsd")
    with pytest.raises(UserError, match=r"supports s1 and s2 were not run on the same labels \(spleen is in one alone"):
        support_spread([r for r in rows() if (r.reference, r.label) != ("s2", "spleen")])


def test_command(tmp_path, capsys) -> None:
    tables = []
    for support in ("s1", "s2"):
        tables.append(str(tmp_path / support / "metrics.csv"))
        write_rows(tables[-1], [r for r in rows() if r.reference == support])
    main([*tables, "--output", str(tmp_path / "spread.json")])
    assert json.loads((tmp_path / "spread.json").read_text()) == support_spread(rows())
    printed = capsys.readouterr().out.split()
    assert printed[printed.index("s1") + 1] == "0.6000"
    with pytest.raises(UserError, match="are both of support s1: give each support once"):
        main([tables[0], tables[0]])
