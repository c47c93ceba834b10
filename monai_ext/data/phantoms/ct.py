"""CT-like slices: a body of fat, muscle and organs in air, lungs and bones, structures of low contrast, a window.

Grey values are in units of 400 HU above -160 HU while a slice is drawn, so that the soft-tissue window is 0..1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.phantoms.blobs import REFERENCE_SIZE, Blob, Window, point_inside, random_blob
from monai_ext.data.phantoms.mr import Tissue, paint, place_structures, random_body
from monai_ext.data.phantoms.noise import Floats, blur, smooth_noise

AIR, LUNG, FAT = -1000.0, -830.0, -100.0
"""HU."""

_WINDOWS = ((-160.0, 240.0), (-910.0, 590.0))
"""HU: soft tissue, as :mod:`monai_ext.transforms.intensity` has it, and lung."""


def _unit(hu: float) -> float:
    return (hu + 160.0) / 400.0


def _paint_layers(rng: np.random.Generator, image: Floats, body: Blob, tissue: Tissue) -> Floats:
    """Paint skin and fat, and muscle in bundles with fat between them; return the body's coverage [H, W]."""
    whole = (slice(0, image.shape[0]), slice(0, image.shape[1]))
    level, soft = body.level(whole), np.float32(min(body.radii))
    coverage = np.clip((1 - level) * soft + np.float32(0.5), 0, 1)
    fat = _unit(FAT + rng.normal(0, 10))
    paint(image, whole, coverage, tissue.value(fat, whole, 0.03))
    depth = np.float32(rng.uniform(0.6, 0.97)) + np.float32(0.04) * tissue.bank[0]
    inner = np.clip((depth - level) * soft * 0.5 + np.float32(0.5), 0, 1)
    if rng.random() < 0.7:
        planes = np.abs(smooth_noise(rng, image.shape, int(rng.integers(4, 12))))
        inner = inner * np.clip(planes / np.float32(rng.uniform(0.02, 0.15)), 0, 1)
    paint(image, whole, inner, tissue.value(_unit(rng.uniform(35, 75)), whole, rng.uniform(0.01, 0.05)))
    return coverage


def _paint_organs(
    rng: np.random.Generator, image: Floats, body: Blob, inside: Floats, tissue: Tissue, unit: float
) -> None:
    """Paint unlabelled organs, pieces of fat, lungs, vessels with contrast medium, gas, and bones above all."""
    for _ in range(int(rng.integers(2, 8))):
        hu = rng.uniform(0, 130) if rng.random() < 0.75 else FAT + rng.normal(0, 10)
        _paint_blob(rng, image, body, inside, tissue, float(np.exp(rng.uniform(np.log(8), np.log(50)))) * unit, hu)
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(1, 3))):
            _paint_blob(rng, image, body, inside, tissue, rng.uniform(30, 60) * unit, LUNG, texture=0.08)
    for _ in range(int(rng.integers(0, 7))):
        hu = AIR if rng.random() < 0.15 else rng.uniform(60, 260)
        _paint_blob(rng, image, body, inside, tissue, rng.uniform(2, 7) * unit, hu)
    for _ in range(int(rng.integers(0, 4))):
        _paint_bone(rng, image, body, inside, tissue, rng.uniform(5, 18) * unit)


def _paint_blob(
    rng: np.random.Generator,
    image: Floats,
    body: Blob,
    inside: Floats,
    tissue: Tissue,
    radius: float,
    hu: float,
    texture: float = 0.03,
) -> None:
    blob = random_blob(rng, *point_inside(rng, body, 0.85), radius, roughness=0.12, stretch=2.2)
    window = blob.window((image.shape[0], image.shape[1]))
    paint(image, window, blob.coverage(window) * inside[window], tissue.value(_unit(hu), window, texture))


def _paint_bone(
    rng: np.random.Generator, image: Floats, body: Blob, inside: Floats, tissue: Tissue, radius: float
) -> None:
    """Paint a dense shell around marrow."""
    blob = random_blob(rng, *point_inside(rng, body, 0.8), radius, roughness=0.08, stretch=2.0)
    share = rng.uniform(0.4, 0.8)
    marrow = Blob(blob.x, blob.y, (share * blob.radii[0], share * blob.radii[1]), blob.angle, blob.harmonics)
    window: Window = blob.window((image.shape[0], image.shape[1]))
    cover = blob.coverage(window) * inside[window]
    paint(image, window, cover, tissue.value(_unit(rng.uniform(350, 1200)), window, 0.15))
    paint(image, window, marrow.coverage(window) * cover, tissue.value(_unit(rng.uniform(-60, 300)), window, 0.08))


def _scan(rng: np.random.Generator, image: Floats) -> Floats:
    """What the scanner makes of the slice: couch, blur, correlated noise, a window; 0..255."""
    rows = image.shape[0]
    couch = int(rng.uniform(0.85, 1.2) * rows)
    if couch < rows:
        line = image[couch : couch + max(1, rows // 120)]
        np.maximum(line, np.float32(_unit(rng.uniform(-300, 100))), out=line)
    sigma = float(np.exp(rng.uniform(np.log(0.01), np.log(0.08))))
    noise = np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    sharpness = rng.uniform(0.3, 1.2)
    grain = blur(noise, rng.uniform(0, 1.0))
    grain *= np.float32(sigma / max(float(grain.std()), 1e-6))
    image = blur(image, sharpness) + grain
    low, high = _window(rng)
    return np.float32(255) * np.clip((image - np.float32(_unit(low))) / np.float32((high - low) / 400), 0, 1)


def _window(rng: np.random.Generator) -> tuple[float, float]:
    """Draw a window in HU: one of the usual two, or any around soft tissue."""
    if rng.random() < 0.7:
        return _WINDOWS[int(rng.random() < 0.15)]
    level, width = rng.uniform(0, 100), rng.uniform(250, 800)
    return level - width / 2, level + width / 2


def ct_slice(rng: np.random.Generator, size: int) -> tuple[Floats, NDArray[np.int64]]:
    """Draw a CT-like slice [1, size, size], 0..255, and its label [size, size], 1..K with K at most 4.

    Labelled structures differ from what is around them by 10 to 120 HU on either side.
    """
    shape, unit = (size, size), size / REFERENCE_SIZE
    image = np.full(shape, _unit(AIR), np.float32)
    tissue, body = Tissue(rng, shape), random_body(rng, shape)
    inside = _paint_layers(rng, image, body, tissue)
    _paint_organs(rng, image, body, inside, tissue, unit)
    contrast = (0.025, float(np.exp(rng.uniform(np.log(0.06), np.log(0.3)))))
    label = place_structures(rng, image, body, inside, tissue, unit, contrast)
    return _scan(rng, image)[None], label
