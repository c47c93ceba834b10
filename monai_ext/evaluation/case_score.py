"""One case scored from its files: masks are read, measured and let go; numbers and words are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.data.checks import check_affine, check_same_grid, on_image
from monai_ext.data.images import Geometry, read_geometry, read_label
from monai_ext.data.slice_axis import stored_slice_axis
from monai_ext.errors import UserError
from monai_ext.evaluation.case_metrics import MetricValue, VoxelCounts, case_rows, voxel_counts
from monai_ext.evaluation.predictions import OtherGridError, PredictionFiles, read_prediction
from monai_ext.metrics.surface import foreground_box


@dataclass(frozen=True)
class Options:
    """How cases are measured.

    Args:
        labels: value in the masks of each label that is scored.
        known: values that masks may hold: those of all labels of the list, 0 and the ignored one.
        ignore: value of the reference whose voxels are left out.
        nsd_tolerance_mm: tolerance of the normalised surface Dice.
        slice_axis: "R", "A" or "S": axis that counts slices; None: the one that inferers choose.
        resample: bring predictions of other grids onto the reference's.
    """

    labels: Mapping[str, int]
    known: frozenset[int]
    ignore: int | None = None
    nsd_tolerance_mm: float = 2.0
    slice_axis: str | None = None
    resample: bool = False


@dataclass
class CaseScore:
    """What is kept of a case.

    Args:
        values: (label, metric, value, status) of every label and metric.
        counts: voxel counts of each label.
        failed: a sentence for each prediction that could not be read.
        unexpected: values that are no label of the list, by file.
        resampled: whether a prediction was brought onto the reference's grid.
    """

    values: list[MetricValue] = field(default_factory=list)
    counts: dict[str, VoxelCounts] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    unexpected: dict[str, tuple[int, ...]] = field(default_factory=dict)
    resampled: bool = False


def score_case(case: str, image: str, label: str, files: PredictionFiles, options: Options) -> CaseScore:
    """Measure one case.

    Args:
        case: its name.
        image: file of the image, of which only the grid is read.
        label: file of the reference mask.
        files: of the prediction.
        options: how.

    Raises:
        UserError: where the reference cannot be read or lies on another grid than image or prediction.
    """
    try:
        return _score_case(label, _reference_geometry(image, label), files, options)
    except UserError as error:
        raise UserError(f"case {case!r}: {error}") from error


def _score_case(label: str, geometry: Geometry, files: PredictionFiles, options: Options) -> CaseScore:
    score = CaseScore()
    reference = read_label(label)
    _note_unexpected(score, label, reference, options)
    if files.by_label:
        for name, value in options.labels.items():
            path = files.by_label.get(name)
            mask, absent = _prediction(path, label, geometry, options, score)
            channel = None if mask is None else (mask != 0)[None]
            _measure(reference, channel, {name: value}, geometry, options, absent, score)
        return score
    mask, absent = _prediction(files.whole, label, geometry, options, score)
    if mask is not None and files.whole is not None:
        _note_unexpected(score, str(files.whole), mask, options)
    _measure(reference, mask, options.labels, geometry, options, absent, score)
    return score


def _measure(
    reference: np.ndarray,
    prediction: np.ndarray | None,
    labels: Mapping[str, int],
    geometry: Geometry,
    options: Options,
    absent: Any,
    score: CaseScore,
) -> None:
    score.values += case_rows(
        reference,
        prediction,
        labels,
        geometry.spacing,
        ignore=options.ignore,
        nsd_tolerance_mm=options.nsd_tolerance_mm,
        slice_axis=stored_slice_axis(geometry.shape, geometry.affine, options.slice_axis),
        absent=absent,
    )
    score.counts |= voxel_counts(reference, prediction, labels, ignore=options.ignore)


def _reference_geometry(image: str, label: str) -> Geometry:
    geometry, of_image = read_geometry(label), read_geometry(image)
    check_affine(label, geometry)
    check_same_grid(image, of_image, label, geometry)
    return on_image(of_image, geometry)


def _prediction(
    path: Path | None, label: str, geometry: Geometry, options: Options, score: CaseScore
) -> tuple[np.ndarray | None, str]:
    """Return a predicted mask, or None and why there is none."""
    if path is None:
        return None, "missing"
    try:
        mask, resampled = read_prediction(path, label, geometry, options.resample)
    except OtherGridError:
        raise
    except UserError as error:
        score.failed.append(str(error))
        return None, "failed"
    score.resampled |= resampled
    return mask, ""


def _note_unexpected(score: CaseScore, path: str, mask: np.ndarray, options: Options) -> None:
    unexpected = _values(mask) - options.known
    if unexpected:
        score.unexpected[path] = tuple(sorted(unexpected))


def _values(mask: np.ndarray) -> set[int]:
    """Return the values in a mask; counting is ten times faster than sorting where they are small."""
    box = foreground_box(mask != 0)
    if box is None:
        return {0}
    inside = mask[box]
    if inside.min() >= 0 and inside.max() < 2**16:
        return set(np.flatnonzero(np.bincount(inside.ravel())).tolist())
    return set(np.unique(inside).tolist())
