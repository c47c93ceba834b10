"""Smooth random fields, on the pixels of an image and over space in mm, and the blur of an image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

Floats = NDArray[np.float32]


@lru_cache(maxsize=512)
def _spline_weights(size: int, cells: int) -> sparse.csr_array:
    """Uniform cubic B-spline weights [size, cells + 3] that raise ``cells`` intervals to ``size`` samples."""
    position = (np.arange(size) + 0.5) / size * cells
    start = np.minimum(position.astype(int), cells - 1)
    t = position - start
    pieces = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    weights = (np.stack(pieces, axis=1) / 6).astype(np.float32)
    columns = start[:, None] + np.arange(4)
    return sparse.csr_array((weights.ravel(), columns.ravel(), 4 * np.arange(size + 1)), shape=(size, cells + 3))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Floats:
    """Gaussian noise [H, W] of about unit variance with ``cells`` bumps along the longer side.

    Drawn on a coarse lattice and raised by two sparse products: far cheaper than a filter at full size, and
    no threads of a linear algebra library get in the way of a training's.
    """
    rows, columns = (max(1, round(cells * n / max(shape))) for n in shape)
    lattice = rng.standard_normal((columns + 3, rows + 3), dtype=np.float32)
    lattice *= np.float32(315 / 151)  # 151 / 315: mean sum of squared cubic B-spline weights, an axis
    wide = np.ascontiguousarray((_spline_weights(shape[1], columns) @ lattice).T)
    return _spline_weights(shape[0], rows) @ wide


def blur(image: Floats, sigma: float) -> Floats:
    """Gaussian blur [H, W] of ``sigma`` pixels; up to 0.3 pixels the image as it is."""
    return ndimage.gaussian_filter(image, sigma, truncate=2.0) if sigma > 0.3 else image


class Waves:
    """A smooth random field over space, the sum of plane waves: unit variance, defined at any point in mm."""

    def __init__(self, rng: np.random.Generator, shortest: float, longest: float, count: int = 24) -> None:
        direction = rng.standard_normal((count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = np.exp(rng.uniform(np.log(shortest), np.log(longest), (count, 1)))
        self.frequency = (2 * np.pi * direction / length).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, count).astype(np.float32)

    def __call__(self, points: Floats) -> Floats:
        """Values [N] at ``points`` [3, N] in mm."""
        total = np.zeros(points.shape[1], np.float32)
        for frequency, phase in zip(self.frequency, self.phase, strict=True):
            total += np.cos(frequency @ points + phase)
        return total * np.float32(np.sqrt(2 / len(self.phase)))
