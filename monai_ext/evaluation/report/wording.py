"""How numbers, metrics and sizes are written in a report."""

from __future__ import annotations

import re
from typing import Any

from monai_ext.evaluation.pairing import better_direction
from monai_ext.evaluation.table import STATUSES

NONE = "–"
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "nearer_zero": "nearer to zero is better"}
STATUS_TEXTS = {
    "ok": "both masks hold the structure",
    "pred_empty": "missed: the reference holds the structure, the prediction does not",
    "ref_empty": "invented: the prediction holds the structure, the reference does not",
    "both_empty": "neither mask holds it: no value",
    "missing": "there is no prediction",
    "failed": "the method failed",
}


def metric_title(metric: str) -> str:
    """Return what a metric is called: ``nsd_2mm`` -> "Surface Dice at 2 mm"."""
    known = {
        "dice": "Dice",
        "dice_slice_mean": "Dice per slice",
        "hd95_mm": "HD95 in mm",
        "hd95_px": "HD95 in pixels",
        "volume_ml": "Volume of the prediction in ml",
        "volume_error_ml": "Volume error in ml",
        "relative_volume_error": "Relative volume error",
    }
    tolerance = re.fullmatch(r"nsd_(.+)mm", metric)
    return known.get(metric) or (f"Surface Dice at {tolerance[1]} mm" if tolerance else metric)


def metric_note(metric: str) -> str:
    """Return which values are better, as words; empty where there is no direction."""
    return DIRECTIONS.get(better_direction(metric), "")


def number(value: float | None, metric: str, signed: bool = False) -> str:
    """Return a value with the digits that its metric deserves."""
    if value is None:
        return NONE
    digits = 1 if metric.startswith(("hd95", "volume")) else 3
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", "\N{MINUS SIGN}")


def interval(statistics: dict[str, Any], metric: str) -> str:
    """Return ``mean [low, high]``."""
    if statistics["mean"] is None:
        return NONE
    mean, low, high = (number(statistics[name], metric) for name in ("mean", "ci_low", "ci_high"))
    return f"{mean} [{low}, {high}]"


def status_counts(statistics: dict[str, Any]) -> str:
    """Return what was not ok: "2 pred_empty, 1 missing"."""
    counts = statistics["n_by_status"]
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if status != "ok" and counts[status]) or NONE


def p_value(p: float | None) -> str:
    """Return a p-value with two digits."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def effect_size(value: float | None) -> str:
    """Return an effect size with its sign and two digits."""
    return NONE if value is None else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def size(n_bytes: float | None) -> str:
    """Return a number of bytes in the unit that suits it."""
    if n_bytes is None:
        return NONE
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def time(text: str | None) -> str:
    """Return a time as records write it, to the second and with its zone: "2026-11-20 12:37:19 UTC"."""
    return (text or "").replace("T", " ").replace("+00:00", " UTC")


def short_hash(sha256: str) -> str:
    """Return the beginning of a checksum, which is enough to tell files apart."""
    return f"{sha256[:16]}…"


def count(n: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 case", "2 cases"."""
    return f"{n} {singular if n == 1 else plural or singular + 's'}"
