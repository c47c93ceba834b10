"""How numbers are written."""

from __future__ import annotations

import pytest

from monai_ext.evaluation.report import wording


@pytest.mark.parametrize(
    ("value", "metric", "signed", "text"),
    [
        (0.84635, "dice", False, "0.846"),
        (0.05, "nsd_2mm", True, "+0.050"),
        (-0.00004, "dice", True, "0.000"),
        (12.345, "hd95_mm", False, "12.3"),
        (-62.93, "volume_error_ml", False, "−62.9"),
        (None, "dice", False, "–"),
    ],
)
def test_a_value_has_the_digits_of_its_metric(value, metric, signed, text):
    assert wording.number(value, metric, signed) == text


@pytest.mark.parametrize(
    ("metric", "title"),
    [("dice", "Dice"), ("nsd_1.5mm", "Surface Dice at 1.5 mm"), ("hd95_px", "HD95 in pixels"), ("new", "new")],
)
def test_metrics_have_titles(metric, title):
    assert wording.metric_title(metric) == title


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(999, "999 bytes"), (1500, "1.5 kB"), (8_741_871, "8.7 MB"), (3.2e9, "3.2 GB"), (None, "–")]
)
def test_sizes(n_bytes, text):
    assert wording.size(n_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(75.88, "75.9 s"), (600, "10 min"), (9000, "2 h 30 min"), (None, "–")])
def test_durations(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(("p", "text"), [(None, "–"), (0.0314, "0.031"), (1.0, "1"), (1e-7, "< 0.0001")])
def test_p_values(p, text):
    assert wording.p_value(p) == text
