"""On which scale the grey values of a picture are, as far as its type and its values say it."""

from __future__ import annotations

import numpy as np

OVERSHOOT = 0.05
"""Share of the range by which decimals may leave it, as they do after an interpolation."""

DARKEST = 0.25
"""Share of the range that the brightest pixel reaches at least; below, the range is not known."""

WIDENED = (257, 256)
"""Factors by which 8-bit values are stored in 16 bits."""


def factor_to_8_bits(values: np.ndarray, is_float: bool) -> float | None:
    """Return the factor that brings a picture's grey values to [0, 255].

    Decimals are on the scale [0, 1] or [0, 255]. Whole numbers up to 255 are 8-bit values, and so are larger ones that
    are all multiples of 257 or 256. A camera of 10, 12 or 14 bits, or a slice of an MR in its own units, fits none of
    them.

    Args:
        values: of all pixels, finite.
        is_float: whether the file stores decimals; 0 and 1 are then black and white.

    Returns:
        255, 1, 1/257 or 1/256; None where nothing says it.
    """
    low, high = float(values.min()), float(values.max())
    if is_float:
        fits = [
            top for top in (1.0, 255.0) if low >= -OVERSHOOT * top and DARKEST * top <= high <= (1 + OVERSHOOT) * top
        ]
        return 255.0 / fits[0] if fits else None
    if low < 0:
        return None
    if high <= 255:
        return 1.0
    return next((1.0 / step for step in WIDENED if not (values % step).any()), None)
