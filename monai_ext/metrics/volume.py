"""Volumes of masks in millilitres and how far a predicted volume is off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def volume_ml(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Volume of a mask: number of voxels times the volume of one, in ml (1 ml = 1000 mm³).

    Args:
        mask: boolean mask [X, Y, Z].
        spacing: size of a voxel along X, Y, Z, in mm.

    Raises:
        ValueError: where mask and spacing are not three-dimensional.
    """
    if mask.ndim != 3 or len(spacing) != 3:
        raise ValueError(f"a volume needs three axes, got shape {mask.shape} and spacing {tuple(spacing)}")
    return np.count_nonzero(mask) * math.prod(float(size) for size in spacing) / 1000.0


def volume_error_ml(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> float:
    """Predicted volume minus reference volume in ml: signed, so that its mean over cases is the bias.

    Args:
        reference: boolean mask [X, Y, Z].
        prediction: boolean mask [X, Y, Z].
        spacing: size of a voxel along X, Y, Z, in mm.
    """
    return volume_ml(prediction, spacing) - volume_ml(reference, spacing)


def relative_volume_error(reference: np.ndarray, prediction: np.ndarray) -> float:
    """(Predicted - reference volume) / reference volume, without unit; NaN where the reference is empty.

    Args:
        reference: boolean mask of any shape.
        prediction: boolean mask of the same shape.
    """
    of_reference, of_prediction = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    if of_reference == 0:
        return math.nan
    return (of_prediction - of_reference) / of_reference
