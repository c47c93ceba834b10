"""A stream of pictures with one kind of lesion: bright, speckled and lobed, beside smooth round spots that are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

STREAM_LABELS = {"lesion": 255}
SIZE = 128
"""Rows and columns of a picture."""


def phantom_stream(seed: int = 0, n: int = 16) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Draw ``n`` grey pictures [128, 128] uint8 and their masks (255), each of (seed, its number) alone."""
    for number in range(n):
        rng = np.random.default_rng([seed, number, 19])
        lesion = _lobed(rng)
        picture = 90 + 25 * _smooth(rng, 12)
        for _ in range(4):
            picture += rng.uniform(25, 60) * _spot(rng)
        inside = ndimage.gaussian_filter(lesion.astype(float), 1.2)
        speckle = 75 + 40 * rng.standard_normal((SIZE, SIZE))
        picture = picture * (1 - inside) + (picture + speckle) * inside + 6 * rng.standard_normal((SIZE, SIZE))
        yield picture.clip(0, 255).round().astype(np.uint8), np.where(lesion, 255, 0).astype(np.uint8)


def _smooth(rng: np.random.Generator, sigma: float) -> NDArray[np.float64]:
    """A smooth random field of unit variance."""
    field = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), sigma, mode="wrap")
    return field / field.std()


def _lobed(rng: np.random.Generator) -> NDArray[np.bool_]:
    """A region with three to five lobes: no ellipse fits it."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    y, x = rng.uniform(44, 84, 2)
    angle = np.arctan2(rows - y, columns - x)
    radius = rng.uniform(20, 30) * (1 + 0.32 * np.cos(rng.integers(3, 6) * angle + rng.uniform(0, 6.3)))
    return np.hypot(rows - y, columns - x) <= radius


def _spot(rng: np.random.Generator) -> NDArray[np.float64]:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    y, x, radius = *rng.uniform(8, SIZE - 8, 2), rng.uniform(6, 12)
    return np.exp(-((np.hypot(rows - y, columns - x) / radius) ** 4))
