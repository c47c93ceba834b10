"""MR-like slices: a body with organs in air, labelled structures over them, and what the scanner makes of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.phantoms.blobs import REFERENCE_SIZE, Blob, Window, point_inside, random_blob
from monai_ext.data.phantoms.noise import Floats, blur, smooth_noise
from monai_ext.data.phantoms.structures import Structure, fits, next_structure, solid


def paint(image: Floats, window: Window, coverage: Floats, value: Floats | float) -> None:
    """Blend ``value`` over the image where ``coverage`` is, in place."""
    image[window] += (value - image[window]) * coverage


def _contrasting(rng: np.random.Generator, level: float, least: float = 0.1, most: float = 0.5) -> float:
    """A grey level 0.03..1 that differs from ``level`` by ``least`` to ``most`` on either side."""
    step = rng.uniform(least, most) * (1 if rng.random() < 0.5 else -1)
    if not 0.03 <= level + step <= 1.0:
        step = -step
    return float(np.clip(level + step, 0.03, 1.0))


class Tissue:
    """A bank of textures of one slice, of which each organ takes its own mixture."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng = rng
        sizes = (int(rng.integers(6, 14)), int(rng.integers(18, 34)), int(rng.integers(48, 80)))
        self.bank = [smooth_noise(rng, shape, cells) for cells in sizes]

    def value(self, level: float, window: Window, strength: float) -> Floats:
        """Grey values [h, w] around ``level`` with a texture of about ``strength`` in standard deviation."""
        weights = self.rng.normal(0, 1, 3)
        weights *= strength / np.linalg.norm(weights)
        texture = sum(np.float32(w) * field[window] for w, field in zip(weights, self.bank, strict=True))
        return np.asarray(texture + np.float32(level), dtype=np.float32)


def random_body(rng: np.random.Generator, shape: tuple[int, int]) -> Blob:
    """A body contour: mostly with air around, sometimes larger than the field of view."""
    height, width = shape
    x, y = width * rng.normal(0.5, 0.03), height * rng.normal(0.5, 0.03)
    scale = rng.uniform(0.34, 0.5) if rng.random() < 0.7 else rng.uniform(0.55, 0.8)
    body = random_blob(rng, x, y, scale * min(shape), roughness=0.03, stretch=1.8)
    radii = tuple(min(r, 0.85 * max(shape)) for r in body.radii)
    angle = rng.choice((0.0, np.pi / 2)) + rng.normal(0, 0.15)
    return Blob(x, y, (radii[0], radii[1]), angle, body.harmonics)


def _paint_body(rng: np.random.Generator, image: Floats, body: Blob, tissue: Tissue) -> Floats:
    """Paint tissue with a rim of fat over the air; return the body's coverage [H, W]."""
    whole = (slice(0, image.shape[0]), slice(0, image.shape[1]))
    level, soft = body.level(whole), np.float32(min(body.radii))
    coverage = np.clip((1 - level) * soft + np.float32(0.5), 0, 1)
    muscle = rng.uniform(0.15, 0.6)
    rim = _contrasting(rng, muscle, 0.1, 0.5)
    paint(image, whole, coverage, tissue.value(rim, whole, 0.02))
    depth = np.float32(rng.uniform(0.7, 0.98)) + np.float32(0.03) * tissue.bank[0]
    paint(image, whole, np.clip((depth - level) * soft * 0.5 + np.float32(0.5), 0, 1),
           tissue.value(muscle, whole, muscle * rng.uniform(0.02, 0.16)))  # fmt: skip
    return coverage


def _paint_organs(
    rng: np.random.Generator, image: Floats, body: Blob, inside: Floats, tissue: Tissue, unit: float
) -> None:
    """Three to eight unlabelled organs and up to eight small vessels of differing grey level and texture."""
    radii = np.exp(rng.uniform(np.log(10), np.log(50), int(rng.integers(3, 9))))
    radii = np.concatenate([np.sort(radii)[::-1], rng.uniform(2, 7, int(rng.integers(0, 9)))]) * unit
    for radius in radii:
        bend = rng.uniform(0.2, 0.5) if rng.random() < 0.25 else 0.0
        place = point_inside(rng, body, 0.85)
        blob = random_blob(rng, *place, radius, roughness=0.13, stretch=2.5, bend=bend)
        window = blob.window(inside.shape)
        level = _contrasting(rng, float(image[window].mean()), 0.05, 0.45)
        coverage = blob.coverage(window) * inside[window]
        paint(image, window, coverage, tissue.value(level, window, level * rng.uniform(0.02, 0.16)))
        if rng.random() < 0.25:  # a capsule or wall, so that a wall alone tells nothing
            hollow = Blob(blob.x, blob.y, (0.75 * radius, 0.75 * radius), blob.angle, blob.harmonics)
            paint(image, window, hollow.coverage(window) * coverage, _contrasting(rng, level))


