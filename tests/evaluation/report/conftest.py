"""Made-up output folders, with names that no file should have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_ext.evaluation.record import write_record
from monai_ext.evaluation.summary import summarise, write_summary
from monai_ext.evaluation.table import Row, write_rows

METRICS = ("dice", "hd95_mm", "nsd_2mm", "volume_error_ml")


def made_up_rows(
    algorithm: str, labels: Sequence[str], cases: Sequence[str], seed: int, task: str = "toy"
) -> list[Row]:
    """Rows of random values; the first case lacks the first label, the last one is missed."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, case in enumerate(cases):
        for label in labels:
            quality = rng.beta(8, 3)
            status = {0: "both_empty", len(cases) - 1: "pred_empty"}.get(number, "ok") if label == labels[0] else "ok"
            values = {
                "dice": quality,
                "hd95_mm": 40 * (1 - quality),
                "nsd_2mm": quality**2,
                "volume_error_ml": 3 - 4 * quality,
            }
            if status == "pred_empty":
                values |= {"dice": 0.0, "hd95_mm": 412.5, "nsd_2mm": 0.0}
            for metric in METRICS:
                value = None if status == "both_empty" else float(values[metric])
                patient, visit = f"p{number // 2}", str(1 + number % 2)
                rows.append(Row(task, algorithm, case, patient, visit, "", "", "0", label, metric, value, status))
    return rows


@pytest.fixture
def outputs(tmp_path) -> Callable[..., Path]:
    """(algorithm, options) -> an output folder with everything that an evaluation writes."""

    def write(
        algorithm: str = "ours",
        *,
        labels: Sequence[str] = ("liver", "spleen"),
        cases: Sequence[str] = ("a", "b", "c", "d", "e", "f"),
        seed: int = 0,
        record: bool = True,
        overlays: bool = True,
        folder: str | None = None,
    ) -> Path:
        path = tmp_path / (folder or algorithm)
        rows = made_up_rows(algorithm, labels, cases, seed)
        write_rows(path / "metrics.csv", rows)
        write_summary(path / "summary.json", summarise(rows, draws=200))
        if overlays:
            (path / "overlays").mkdir()
            for case in cases:
                if Path(case).name == case and len(case) < 200:
                    Image.new("RGB", (1300, 400), (20, 90, 160)).save(path / "overlays" / f"{case}.png")
        if record:
            write_record(path, config={"device": "cpu", "n_pos": [1, 3]}, seed=3)
        return path

    return write
