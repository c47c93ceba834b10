"""Stored cases made of arrays, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_ext.data.slice_store import StoredCase, count_pixels


def stored_case(folder: Path, image: np.ndarray, name: str = "a", **masks: np.ndarray) -> StoredCase:
    """Store slices [n, H, W] or [n, C, H, W] and masks [n, H, W] of class indices; the first mask counts the pixels."""
    case = StoredCase(name, "p", "made up", "MR", ("x", "y"), str(folder / name))
    arrays = {"image": image if image.ndim == 4 else image[:, None], **masks}
    arrays |= {"affine": np.eye(4), "slices": np.arange(len(image))}
    if masks:
        arrays["pixels"] = count_pixels(next(iter(masks.values())), 2)
    for what, array in arrays.items():
        np.save(f"{case.stem}_{what}.npy", array.astype(np.float64 if what == "affine" else array.dtype))
    return case
