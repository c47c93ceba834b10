"""All files of an evaluation, from its rows: what :mod:`score`, :class:`CaseTable` and :mod:`merge` end in."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_ext.errors import UserError
from monai_ext.evaluation.bootstrap import DRAWS
from monai_ext.evaluation.formats import (
    CHALLENGER_FILES,
    CaseDetail,
    CaseKey,
    grand_challenge_metrics,
    nnunet_summary,
    write_challenger,
)
from monai_ext.evaluation.levels import DEFAULT_LEVELS
from monai_ext.evaluation.pooled_iou import METRIC, pooled_iou
from monai_ext.evaluation.summary import summarise, write_summary
from monai_ext.evaluation.table import Row, write_rows, write_text

ALL = ("challenger", "nnunet", "grand_challenge")
OUTPUT_FILES = (
    "metrics.csv",
    "summary.json",
    *CHALLENGER_FILES.values(),
    "nnunet_summary.json",
    "metrics.json",
)


def write_outputs(
    rows: Sequence[Row],
    output_dir: str | Path,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    formats: Collection[str] = ALL,
    mean_of: str | Sequence[str] = DEFAULT_LEVELS,
    label_values: Mapping[str, int] | None = None,
    details: Mapping[CaseKey, CaseDetail] | None = None,
    remarks: Mapping[str, Any] | None = None,
    with_pooled_iou: bool = False,
) -> dict[str, Any]:
    """Write ``metrics.csv``, ``summary.json`` and the formats of :mod:`monai_ext.evaluation.formats`.

    The same arguments give the same bytes. ``metrics.csv`` is written last, and that of an earlier run removed
    first: where it stands, all stand.

    Args:
        rows: of one algorithm on one data set.
        output_dir: folder of the files.
        seed: of the bootstrap.
        draws: of the bootstrap.
        formats: "challenger", "nnunet" and "grand_challenge", or some of them.
        mean_of: levels of the means: see :func:`monai_ext.evaluation.summary.summarise`.
        label_values: value in the masks by name, for nnU-Net's keys.
        details: files and voxel counts by case and run, for nnU-Net's summary.
        remarks: what else ``summary.json`` shall say.
        with_pooled_iou: add ``iou_pooled`` to ``summary.json``, from the voxel counts of ``details``.

    Returns:
        The summary.

    Raises:
        UserError: where there are no rows, or rows of several algorithms or data sets, or the folder cannot be
            written.
        ValueError: for an unknown format.
    """
    unknown = sorted(set(formats) - set(ALL))
    if unknown:
        raise ValueError(f"there is no format {unknown[0]!r}; choose from {', '.join(ALL)}")
    _refuse_mixture(rows)
    folder = Path(output_dir)
    if with_pooled_iou:
        remarks = {**(remarks or {}), METRIC: pooled_iou(rows, details or {})}
    summary = summarise(rows, draws, seed, mean_of, remarks)
    (folder / "metrics.csv").unlink(missing_ok=True)
    write_summary(folder / "summary.json", summary)
    if "challenger" in formats:
        write_challenger(folder, rows)
    if "nnunet" in formats:
        _write_json(folder / "nnunet_summary.json", nnunet_summary(rows, label_values, details), indent=4)
    if "grand_challenge" in formats:
        _write_json(folder / "metrics.json", grand_challenge_metrics(rows, summary), indent=2)
    write_rows(folder / "metrics.csv", rows)
    return summary


def _refuse_mixture(rows: Sequence[Row]) -> None:
    if not rows:
        raise UserError("no case was evaluated; give a data list with cases to evaluate")
    for what in ("algorithm", "task"):
        names = sorted({getattr(row, what) for row in rows})
        if len(names) > 1:
            raise UserError(
                f"the rows are of {len(names)} different values of {what} ({', '.join(names)}); "
                "write each into a folder of its own, compare puts them side by side"
            )


def _write_json(path: Path, content: Mapping[str, Any], indent: int) -> None:
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")
