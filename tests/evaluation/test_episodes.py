"""Summaries over frozen episodes against what can be counted by hand."""

from __future__ import annotations

import csv
import json

import pytest

from monai_ext.data.episode_outcomes import EpisodeOutcome
from monai_ext.data.episodes import Episode, SliceName
from monai_ext.evaluation.episodes import case_rows, report_episodes, summarise_episodes


def outcome(name: str, patient: str, counts: tuple[int, int, int, int], case: str | None = None) -> EpisodeOutcome:
    query = SliceName("Toy", case or f"{patient}0", 1)
    return EpisodeOutcome(Episode(name, SliceName("Toy", "s", 0), query), patient, "ok", counts, {"agreement": 0.5})


OUTCOMES = [
    outcome("liver", "a", (30, 10, 0, 60)),
    outcome("liver", "a", (10, 0, 10, 80)),
    outcome("liver", "b", (0, 0, 20, 80)),
    outcome("spleen", "b", (20, 20, 0, 60)),
]


def test_areas_are_pooled_before_they_are_divided():
    found = summarise_episodes(OUTCOMES, draws=200)
    liver, spleen = 40 / (40 + 10 + 30), 20 / 40
    assert found["classes"]["liver"]["iou"]["mean"] == pytest.approx(liver)
    assert found["miou"]["mean"] == pytest.approx((liver + spleen) / 2)
    foreground, background = 60 / (60 + 30 + 30), 280 / (280 + 30 + 30)
    assert found["fb_iou"]["mean"] == pytest.approx((foreground + background) / 2)
    dice_a = 80 / (80 + 10 + 10)
    assert found["classes"]["liver"]["dice"]["mean"] == pytest.approx((dice_a + 0) / 2)
    assert found["dice"]["mean"] == pytest.approx(((dice_a + 0) / 2 + 40 / 60) / 2)
    assert (found["episodes"], found["patients"]) == (4, 2)


def test_intervals_resample_patients():
    found = summarise_episodes(OUTCOMES, draws=500)
    liver = found["classes"]["liver"]["dice"]
    assert (liver["low"], liver["high"]) == (0.0, 0.8), "one patient alone is either end"
    assert found["classes"]["spleen"]["dice"]["low"] == found["classes"]["spleen"]["dice"]["high"]
    assert summarise_episodes(OUTCOMES, draws=500) == found
    assert "2 patients" in found["warnings"][0]


def test_a_case_s_rows_are_those_that_compare_reads():
    rows = {(row.label, row.case): row for row in case_rows(OUTCOMES, "x")}
    assert rows["liver", "a0"].value == pytest.approx(0.8)
    assert (rows["liver", "b0"].value, rows["liver", "b0"].status) == (0.0, "pred_empty")
    (empty,) = case_rows([outcome("liver", "a", (0, 0, 0, 9))], "x")
    assert (empty.value, empty.status) == (None, "both_empty")


def test_a_report_is_written_and_printed(tmp_path, capsys):
    report_episodes(tmp_path, OUTCOMES, "prosam", annotation="box")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["algorithm"], summary["annotation"], summary["episodes"]) == ("prosam", "box", 4)
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert {row["algorithm"] for row in csv.DictReader(file)} == {"prosam"}
    assert (tmp_path / "episodes.csv").is_file()
    assert "FB-IoU" in capsys.readouterr().out
