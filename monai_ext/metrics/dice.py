"""Overlap of two masks: Dice over the whole case, and the mean per-slice Dice of 2-D protocols."""

from __future__ import annotations

import math

import numpy as np


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|) over all voxels of a case (Dice, Ecology 1945).

    Args:
        reference: boolean mask of any shape.
        prediction: boolean mask of the same shape.

    Returns:
        A value in [0, 1]; NaN where both masks are empty.

    Raises:
        ValueError: where the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference has shape {reference.shape}, prediction {prediction.shape}")
    total = np.count_nonzero(reference) + np.count_nonzero(prediction)
    if total == 0:
        return math.nan
    return 2.0 * np.count_nonzero(reference & prediction) / total


def dice_slice_mean(reference: np.ndarray, prediction: np.ndarray, slice_axis: int = -1) -> float:
    """Mean of the 2-D Dice coefficients over the slices in which the reference is present.

    The per-slice score of 2-D protocols (P²SAM on 4D-Lung). Slices without reference are left out, so false
    positives there are not punished: :func:`dice` stands beside it for that reason.

    Args:
        reference: boolean mask [X, Y, Z], or [W, H], which is one slice.
        prediction: boolean mask of the same shape.
        slice_axis: axis that counts the slices; without meaning for two dimensions.

    Returns:
        A value in [0, 1]; NaN where the reference is empty.

    Raises:
        ValueError: where the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference has shape {reference.shape}, prediction {prediction.shape}")
    if reference.ndim == 2:
        return dice(reference, prediction) if reference.any() else math.nan
    in_plane = tuple(axis for axis in range(reference.ndim) if axis != slice_axis % reference.ndim)
    of_reference = np.count_nonzero(reference, axis=in_plane)
    total = of_reference + np.count_nonzero(prediction, axis=in_plane)
    common = np.count_nonzero(reference & prediction, axis=in_plane)
    present = of_reference > 0
    if not present.any():
        return math.nan
    return float(np.mean(2.0 * common[present] / total[present]))
