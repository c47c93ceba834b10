"""Intersection over union pooled over the pictures of one class: the figure of the PerSeg protocol (PerSAM, §4.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from monai_ext.evaluation.formats import CaseDetail, CaseKey
from monai_ext.evaluation.table import Row

METRIC = "iou_pooled"
DEFINITION = (
    "sum of intersections / sum of unions over all cases of a patient (in PerSeg: of an object), then the mean over "
    "patients; large structures and images weigh more within a patient; a patient with neither reference nor "
    "prediction in any case has no value and is left out"
)


def pooled_iou(rows: Iterable[Row], details: Mapping[CaseKey, CaseDetail]) -> dict[str, Any]:
    """Pool intersections and unions over the cases of each patient, for each label.

    Repeated runs are pooled apart, as patients of their own.

    Args:
        rows: of ``metrics.csv``; they say which case is of which patient (or video, object).
        details: voxel counts by case and run.

    Returns:
        ``definition`` and, in ``labels``, for each label ``mean``, ``n`` (patients with a value) and ``patients``
        {patient: value or None}; a patient of several runs as ``patient (run R)``. Values to 12 digits.

    Raises:
        ValueError: where a case has no voxel counts.
    """
    patients = {(row.case, row.run): row.cluster for row in rows}
    several = len({run for _, run in patients}) > 1
    sums: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for (case, run), patient in sorted(patients.items()):
        detail = details.get((case, run))
        if detail is None or not detail.counts:
            raise ValueError(f"case {case} has no voxel counts to pool")
        for label, of in detail.counts.items():
            pair = sums[label][f"{patient} (run {run})" if several else patient]
            pair[0] += of.tp
            pair[1] += of.tp + of.fp + of.fn
    return {"definition": DEFINITION, "labels": {label: _of_label(found) for label, found in sums.items()}}


def _of_label(sums: Mapping[str, list[int]]) -> dict[str, Any]:
    values = {name: float(f"{common / union:.12g}") if union else None for name, (common, union) in sums.items()}
    defined = [value for value in values.values() if value is not None]
    mean = float(f"{sum(defined) / len(defined):.12g}") if defined else None
    return {"mean": mean, "n": len(defined), "patients": values}
