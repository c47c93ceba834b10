"""Tables and figures of studies."""

from __future__ import annotations

import csv

import pytest

from monai_ext.evaluation.study import DRAWINGS, report_study, study_means


def make_rows(xs) -> list[dict]:
    return [
        {"panel": panel, "series": series, "x": x, "class": "liver", "patient": patient, "episode": k, "value": value}
        for panel in ("absolute", "relative")
        for series in ("ProSAM", "VRP-SAM")
        for k, x in enumerate(xs)
        for patient, value in (("a", 0.2 + 0.1 * k), ("b", 0.4 + 0.1 * k))
    ]


def test_means_have_intervals_over_patients():
    points = study_means(make_rows([0.0, 0.5]))
    assert [point[:5] for point in points[:2]] == [("absolute", "ProSAM", 0.0, 2, 2), ("absolute", "ProSAM", 0.5, 2, 2)]
    assert points[0][5:] == pytest.approx((0.3, 0.2, 0.4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWINGS)
def test_every_kind_of_figure_is_drawn(tmp_path, capsys, kind):
    rows = make_rows(["mask", "box"] if kind == "groups" else [0.0, 0.5, 1.0])
    report_study(tmp_path, rows, kind, "x")
    assert (tmp_path / "study.png").stat().st_size > 5000
    with open(tmp_path / "study.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (tmp_path / "means.csv").is_file() == (kind != "scatter")
    assert "VRP-SAM" in capsys.readouterr().out
