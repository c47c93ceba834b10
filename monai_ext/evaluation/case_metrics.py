"""All metrics of one case, with a value for every undefined case: counted, never dropped.

A structure that is missed, invented or not predicted at all gets the worst value (Dice and NSD 0, HD95 the
diagonal of the image), so that a mean over cases cannot improve by failing. Only a structure that neither
mask has stays without a value. The policy's name is :data:`UNDEFINED_POLICY`.

=========  ==================  ==================  ==========  ==============
reference  prediction          status              Dice, NSD   HD95
=========  ==================  ==================  ==========  ==============
present    present             ok                  value       value
present    empty               pred_empty          0           image diagonal
empty      present             ref_empty           0           image diagonal
empty      empty               both_empty          none        none
any        missing or failed   missing, failed     0           image diagonal
=========  ==================  ==================  ==========  ==============
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from monai_ext.data.slice_axis import through_plane_axis
from monai_ext.errors import UserError
from monai_ext.metrics.dice import dice, dice_slice_mean
from monai_ext.metrics.surface import foreground_box, hd95_of, image_diagonal_mm, nsd_of, surface_distances
from monai_ext.metrics.volume import relative_volume_error, volume_error_ml, volume_ml

UNDEFINED_POLICY = "worst_value"
UNDEFINED_POLICY_TEXT = (
    "pred_empty, ref_empty, missing and failed count as Dice 0, NSD 0 and HD95 = image diagonal; "
    "both_empty has no value, is counted and left out of means"
)
HD95_DEFINITION = (
    "95th percentile of surface distances in each direction, then the larger one (MONAI's definition); "
    "surface voxels by face neighbours, voxels on the image border count as surface"
)

MetricValue = tuple[str, str, float | None, str]


@dataclass(frozen=True)
class Masks:
    """The masks of one label in a case, and what its metrics need besides.

    Attributes:
        reference: boolean, cut to the box that holds both masks.
        prediction: likewise.
        spacing: of the voxels in mm; None for frames.
        tolerance: of NSD in mm.
        slice_axis: axis that counts slices.
        diagonal: of the whole image, in mm or pixels.
    """

    reference: np.ndarray
    prediction: np.ndarray
    spacing: Sequence[float] | None
    tolerance: float
    slice_axis: int
    diagonal: float

    @cached_property
    def distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Surface distances in both directions; see :func:`monai_ext.metrics.surface.surface_distances`."""
        return surface_distances(self.reference, self.prediction, self.spacing)


Value = Callable[[Masks], float | None]


@dataclass(frozen=True)
class Kind:
    """How one metric is made.

    Attributes:
        value: where reference and prediction both hold the label.
        otherwise: where one of them does not.
        name: in ``metrics.csv``, of (whether the voxels have a size, tolerance of NSD).
        needs_spacing: frames have no such metric.
        needs_volume: images of two dimensions have no such metric.
    """

    value: Value
    otherwise: Value
    name: Callable[[bool, float], str]
    needs_spacing: bool = False
    needs_volume: bool = False


def _worst_overlap(masks: Masks) -> float:
    return 0.0


def _plain(name: str) -> Callable[[bool, float], str]:
    return lambda has_spacing, tolerance: name


def _volume(name: str, value: Value) -> Kind:
    return Kind(value, value, _plain(name), needs_spacing=True, needs_volume=True)


KINDS: dict[str, Kind] = {
    "dice": Kind(lambda m: dice(m.reference, m.prediction), _worst_overlap, _plain("dice")),
    "dice_slice_mean": Kind(
        lambda m: dice_slice_mean(m.reference, m.prediction, m.slice_axis), _worst_overlap, _plain("dice_slice_mean")
    ),
    "hd95": Kind(
        lambda m: hd95_of(*m.distances),
        lambda m: m.diagonal,
        lambda has_spacing, tolerance: "hd95_mm" if has_spacing else "hd95_px",
    ),
    "nsd": Kind(
        lambda m: nsd_of(*m.distances, m.tolerance),
        _worst_overlap,
        lambda has_spacing, tolerance: f"nsd_{tolerance:g}mm",
        needs_spacing=True,
    ),
    "volume_ml": _volume("volume_ml", lambda m: volume_ml(m.prediction, _known(m.spacing))),
    "volume_error_ml": _volume(
        "volume_error_ml", lambda m: volume_error_ml(m.reference, m.prediction, _known(m.spacing))
    ),
    "relative_volume_error": _volume(
        "relative_volume_error", lambda m: relative_volume_error(m.reference, m.prediction)
    ),
}
"""All metrics of a case, in the order of ``metrics.csv``. A further one is a further entry."""


def _known(spacing: Sequence[float] | None) -> Sequence[float]:
    if spacing is None:
        raise ValueError("a volume needs the size of its voxels")
    return spacing


@dataclass(frozen=True)
class VoxelCounts:
    """How often prediction and reference agree on one label, in voxels: true/false positives/negatives."""

    tp: int
    fp: int
    fn: int
    tn: int


