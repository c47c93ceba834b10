"""The video of two alike cells under a phase-contrast microscope, of which one is followed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.phantoms.blobs import Blob, random_blob
from monai_ext.data.phantoms.noise import Floats, blur, smooth_noise

CELL_LABELS = {"cell": 255}
_SHAPE = (224, 256)  # rows, columns
_RADIUS = 21.0
_WHOLE = (slice(0, _SHAPE[0]), slice(0, _SHAPE[1]))


def _breathing(rng: np.random.Generator, blob: Blob, x: float, y: float) -> Blob:
    """The same cell a frame later, at (x, y): its outline has changed a little."""
    change = rng.normal(0, 0.012, len(blob.harmonics)) * np.exp(2j * np.pi * rng.random(len(blob.harmonics)))
    harmonics = tuple(complex(old + new) for old, new in zip(blob.harmonics, change, strict=True))
    return Blob(x, y, blob.radii, blob.angle + rng.normal(0, 0.06), harmonics)


def _draw(picture: Floats, blob: Blob, texture: Floats) -> None:
    """Put a cell on the picture: a bright halo, a grey body with granules, a dark nucleus."""
    level = blob.level(_WHOLE)
    picture += np.float32(0.3) * np.exp(-(((level - np.float32(1.12)) / np.float32(0.09)) ** 2))
    inside = blob.coverage(_WHOLE)
    picture *= 1 - inside
    picture += inside * (np.float32(0.36) + np.float32(0.05) * texture)
    nucleus = Blob(blob.x + 0.2 * blob.radii[0], blob.y, (0.42 * blob.radii[0], 0.42 * blob.radii[1]), blob.angle)
    picture -= np.float32(0.2) * nucleus.coverage(_WHOLE)


def phantom_cells(seed: int = 0, n: int = 6) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Two cells of the same build that crawl slowly, each in its own half of the view, never nearer than a diameter.

    One is annotated in all frames. Nothing but its place tells it from the other.

    Args:
        seed: the cells and their ways; the same seed gives the same frames.
        n: number of frames, at least 1.

    Returns:
        For each frame the picture, uint8 [224, 256] (rows, columns), and its label, uint8, 255 on the annotated cell.

    Raises:
        ValueError: ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"a phantom video needs at least one frame, not {n}")
    rng = np.random.default_rng([seed, 6])
    rows, columns = _SHAPE
    place = np.array(
        [[0.29 * columns, rng.uniform(0.35, 0.65) * rows], [0.71 * columns, rng.uniform(0.35, 0.65) * rows]]
    )
    drift = rng.uniform(-1, 1, place.shape) * [2.0, 4.0]
    build = random_blob(rng, 0, 0, _RADIUS, roughness=0.05)
    cells = [build, Blob(0, 0, build.radii, rng.uniform(0, 2 * np.pi), build.harmonics)]
    shade = np.float32(0.5) + np.float32(0.02) * smooth_noise(rng, _SHAPE, 3)
    followed = int(rng.integers(2))
    frames = []
    for _ in range(n):
        cells = [_breathing(rng, cell, *at) for cell, at in zip(cells, place, strict=True)]
        picture = shade + np.float32(0.01) * smooth_noise(rng, _SHAPE, 40)
        for cell in cells:
            _draw(picture, cell, smooth_noise(rng, _SHAPE, 48))
        picture = blur(picture, 0.8) + rng.normal(0, 0.012, _SHAPE).astype(np.float32)
        label = np.where(cells[followed].coverage(_WHOLE) > 0.5, CELL_LABELS["cell"], 0).astype(np.uint8)
        frames.append((np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8), label))
        place = place + drift + rng.normal(0, 1, place.shape)
        low, high = [0.24 * columns, 0.2 * rows], [0.76 * columns, 0.8 * rows]
        place = np.clip(place, low, high)
    return frames
