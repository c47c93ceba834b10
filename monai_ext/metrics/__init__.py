"""Metrics of one case as pure numpy functions: two masks in, one number out."""

from __future__ import annotations

from monai_ext.metrics.dice import dice, dice_slice_mean
from monai_ext.metrics.surface import foreground_box, hd95, image_diagonal_mm, nsd, surface_distances
from monai_ext.metrics.volume import relative_volume_error, volume_error_ml, volume_ml

__all__ = [
    "dice",
    "dice_slice_mean",
    "foreground_box",
    "hd95",
    "image_diagonal_mm",
    "nsd",
    "relative_volume_error",
    "surface_distances",
    "volume_error_ml",
    "volume_ml",
]
