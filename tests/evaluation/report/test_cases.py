"""Worst cases: their order, their values and their pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import pytest
from PIL import Image

from monai_ext.errors import UserError
from monai_ext.evaluation.report import cases
from monai_ext.evaluation.report.cases import data_uri, worst_cases
from monai_ext.evaluation.report.sources import read_evaluations
from monai_ext.evaluation.table import write_rows


def mean_dice(rows, case: str) -> float | None:
    values = [row.value for row in rows if row.case == case and row.metric == "dice" and row.value is not None]
    return sum(values) / len(values) if values else None


def test_the_lowest_mean_over_labels_comes_first(outputs):
    evaluations = read_evaluations([outputs("ours"), outputs("other", seed=1)])
    found = worst_cases(evaluations, 4, overlays=False)
    assert found is not None
    means = {case: mean_dice(evaluations[0].rows, case) for case in "abcdef"}
    assert [case.name for case in found.cases] == sorted(means, key=lambda case: means[case])[:4]
    assert found.cases[0].score == f"{min(means.values()):.3f}"
    assert (found.method, found.methods) == ("ours", ("ours", "other"))
    assert not found.has_pictures


def test_a_cell_gives_values_and_status(outputs):
    evaluations = read_evaluations([outputs("ours")])
    found = worst_cases(evaluations, 9, overlays=False)
    assert found is not None
    rows = {case.name: dict(case.rows) for case in found.cases}
    assert found.cells == "Dice / HD95 in mm"
    assert rows["f"]["liver"] == "0.000 / 412.5 (pred_empty)"
    assert rows["a"]["liver"] == "– / – (both_empty)"


def test_cases_without_any_value_are_no_worst_cases(outputs):
    folder = outputs("ours", labels=["liver"])
    found = worst_cases(read_evaluations([folder]), 9, overlays=False)
    assert found is not None
    assert "a" not in [case.name for case in found.cases]


def test_of_an_error_the_largest_size_is_the_worst(outputs):
    folder = outputs("ours", labels=["liver"])
    (evaluation,) = read_evaluations([folder])
    rows = [row for row in evaluation.rows if row.metric == "volume_error_ml"]
    values = {"b": 1.0, "c": -9.0, "d": 5.0, "e": 0.0, "f": -2.0}
    rows = [replace(row, value=values.get(row.case)) for row in rows]
    write_rows(folder / "metrics.csv", rows)
    (folder / "summary.json").unlink()
    found = worst_cases(read_evaluations([folder]), 3, overlays=False)
    assert found is not None
    assert [case.name for case in found.cases] == ["c", "d", "f"]


def test_pictures_of_all_methods_stand_side_by_side(outputs):
    evaluations = read_evaluations([outputs("ours"), outputs("other", seed=1)])
    found = worst_cases(evaluations, 2, overlays=True)
    assert found is not None
    for case in found.cases:
        assert [picture.method for picture in case.pictures] == ["ours", "other"]
        assert all(case.name in picture.alt for picture in case.pictures)


def test_pictures_that_would_not_fit_are_counted(outputs, monkeypatch):
    evaluations = read_evaluations([outputs("ours")])
    one = len(data_uri(evaluations[0].folder / "overlays" / "a.png", 1000))
    monkeypatch.setattr(cases, "MOST_BYTES", 2 * one)
    found = worst_cases(evaluations, 6, overlays=True)
    assert found is not None
    assert [len(case.pictures) for case in found.cases] == [1, 1, 0, 0, 0, 0]
    assert found.n_left_out == 4


def test_a_wide_picture_is_made_smaller(tmp_path):
    Image.new("RGBA", (1300, 650), (255, 0, 0, 255)).save(tmp_path / "a.png")
    source = data_uri(tmp_path / "a.png", 1000)
    head, _, content = source.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (1000, 500)
    assert data_uri(tmp_path / "a.png", 1000) == source


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match=r"a\.png: the overlay cannot be read .* --overlays none"):
        data_uri(tmp_path / "a.png", 1000)