def case_rows(
    reference: np.ndarray,
    prediction: np.ndarray | None,
    labels: Mapping[str, int],
    spacing: Sequence[float] | None,
    *,
    ignore: int | None = None,
    nsd_tolerance_mm: float = 2.0,
    slice_axis: int | None = None,
    absent: Literal["missing", "failed"] = "missing",
) -> list[MetricValue]:
    """Measure every label of a case.

    Per label, in this order: ``dice``; ``dice_slice_mean`` (mean of the per-slice Dice over the slices where
    the reference is present); ``hd95_mm`` and ``nsd_<tolerance>mm``; for volumes ``volume_ml`` (of the
    prediction), ``volume_error_ml`` (predicted minus reference volume) and, where the reference holds the
    label, ``relative_volume_error`` (of the reference volume). Without spacing: ``hd95_px`` and neither NSD nor
    volumes. A missing or failed prediction has the volume 0. A row of status ``both_empty`` has the value None
    throughout.

    Args:
        reference: integer mask [X, Y, Z] or [W, H], values as in ``labels``.
        prediction: integer mask of the same shape, or boolean [L, X, Y, Z] or [L, W, H], one channel per
            label in the order of ``labels`` where labels overlap; None: there is no prediction.
        labels: value in the masks by name.
        spacing: size of a voxel along each axis in mm, from the image's geometry; None for frames.
        ignore: value of the reference whose voxels are left out of both masks.
        nsd_tolerance_mm: tolerance of NSD in mm.
        slice_axis: axis that counts slices; None: :func:`monai_ext.data.slice_axis.through_plane_axis`.
        absent: status where ``prediction`` is None.

    Returns:
        (label, metric, value, status) for every label and metric.

    Raises:
        ValueError: where the shapes do not fit each other.
    """
    if slice_axis is None:
        slice_axis = through_plane_axis(reference.shape, spacing)
    kinds = metric_names(reference.ndim, spacing is not None, nsd_tolerance_mm)
    diagonal = image_diagonal_mm(reference.shape, spacing)
    rows: list[MetricValue] = []
    for label, in_reference, in_prediction in _masks(reference, prediction, labels, ignore):
        status = absent if prediction is None else _status(in_reference, in_prediction)
        box = foreground_box(in_reference | in_prediction) or ...
        masks = Masks(in_reference[box], in_prediction[box], spacing, nsd_tolerance_mm, slice_axis, diagonal)
        for name, kind in kinds.items():
            if kind != "relative_volume_error" or in_reference.any():
                rows.append((label, name, _value(KINDS[kind], masks, status), status))
    return rows


def voxel_counts(
    reference: np.ndarray, prediction: np.ndarray | None, labels: Mapping[str, int], *, ignore: int | None = None
) -> dict[str, VoxelCounts]:
    """Count the voxels of each label in a case; arguments as for :func:`case_rows`.

    Ignored voxels are in none of the counts. Without a prediction nothing is predicted.
    """
    voxels = reference.size if ignore is None else int(np.count_nonzero(reference != ignore))
    found = {}
    for label, in_reference, in_prediction in _masks(reference, prediction, labels, ignore):
        common = int(np.count_nonzero(in_reference & in_prediction))
        fp = int(np.count_nonzero(in_prediction)) - common
        fn = int(np.count_nonzero(in_reference)) - common
        found[label] = VoxelCounts(common, fp, fn, voxels - common - fp - fn)
    return found


def refuse_tolerance(tolerance_mm: float) -> None:
    """Refuse a tolerance of NSD that is no distance, with a ``UserError``."""
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UserError(f"--nsd_tolerance_mm {tolerance_mm:g} is no distance; set 0 mm or more")


def _masks(
    reference: np.ndarray, prediction: np.ndarray | None, labels: Mapping[str, int], ignore: int | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each label with its two boolean masks, cut to the box that holds all that is not background."""
    channels = prediction is not None and prediction.shape == (len(labels), *reference.shape)
    if prediction is not None and not channels and prediction.shape != reference.shape:
        raise ValueError(
            f"reference has shape {reference.shape}, prediction {prediction.shape}, for {len(labels)} labels"
        )
    if 0 not in labels.values():
        box = _foreground(reference, prediction, channels)
        reference = reference[box]
        if prediction is not None:
            prediction = prediction[(slice(None),) * channels + box]
    known = None if ignore is None else reference != ignore
    for channel, (label, value) in enumerate(labels.items()):
        in_reference = reference == value
        if prediction is None:
            in_prediction = np.zeros_like(in_reference)
        else:
            in_prediction = prediction[channel].astype(bool, copy=False) if channels else prediction == value
        if known is not None:
            in_reference, in_prediction = in_reference & known, in_prediction & known
        yield label, in_reference, in_prediction


def _foreground(reference: np.ndarray, prediction: np.ndarray | None, channels: bool) -> tuple[slice, ...]:
    """Return the box around all that is not 0 in reference or prediction; of empty masks one of no voxels."""
    foreground = reference != 0
    if prediction is not None:
        for part in prediction if channels else (prediction,):
            foreground |= part != 0
    return foreground_box(foreground) or (slice(0, 0),) * reference.ndim


def metric_names(dimensions: int, has_spacing: bool, tolerance: float) -> dict[str, str]:
    """Return the metrics of a case: name in ``metrics.csv`` -> kind."""
    return {
        kind.name(has_spacing, tolerance): key
        for key, kind in KINDS.items()
        if (has_spacing or not kind.needs_spacing) and (dimensions == 3 or not kind.needs_volume)
    }


def _status(reference: np.ndarray, prediction: np.ndarray) -> str:
    if reference.any():
        return "ok" if prediction.any() else "pred_empty"
    return "ref_empty" if prediction.any() else "both_empty"


def _value(kind: Kind, masks: Masks, status: str) -> float | None:
    """Return a metric of one label; None where neither mask holds it."""
    if status == "both_empty":
        return None
    return kind.value(masks) if status == "ok" else kind.otherwise(masks)