def place_structures(
    rng: np.random.Generator,
    image: Floats,
    body: Blob,
    inside: Floats,
    tissue: Tissue,
    unit: float,
    contrast: tuple[float, float] = (0.12, 0.55),
) -> NDArray[np.int64]:
    """Paint the labelled structures over the anatomy; return their labels [H, W], 1..K, K at most 4.

    Args:
        rng: source of randomness.
        image: [H, W], 0..1 for soft tissue; painted in place.
        body: its outline.
        inside: its coverage [H, W].
        tissue: textures.
        unit: pixels of one pixel of a slice of the reference size.
        contrast: least and most by which a structure differs from the mean of what is around it.
    """
    label = np.zeros(image.shape, np.int64)
    placed: list[Structure] = []
    wanted, count = int(rng.integers(1, 5)), 0
    for _ in range(6 * wanted):
        structure = next_structure(rng, placed, body, image.shape, unit)
        if count + len(structure.parts) > max(wanted, 2) or not fits(
            structure, label, inside, touching=len(structure.parts) == 1
        ):
            continue
        count = _add_structure(rng, image, label, structure, inside, tissue, count, contrast)
        placed.append(structure)
        if count >= wanted:
            break
    if not placed:
        spot = solid(Blob(body.x, body.y, (8 * unit + 2, 8 * unit + 2)), image.shape)
        _add_structure(rng, image, label, spot, inside, tissue, 0, contrast)
    return label


def _add_structure(
    rng: np.random.Generator,
    image: Floats,
    label: NDArray[np.int64],
    structure: Structure,
    inside: Floats,
    tissue: Tissue,
    count: int,
    contrast: tuple[float, float],
) -> int:
    """Paint one structure and number its parts from ``count`` + 1 on; return the new count."""
    window = structure.window
    free = (label[window] == 0) & (inside[window] > 0.5)
    around = image[window][::2, ::2]
    level = float(np.clip(around.mean(), 0, 1))
    seen = min(0.1, contrast[1] / 2)
    for part in structure.parts:
        candidates = [_contrasting(rng, level, *contrast) for _ in range(int(rng.integers(1, 4)))]
        level = max(candidates, key=lambda grey: np.count_nonzero(np.abs(around - np.float32(grey)) > seen))
        paint(image, window, part * free, tissue.value(level, window, level * rng.uniform(0.01, 0.12)))
        count += 1
        label[window][free & (part > 0.5)] = count
    return count


def _rician(rng: np.random.Generator, image: Floats, sigma: float) -> Floats:
    """Magnitude of the signal with Gaussian noise in the real and the imaginary channel."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(sigma)
    real = image + noise
    imaginary = noise[::-1, ::-1]  # another pixel's draw: half the draws, and as good as independent
    return np.sqrt(real * real + imaginary * imaginary)


def _scan(rng: np.random.Generator, image: Floats) -> Floats:
    """What the scanner makes of the true signal 0..1: bias field, blur, Rician noise, window; 0..255."""
    bias = smooth_noise(rng, image.shape, int(rng.integers(1, 4)))
    image = image * np.maximum(1 + np.float32(rng.uniform(0, 0.25)) * bias, np.float32(0.2))
    sharpness, noise = rng.uniform(0, 1.1), float(np.exp(rng.uniform(np.log(0.008), np.log(0.07))))
    if rng.random() < 0.5:
        image = _rician(rng, blur(image, sharpness), noise)
    else:  # resampled after the acquisition: correlated noise
        image = blur(_rician(rng, image, 1.6 * noise), sharpness)
    gamma = rng.uniform(0.75, 1.4) if rng.random() < 0.5 else 1.0
    bright = np.float32(np.partition(image[::4, ::4].ravel(), -20)[-20] * rng.uniform(0.9, 1.3))
    image = np.clip(image / bright, 0, 1)
    return np.float32(255) * (image if gamma == 1.0 else image ** np.float32(gamma))


def mr_slice(rng: np.random.Generator, size: int) -> tuple[Floats, NDArray[np.int64]]:
    """Draw an MR-like slice [1, size, size], 0..255, and its label [size, size], 1..K with K at most 4."""
    shape, unit = (size, size), size / REFERENCE_SIZE
    image = np.zeros(shape, np.float32)
    tissue, body = Tissue(rng, shape), random_body(rng, shape)
    inside = _paint_body(rng, image, body, tissue)
    _paint_organs(rng, image, body, inside, tissue, unit)
    label = place_structures(rng, image, body, inside, tissue, unit)
    return _scan(rng, np.clip(image, 0, None))[None], label
