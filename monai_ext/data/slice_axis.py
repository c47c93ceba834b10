"""Along which stored axis a volume is cut into slices."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np


def stored_slice_axis(shape: Sequence[int], affine: np.ndarray | None, slice_axis: str | None = None) -> int | None:
    """Return the stored axis along which a volume is cut into slices; None for a frame (no affine).

    The axis that :func:`monai_ext.transforms.sam_input.find_layout` cuts along, found without torch: one of a
    single voxel, else the longest voxels', of equals the last in the order R, A, S.

    Args:
        shape: (X, Y, Z).
        affine: [4, 4], stored index -> RAS mm.
        slice_axis: "R", "A" or "S" to force it.
    """
    if affine is None:
        return None
    towards = nib.orientations.io_orientation(affine)[:, 0].astype(int)  # patient axis of each stored axis
    order = [int(np.flatnonzero(towards == patient_axis)[0]) for patient_axis in range(3)]
    if slice_axis is not None:
        return order["RAS".index(slice_axis)]
    spacing = nib.affines.voxel_sizes(affine)
    return order[through_plane_axis([shape[axis] for axis in order], [spacing[axis] for axis in order])]


def through_plane_axis(shape: Sequence[int], spacing: Sequence[float] | None) -> int:
    """Return the axis that counts slices: one of a single voxel, else the one with the largest spacing.

    The rule of :func:`monai_ext.transforms.sam_input.choose_slice_axis` where no affine is known: of axes
    within 1 % of the largest spacing it is the last.
    """
    sizes = np.ones(len(shape)) if spacing is None else np.asarray(spacing, dtype=float)
    candidates = [axis for axis in range(len(shape)) if shape[axis] == 1] or list(range(len(shape)))
    largest = max(sizes[axis] for axis in candidates)
    return max(axis for axis in candidates if sizes[axis] >= 0.99 * largest)
