"""One random labelled slice, of any kind, to train on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.phantoms.ct import ct_slice
from monai_ext.data.phantoms.endoscopy import rgb_slice
from monai_ext.data.phantoms.mr import mr_slice
from monai_ext.data.phantoms.noise import Floats


def random_slice(rng: np.random.Generator, size: int, kind: str) -> tuple[Floats, NDArray[np.int64]]:
    """Draw one random image with one to four labelled structures that do not overlap.

    ``"mr"`` is anatomy-like: a body in air, unlabelled organs, and labelled blobs, crescents, rings (wall and
    cavity are two labels), lesions and large organs, under a bias field, blur and Rician noise. ``"ct"`` has the
    same structures at low contrast among fat, muscle, lungs and bones, in a window. ``"rgb"`` is endoscopy-like:
    lit mucosa with folds and one or two labelled polyps, in a wide range of hues.

    Args:
        rng: source of all randomness; the same state gives the same slice.
        size: height and width in pixels, at least 64.
        kind: "mr", "ct" or "rgb".

    Returns:
        The image, float32 [1, size, size] ("mr", "ct") or [3, size, size] ("rgb"), 0..255, and the label, int64
        [size, size]: 0 background, 1..K structures, at least one of them of more than 20 pixels.

    Raises:
        ValueError: ``kind`` is none of these, or ``size`` is too small to hold a structure.
    """
    if size < 64:
        raise ValueError(f"a phantom slice needs at least 64 pixels a side, not {size}")
    if kind == "mr":
        return mr_slice(rng, size)
    if kind == "ct":
        return ct_slice(rng, size)
    if kind == "rgb":
        return rgb_slice(rng, size)
    raise ValueError(f"unknown kind of phantom slice {kind!r}: use 'mr', 'ct' or 'rgb'")
