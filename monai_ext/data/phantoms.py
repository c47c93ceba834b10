"""Phantoms that stand in for patients: random labelled slices to train on, a follow-up patient, a video.

Nothing here comes from a real image. :func:`random_slice` draws one MR-like or endoscopy-like image with
a few labelled structures, fast enough to draw every training item anew; :func:`phantom_patient` is one
patient at three visits (NIfTI by :func:`write_phantom_patient`), :func:`phantom_frames` a short RGB video of
a polyp (PNG by :func:`write_phantom_frames`). All are functions of their seed alone.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, sparse

from monai_ext.data.images import atomic_path

Floats = NDArray[np.float32]
Window = tuple[slice, slice]

MIN_PIXELS = 21
_REFERENCE_SIZE = 256.0  # lengths of the random slices are given in pixels of a slice of this size
_UNIT_CIRCLE = np.exp(2j * np.pi * np.arange(40) / 40)


# ------------------------------------------------------------------ noise and shapes in two dimensions


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


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Floats:
    """Gaussian noise [H, W] of about unit variance with ``cells`` bumps along the longer side.

    Drawn on a coarse lattice and raised by two sparse products: far cheaper than a filter at full size, and
    no threads of a linear algebra library get in the way of a training's.
    """
    rows, columns = (max(1, round(cells * n / max(shape))) for n in shape)
    lattice = rng.standard_normal((columns + 3, rows + 3), dtype=np.float32)
    lattice *= np.float32(315 / 151)  # 151 / 315: mean sum of squared cubic B-spline weights, an axis
    wide = np.ascontiguousarray((_spline_weights(shape[1], columns) @ lattice).T)
    return _spline_weights(shape[0], rows) @ wide


@dataclass(frozen=True)
class _Blob:
    """A bent ellipse, its contour perturbed by Fourier harmonics; lengths in pixels, angle in radians."""

    x: float
    y: float
    radii: tuple[float, float]
    angle: float = 0.0
    harmonics: tuple[complex, ...] = ()  # of orders 2, 3, ...: contour radius 1 + sum Re(c_k e^{i k phi})
    bend: float = 0.0

    def _contour(self) -> NDArray[np.float64]:
        """Contour points, x in the first row and y in the second [2, 40]."""
        unit = _UNIT_CIRCLE
        radius = np.ones(len(unit))
        for order, coefficient in enumerate(self.harmonics, start=2):
            radius += (coefficient * unit**order).real
        u = self.radii[0] * radius * unit.real
        v = self.radii[1] * radius * unit.imag - self.bend * self.radii[0] * (0.4 - (u / self.radii[0]) ** 2)
        turned = (u + 1j * v) * np.exp(1j * self.angle)
        return np.stack([turned.real + self.x, turned.imag + self.y])

    def window(self, shape: tuple[int, int]) -> Window:
        """Rows and columns of an image of ``shape`` (H, W) that the blob can touch."""
        contour = self._contour()
        low, high = contour.min(axis=1) - 2, contour.max(axis=1) + 3
        (left, right), (top, bottom) = (
            (int(min(max(a, 0), n - 1)), int(min(max(b, a + 1, 1), n)))
            for a, b, n in zip(low, high, shape[::-1], strict=True)
        )
        return slice(top, bottom), slice(left, right)

    def level(self, window: Window) -> Floats:
        """Relative radius in the window: below 1 inside, 1 on the contour, above 1 outside."""
        x = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] - np.float32(self.x)
        y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(self.y)
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        a, b = map(np.float32, self.radii)
        u = x * (cos / a) + y * (sin / a)
        v = y * (cos / b) - x * (sin / b)
        if self.bend:
            v += np.float32(self.bend * self.radii[0] / self.radii[1]) * (np.float32(0.4) - u * u)
        radius = np.sqrt(u * u + v * v)
        if not self.harmonics:
            return radius
        unit = np.empty(u.shape, np.complex64)
        inverse = 1 / (radius + np.float32(1e-6))
        np.multiply(u, inverse, out=unit.real)
        np.multiply(v, inverse, out=unit.imag)
        contour = unit * np.complex64(self.harmonics[-1])
        for coefficient in self.harmonics[-2::-1]:  # Horner's rule
            contour += np.complex64(coefficient)
            contour *= unit
        contour *= unit
        return radius / (1 + contour.real)

    def coverage(self, window: Window) -> Floats:
        """Share of each pixel in the window that lies inside, 0..1, with an edge about one pixel wide."""
        return np.clip((1 - self.level(window)) * np.float32(min(self.radii)) + np.float32(0.5), 0, 1)


def _random_blob(
    rng: np.random.Generator,
    x: float,
    y: float,
    radius: float,
    *,
    roughness: float = 0.08,
    stretch: float = 1.5,
    bend: float = 0.0,
) -> _Blob:
    ratio = np.sqrt(rng.uniform(1, stretch))
    orders = np.arange(2, 6)
    harmonics = rng.normal(0, roughness, 4) / (orders / 2) * np.exp(2j * np.pi * rng.random(4))
    harmonics *= min(1.0, 0.5 / float(np.abs(harmonics).sum()))  # the contour never meets the centre
    angle = rng.uniform(0, 2 * np.pi)
    return _Blob(x, y, (radius * ratio, radius / ratio), angle, tuple(map(complex, harmonics)), bend)


def _point_inside(rng: np.random.Generator, blob: _Blob, share: float) -> tuple[float, float]:
    """A random point (x, y) of the ellipse within ``share`` of its radii."""
    phi, r = rng.uniform(0, 2 * np.pi), share * np.sqrt(rng.random())
    u, v = r * np.cos(phi) * blob.radii[0], r * np.sin(phi) * blob.radii[1]
    cos, sin = np.cos(blob.angle), np.sin(blob.angle)
    return float(blob.x + u * cos - v * sin), float(blob.y + u * sin + v * cos)


# ------------------------------------------------------------------------ structures that carry labels


@dataclass(frozen=True)
class _Structure:
    """Coverages 0..1 in one window, one for each label it brings (a ring brings wall and cavity)."""

    window: Window
    parts: tuple[Floats, ...]
    outline: _Blob


def _solid(blob: _Blob, shape: tuple[int, int]) -> _Structure:
    window = blob.window(shape)
    return _Structure(window, (blob.coverage(window),), blob)


def _lesion(rng: np.random.Generator, body: _Blob, shape: tuple[int, int], unit: float) -> _Structure:
    """A small round spot, 5 to 12 px in radius."""
    radius = max(3.5, float(np.exp(rng.uniform(np.log(5), np.log(12)))) * unit)
    return _solid(_random_blob(rng, *_point_inside(rng, body, 0.8), radius, stretch=1.3), shape)


def _organ(rng: np.random.Generator, body: _Blob, shape: tuple[int, int], unit: float) -> _Structure:
    """A smooth organ, 12 to 70 px in radius."""
    radius = float(np.exp(rng.uniform(np.log(12), np.log(70)))) * unit
    place = _point_inside(rng, body, 0.75 if radius < 40 * unit else 0.35)
    return _solid(_random_blob(rng, *place, radius, roughness=0.12, stretch=2.2), shape)


def _banana(rng: np.random.Generator, body: _Blob, shape: tuple[int, int], unit: float) -> _Structure:
    """An elongated, bent structure, 2 to 5 times as long as wide."""
    radius = rng.uniform(10, 30) * unit
    blob = _random_blob(rng, *_point_inside(rng, body, 0.65), radius, roughness=0.04)
    ratio = np.sqrt(rng.uniform(2, 5))
    radii = (radius * ratio, radius / ratio)
    return _solid(_Blob(blob.x, blob.y, radii, blob.angle, blob.harmonics, rng.uniform(0.2, 0.6)), shape)


def _crescent_around(rng: np.random.Generator, core: _Blob, shape: tuple[int, int]) -> _Structure:
    """What a shifted copy of ``core`` has outside of ``core``: a crescent that hugs it."""
    phi, radius = rng.uniform(0, 2 * np.pi), float(np.sqrt(np.prod(core.radii)))
    shift = rng.uniform(0.4, 1.1) * radius
    moved = _random_blob(
        rng, core.x + shift * np.cos(phi), core.y + shift * np.sin(phi), rng.uniform(0.85, 1.2) * radius
    )
    window = moved.window(shape)
    return _Structure(window, (moved.coverage(window) * (1 - core.coverage(window)),), moved)


def _crescent(rng: np.random.Generator, body: _Blob, shape: tuple[int, int], unit: float) -> _Structure:
    core = _random_blob(rng, *_point_inside(rng, body, 0.55), rng.uniform(14, 40) * unit)
    return _crescent_around(rng, core, shape)


def _ring(rng: np.random.Generator, body: _Blob, shape: tuple[int, int], unit: float) -> _Structure:
    """A wall of uneven thickness (first label) around a cavity (second label)."""
    radius = float(np.exp(rng.uniform(np.log(12), np.log(50)))) * unit
    place = _point_inside(rng, body, 0.65 if radius < 30 * unit else 0.35)
    outer = _random_blob(rng, *place, radius, roughness=0.04, stretch=1.4)
    inner_share = rng.uniform(0.5, 0.82)
    offset = rng.normal(0, 0.25 * (1 - inner_share) * min(outer.radii), 2)
    inner = _Blob(
        outer.x + offset[0],
        outer.y + offset[1],
        (outer.radii[0] * inner_share, outer.radii[1] * inner_share),
        outer.angle + rng.normal(0, 0.1),
        tuple(0.7 * c for c in outer.harmonics),
    )
    window = outer.window(shape)
    whole = outer.coverage(window)
    cavity = np.minimum(inner.coverage(window), whole)
    return _Structure(window, (whole - cavity, cavity), outer)


_Maker = Callable[[np.random.Generator, _Blob, tuple[int, int], float], _Structure]
_STRUCTURES: tuple[_Maker, ...] = (_lesion, _organ, _banana, _crescent, _ring)
_STRUCTURE_ODDS = (0.22, 0.28, 0.12, 0.13, 0.25)


def _fits(structure: _Structure, label: NDArray[np.int64], body: Floats, *, touching: bool) -> bool:
    """Whether each part keeps its pixels on free tissue: nearly all, or 70 % in one piece if ``touching``."""
    free = (label[structure.window] == 0) & (body[structure.window] > 0.5)
    for part in structure.parts:
        mask = part > 0.5
        kept = np.count_nonzero(mask & free)
        if kept < MIN_PIXELS or kept < (0.7 if touching else 0.98) * np.count_nonzero(mask):
            return False
        if touching and ndimage.label(mask & free)[1] > 1:
            return False
    return True


def _next_structure(
    rng: np.random.Generator, placed: list[_Structure], body: _Blob, shape: tuple[int, int], unit: float
) -> _Structure:
    if placed and rng.random() < 0.3:
        return _crescent_around(rng, placed[-1].outline, shape)
    return _STRUCTURES[rng.choice(len(_STRUCTURES), p=_STRUCTURE_ODDS)](rng, body, shape, unit)


# -------------------------------------------------------------------------------------- MR-like slices


def _paint(image: Floats, window: Window, coverage: Floats, value: Floats | float) -> None:
    """Blend ``value`` over the image where ``coverage`` is, in place."""
    image[window] += (value - image[window]) * coverage


def _contrasting(rng: np.random.Generator, level: float, least: float = 0.1, most: float = 0.5) -> float:
    """A grey level 0.03..1 that differs from ``level`` by ``least`` to ``most`` on either side."""
    step = rng.uniform(least, most) * (1 if rng.random() < 0.5 else -1)
    if not 0.03 <= level + step <= 1.0:
        step = -step
    return float(np.clip(level + step, 0.03, 1.0))


class _Tissue:
    """A bank of textures of one slice, of which each organ takes its own mixture."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng = rng
        sizes = (int(rng.integers(6, 14)), int(rng.integers(18, 34)), int(rng.integers(48, 80)))
        self.bank = [_smooth_noise(rng, shape, cells) for cells in sizes]

    def value(self, level: float, window: Window, strength: float) -> Floats:
        """Grey values [h, w] around ``level`` with a texture of about ``strength`` in standard deviation."""
        weights = self.rng.normal(0, 1, 3)
        weights *= strength / np.linalg.norm(weights)
        texture = sum(np.float32(w) * field[window] for w, field in zip(weights, self.bank, strict=True))
        return np.asarray(texture + np.float32(level), dtype=np.float32)


def _random_body(rng: np.random.Generator, shape: tuple[int, int]) -> _Blob:
    """A body contour: mostly with air around, sometimes larger than the field of view."""
    height, width = shape
    x, y = width * rng.normal(0.5, 0.03), height * rng.normal(0.5, 0.03)
    scale = rng.uniform(0.34, 0.5) if rng.random() < 0.7 else rng.uniform(0.55, 0.8)
    body = _random_blob(rng, x, y, scale * min(shape), roughness=0.03, stretch=1.8)
    radii = tuple(min(r, 0.85 * max(shape)) for r in body.radii)
    angle = rng.choice((0.0, np.pi / 2)) + rng.normal(0, 0.15)
    return _Blob(x, y, (radii[0], radii[1]), angle, body.harmonics)


def _paint_body(rng: np.random.Generator, image: Floats, body: _Blob, tissue: _Tissue) -> Floats:
    """Paint tissue with a rim of fat over the air; return the body's coverage [H, W]."""
    whole = (slice(0, image.shape[0]), slice(0, image.shape[1]))
    level, soft = body.level(whole), np.float32(min(body.radii))
    coverage = np.clip((1 - level) * soft + np.float32(0.5), 0, 1)
    muscle = rng.uniform(0.15, 0.6)
    rim = _contrasting(rng, muscle, 0.1, 0.5)
    _paint(image, whole, coverage, tissue.value(rim, whole, 0.02))
    depth = np.float32(rng.uniform(0.7, 0.98)) + np.float32(0.03) * tissue.bank[0]
    _paint(image, whole, np.clip((depth - level) * soft * 0.5 + np.float32(0.5), 0, 1),
           tissue.value(muscle, whole, muscle * rng.uniform(0.02, 0.16)))  # fmt: skip
    return coverage


def _paint_organs(
    rng: np.random.Generator, image: Floats, body: _Blob, inside: Floats, tissue: _Tissue, unit: float
) -> None:
    """Three to eight unlabelled organs and up to eight small vessels of differing grey level and texture."""
    radii = np.exp(rng.uniform(np.log(10), np.log(50), int(rng.integers(3, 9))))
    radii = np.concatenate([np.sort(radii)[::-1], rng.uniform(2, 7, int(rng.integers(0, 9)))]) * unit
    for radius in radii:
        bend = rng.uniform(0.2, 0.5) if rng.random() < 0.25 else 0.0
        place = _point_inside(rng, body, 0.85)
        blob = _random_blob(rng, *place, radius, roughness=0.13, stretch=2.5, bend=bend)
        window = blob.window(inside.shape)
        level = _contrasting(rng, float(image[window].mean()), 0.05, 0.45)
        coverage = blob.coverage(window) * inside[window]
        _paint(image, window, coverage, tissue.value(level, window, level * rng.uniform(0.02, 0.16)))
        if rng.random() < 0.25:  # a capsule or wall, so that a wall alone tells nothing
            hollow = _Blob(blob.x, blob.y, (0.75 * radius, 0.75 * radius), blob.angle, blob.harmonics)
            _paint(image, window, hollow.coverage(window) * coverage, _contrasting(rng, level))


def _place_structures(
    rng: np.random.Generator, image: Floats, body: _Blob, inside: Floats, tissue: _Tissue, unit: float
) -> NDArray[np.int64]:
    """Paint the labelled structures over the anatomy; return their labels [H, W], 1..K, K at most 4."""
    label = np.zeros(image.shape, np.int64)
    placed: list[_Structure] = []
    wanted, count = int(rng.integers(1, 5)), 0
    for _ in range(6 * wanted):
        structure = _next_structure(rng, placed, body, image.shape, unit)
        if count + len(structure.parts) > max(wanted, 2) or not _fits(
            structure, label, inside, touching=len(structure.parts) == 1
        ):
            continue
        count = _add_structure(rng, image, label, structure, inside, tissue, count)
        placed.append(structure)
        if count >= wanted:
            break
    if not placed:
        spot = _solid(_Blob(body.x, body.y, (8 * unit + 2, 8 * unit + 2)), image.shape)
        _add_structure(rng, image, label, spot, inside, tissue, 0)
    return label


def _add_structure(
    rng: np.random.Generator,
    image: Floats,
    label: NDArray[np.int64],
    structure: _Structure,
    inside: Floats,
    tissue: _Tissue,
    count: int,
) -> int:
    """Paint one structure and number its parts from ``count`` + 1 on; return the new count."""
    window = structure.window
    free = (label[window] == 0) & (inside[window] > 0.5)
    around = image[window][::2, ::2]
    level = float(around.mean())
    for part in structure.parts:
        candidates = [_contrasting(rng, level, 0.12, 0.55) for _ in range(int(rng.integers(1, 4)))]
        level = max(candidates, key=lambda grey: np.count_nonzero(np.abs(around - np.float32(grey)) > 0.1))
        _paint(image, window, part * free, tissue.value(level, window, level * rng.uniform(0.01, 0.12)))
        count += 1
        label[window][free & (part > 0.5)] = count
    return count


def _blur(image: Floats, sigma: float) -> Floats:
    return ndimage.gaussian_filter(image, sigma, truncate=2.0) if sigma > 0.3 else image


def _rician(rng: np.random.Generator, image: Floats, sigma: float) -> Floats:
    """Magnitude of the signal with Gaussian noise in the real and the imaginary channel."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(sigma)
    real = image + noise
    imaginary = noise[::-1, ::-1]  # another pixel's draw: half the draws, and as good as independent
    return np.sqrt(real * real + imaginary * imaginary)


def _scan(rng: np.random.Generator, image: Floats) -> Floats:
    """What the scanner makes of the true signal 0..1: bias field, blur, Rician noise, window; 0..255."""
    bias = _smooth_noise(rng, image.shape, int(rng.integers(1, 4)))
    image = image * np.maximum(1 + np.float32(rng.uniform(0, 0.25)) * bias, np.float32(0.2))
    sharpness, noise = rng.uniform(0, 1.1), float(np.exp(rng.uniform(np.log(0.008), np.log(0.07))))
    if rng.random() < 0.5:
        image = _rician(rng, _blur(image, sharpness), noise)
    else:  # resampled after the acquisition: correlated noise
        image = _blur(_rician(rng, image, 1.6 * noise), sharpness)
    gamma = rng.uniform(0.75, 1.4) if rng.random() < 0.5 else 1.0
    bright = np.float32(np.partition(image[::4, ::4].ravel(), -20)[-20] * rng.uniform(0.9, 1.3))
    image = np.clip(image / bright, 0, 1)
    return np.float32(255) * (image if gamma == 1.0 else image ** np.float32(gamma))


def _mr_slice(rng: np.random.Generator, size: int) -> tuple[Floats, NDArray[np.int64]]:
    shape, unit = (size, size), size / _REFERENCE_SIZE
    image = np.zeros(shape, np.float32)
    tissue, body = _Tissue(rng, shape), _random_body(rng, shape)
    inside = _paint_body(rng, image, body, tissue)
    _paint_organs(rng, image, body, inside, tissue, unit)
    label = _place_structures(rng, image, body, inside, tissue, unit)
    return _scan(rng, np.clip(image, 0, None))[None], label


# ----------------------------------------------------------------------------- endoscopy-like surfaces


@dataclass(frozen=True)
class _Surface:
    """Mucosa before it is lit: colour [3, H, W] 0..1, height [H, W] in pixels, label [H, W], and the share
    of the light that reaches it [H, W] (less where the lumen leads away)."""

    colour: Floats
    height: Floats
    label: NDArray[np.int64]
    light: Floats


def _random_colour(rng: np.random.Generator) -> Floats:
    """A mucosa colour, mostly reddish, sometimes of any hue (stain, light filter, other natural images)."""
    if rng.random() < 0.2:
        return rng.uniform(0.25, 0.9, 3).astype(np.float32)
    red = rng.uniform(0.6, 0.95)
    green = red * rng.uniform(0.35, 0.75)
    return np.array([red, green, green * rng.uniform(0.65, 1.15)], np.float32)


def _folds(rng: np.random.Generator, shape: tuple[int, int], lumen: Floats) -> Floats:
    """Height [H, W] of the folds, about -1..1: rings around the lumen or ridged noise."""
    wobble = _smooth_noise(rng, shape, int(rng.integers(2, 5)))
    if rng.random() < 0.5:
        phase = np.float32(rng.uniform(3, 7)) * np.sqrt(lumen) + np.float32(rng.uniform(0.4, 1.0)) * wobble
        return 1 - 2 * np.abs(np.sin(np.float32(np.pi / 2) * phase))
    ridge = _smooth_noise(rng, shape, int(rng.integers(3, 8)))
    return 1 - 2 * np.minimum(np.abs(ridge + np.float32(0.3) * wobble), 1)


def _vessels(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Thin winding lines [H, W], 0..1: zero crossings of a smooth noise where a second noise shows them."""
    line = _smooth_noise(rng, shape, int(rng.integers(9, 20)))
    where = _smooth_noise(rng, shape, 4)
    width = np.float32(rng.uniform(0.04, 0.1))
    return np.clip(1 - np.abs(line) / width, 0, 1) * np.clip(where, 0, 1)


def _surface(
    rng: np.random.Generator,
    shape: tuple[int, int],
    base: Floats,
    polyp_radii: Sequence[float],
    spread: float = 0.3,
) -> _Surface:
    """Random mucosa [H, W] of colour ``base`` with polyps of these radii in pixels, labelled 1, 2 ...

    The polyps' centres lie within ``spread`` (a share of height and width) of the middle.
    """
    unit = min(shape) / _REFERENCE_SIZE
    x, y = shape[1] * rng.uniform(-0.1, 1.1), shape[0] * rng.uniform(-0.1, 1.1)
    lumen = _random_blob(rng, x, y, min(shape) / 2).level((slice(0, shape[0]), slice(0, shape[1])))
    coarse, fine = _smooth_noise(rng, shape, 5), _smooth_noise(rng, shape, int(rng.integers(30, 60)))
    height = unit * (
        np.float32(rng.uniform(2, 10)) * _folds(rng, shape, lumen)
        + np.float32(rng.uniform(2, 8)) * coarse
        + np.float32(rng.uniform(0.1, 0.5)) * fine
    )
    patchy = _smooth_noise(rng, shape, 12) + np.float32(0.5) * fine
    patches = 1 + np.float32(rng.uniform(0.02, 0.1)) * patchy
    vessels = 1 - np.float32(rng.uniform(0.0, 0.5)) * _vessels(rng, shape)
    colour = np.empty((3, *shape), np.float32)
    colour[0] = base[0] * patches
    colour[1:] = base[1:, None, None] * (patches * vessels)
    open_lumen = rng.random() < 0.6
    light = np.clip(np.float32(rng.uniform(1.1, 2.5)) * (lumen - np.float32(rng.uniform(0, 0.3))), 0, 1)
    if not open_lumen:
        light[...] = 1
    surface = _Surface(colour, height, np.zeros(shape, np.int64), light)
    for radius in polyp_radii:
        place = (
            shape[1] * (0.5 + spread * rng.uniform(-1, 1)),
            shape[0] * (0.5 + spread * rng.uniform(-1, 1)),
        )
        _add_polyp(
            rng,
            surface,
            base,
            _random_blob(rng, *place, radius, roughness=rng.uniform(0.01, 0.07), stretch=1.7),
        )
    return surface


def _add_polyp(rng: np.random.Generator, surface: _Surface, base: Floats, blob: _Blob) -> None:
    """Raise a dome of its own hue and texture out of the mucosa, in place, unless it meets an earlier one."""
    colour, height, label = surface.colour, surface.height, surface.label
    window = blob.window((label.shape[0], label.shape[1]))
    level, cover = blob.level(window), blob.coverage(window)
    mask = level < 1
    if (label[window][mask] > 0).any():
        return
    label[window][mask] = label.max() + 1
    dome = np.clip(1 - level * level, 0, 1)
    dome += np.float32(rng.uniform(0, 0.6)) * (dome * dome - dome)  # from a sharp to a soft foot
    height[window] *= 1 - np.float32(0.6) * dome - np.float32(0.1) * cover  # folds end at its foot
    height[window] += np.float32(rng.uniform(0.15, 0.6) * min(blob.radii)) * dome
    np.maximum(surface.light[window], np.float32(0.4) * cover, out=surface.light[window])
    paler = 1 + rng.uniform(0.05, 0.3) * (1 if rng.random() < 0.5 else -1)
    shift = base * (paler * rng.normal(1, 0.1, 3)).astype(np.float32)
    bumps = 1 + np.float32(rng.uniform(0, 0.08)) * _smooth_noise(rng, level.shape, int(rng.integers(4, 12)))
    colour[:, window[0], window[1]] += (shift[:, None, None] * bumps - colour[:, window[0], window[1]]) * (
        cover * np.float32(rng.uniform(0.7, 1.0))
    )
    if rng.random() < 0.6:
        darkness = np.float32(rng.uniform(0.1, 0.6))
        colour[:, window[0], window[1]] *= 1 - darkness * _shadow(rng, blob, window, level)


def _shadow(rng: np.random.Generator, blob: _Blob, window: Window, level: Floats) -> Floats:
    """Shadow 0..1 [h, w] at the foot of a polyp, on the side turned away from some direction."""
    phi = rng.uniform(0, 2 * np.pi)
    x = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] - np.float32(blob.x)
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(blob.y)
    side = (x * np.float32(np.cos(phi)) + y * np.float32(np.sin(phi))) / np.float32(max(blob.radii))
    return np.clip(side, 0, 1) * np.clip(1 - np.abs(level - np.float32(1.04)) / np.float32(0.12), 0, 1)


@dataclass(frozen=True)
class _Endoscope:
    """Light and optics of one camera: lamp in shares of the frame (x, y), gain and noise on a 0..1 scale."""

    lamp: tuple[float, float]
    lamp_height: float
    falloff: float
    shine: float
    aperture: float  # radius of the field of view in half diagonals; above 1 nothing is cut
    octagon: bool
    gain: float
    noise: float
    blur: float


def _random_endoscope(rng: np.random.Generator) -> _Endoscope:
    return _Endoscope(
        lamp=(rng.normal(0.5, 0.12), rng.normal(0.5, 0.12)),
        lamp_height=rng.uniform(0.3, 0.9),
        falloff=rng.uniform(0.2, 1.8),
        shine=rng.uniform(0.0, 0.9),
        aperture=rng.uniform(0.72, 1.0) if rng.random() < 0.6 else 2.0,
        octagon=bool(rng.random() < 0.4),
        gain=rng.uniform(0.75, 1.8),
        noise=rng.uniform(0.005, 0.04),
        blur=rng.uniform(0, 1.2),
    )


def _slopes(height: Floats) -> tuple[Floats, Floats]:
    """Central differences of the height along x and along y, 0 on the border."""
    slope_x, slope_y = np.zeros_like(height), np.zeros_like(height)
    np.subtract(height[:, 2:], height[:, :-2], out=slope_x[:, 1:-1])
    np.subtract(height[2:], height[:-2], out=slope_y[1:-1])
    slope_x *= np.float32(0.5)
    slope_y *= np.float32(0.5)
    return slope_x, slope_y


def _light(rng: np.random.Generator, surface: _Surface, camera: _Endoscope) -> Floats:
    """Photograph the surface: Lambert shading, highlights, vignetting, blur, noise; [3, H, W] 0..255."""
    rows, columns = surface.height.shape
    span = np.float32(min(rows, columns))
    x = np.linspace(0, 1, columns, dtype=np.float32)[None, :] - np.float32(camera.lamp[0])
    y = np.linspace(0, 1, rows, dtype=np.float32)[:, None] - np.float32(camera.lamp[1])
    x, y, z = x * (columns / span), y * (rows / span), np.float32(camera.lamp_height)
    distance2 = x * x + y * y
    slope_x, slope_y = _slopes(surface.height)
    facing = (z + slope_x * x + slope_y * y) / np.sqrt(
        (1 + slope_x * slope_x + slope_y * slope_y) * (distance2 + z * z)
    )
    shade = np.clip(facing, 0, 1) * surface.light / (1 + np.float32(camera.falloff) * distance2)
    tilt = (slope_x + np.float32(0.5) * x) ** 2 + (slope_y + np.float32(0.5) * y) ** 2
    gloss = np.clip(1 - 60 * tilt, 0, 1) * np.clip(surface.light - np.float32(0.3), 0, 1)
    shade = np.float32(camera.gain) * (shade + np.float32(0.03))
    highlight = np.float32(camera.shine) * gloss * gloss
    grain = np.float32(camera.noise) * rng.standard_normal((rows, columns), dtype=np.float32)
    view = np.float32(255) * _aperture(rows, columns, camera.aperture, camera.octagon)
    image = np.empty((3, rows, columns), np.float32)
    for channel, colour in zip(image, surface.colour, strict=True):
        stain = np.float32(camera.noise / 2) * _smooth_noise(rng, (rows, columns), 40)
        channel[...] = (_blur(colour * shade + highlight, camera.blur) + grain + stain) * view
    return np.clip(image, 0, 255, out=image)


@lru_cache(maxsize=64)
def _aperture_distance(rows: int, columns: int, octagon: bool) -> Floats:
    """Distance of each pixel from the middle in half diagonals, round or by the sides of an octagon."""
    x, y = np.arange(columns) - (columns - 1) / 2, np.arange(rows) - (rows - 1) / 2
    if octagon:  # a frame whose corners are cut, as many endoscopes show it
        x, y = np.abs(x / x[-1]), np.abs(y / y[-1])
        distance = np.maximum(np.maximum(x[None, :], y[:, None]) * 0.75, (x[None, :] + y[:, None]) / 2)
        return distance.astype(np.float32)
    return (np.hypot(x[None, :], y[:, None]) / np.hypot(x[-1], y[-1])).astype(np.float32)


def _aperture(rows: int, columns: int, radius: float, octagon: bool) -> Floats:
    """The field of view with its dark corners, 0..1 [H, W]."""
    inside = np.float32(radius) - _aperture_distance(rows, columns, octagon)
    return np.clip(inside * np.float32(rows / 4), 0, 1)


def _in_view(label: NDArray[np.int64], camera: _Endoscope) -> NDArray[np.int64]:
    """The label without what lies outside of the camera's field of view."""
    rows, columns = label.shape
    return np.where(_aperture(rows, columns, camera.aperture, camera.octagon) > 0.5, label, 0)


def _rgb_slice(rng: np.random.Generator, size: int) -> tuple[Floats, NDArray[np.int64]]:
    radii = np.exp(rng.uniform(np.log(9), np.log(62), int(rng.integers(1, 3)))) * size / _REFERENCE_SIZE
    camera = _random_endoscope(rng)
    surface = _surface(rng, (size, size), _random_colour(rng), [max(float(r), 4.0) for r in radii])
    return _light(rng, surface, camera), _in_view(surface.label, camera)


def random_slice(rng: np.random.Generator, size: int, kind: str) -> tuple[Floats, NDArray[np.int64]]:
    """Draw one random image with one to four labelled structures that do not overlap.

    ``"mr"`` is anatomy-like: a body in air, unlabelled organs, and labelled blobs, crescents, rings (wall and
    cavity are two labels), lesions and large organs, under a bias field, blur and Rician noise. ``"rgb"`` is
    endoscopy-like: lit mucosa with folds and one or two labelled polyps, in a wide range of hues.

    Args:
        rng: source of all randomness; the same state gives the same slice.
        size: height and width in pixels, at least 64.
        kind: "mr" or "rgb".

    Returns:
        The image, float32 [1, size, size] ("mr") or [3, size, size] ("rgb"), 0..255, and the label, int64
        [size, size]: 0 background, 1..K structures, at least one of them of more than 20 pixels.

    Raises:
        ValueError: ``kind`` is neither, or ``size`` is too small to hold a structure.
    """
    if size < 64:
        raise ValueError(f"a phantom slice needs at least 64 pixels a side, not {size}")
    if kind == "mr":
        return _mr_slice(rng, size)
    if kind == "rgb":
        return _rgb_slice(rng, size)
    raise ValueError(f"unknown kind of phantom slice {kind!r}: use 'mr' or 'rgb'")


# ------------------------------------------------------------------------------- the follow-up patient


PATIENT_LABELS = {"lesion": 1, "kidney": 2}
_PATIENT_SHAPE = (128, 112, 8)
_PATIENT_SPACING = (1.6, 1.6, 8.0)  # mm
_LESION_GROWTH = (1.0, 1.18, 1.36)  # of the radius, at each visit
_SUBSLICES = (-1 / 3, 0.0, 1 / 3)  # where a thick slice is sampled, in slices: partial volume


class PhantomVisit(NamedTuple):
    """One visit: image [X, Y, Z], label [X, Y, Z] (values of PATIENT_LABELS), affine to RAS+ in mm."""

    image: Floats
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


class _Waves:
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


@dataclass(frozen=True)
class _Organ:
    """An ellipsoid with a rough surface: centre and radii in mm (RAS+), turned by ``angle`` about z."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    grey: float
    texture: float = 0.03
    roughness: float = 0.06
    angle: float = 0.0

    def level(self, points: Floats, rough: Floats) -> Floats:
        """Relative radius [N] at ``points`` [3, N], below 1 inside; ``rough`` [N] is of unit variance."""
        x, y, z = (points[axis] - np.float32(self.centre[axis]) for axis in range(3))
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        u, v, w = ((cos * x + sin * y), (cos * y - sin * x), z)
        a, b, c = map(np.float32, self.radii)
        return np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2) + np.float32(self.roughness) * rough

    def coverage(self, level: Floats) -> Floats:
        """Share 0..1 [N] of the organ at each point, with an edge about 1.6 mm wide."""
        return np.clip((1 - level) * np.float32(min(self.radii[:2]) / 1.6) + np.float32(0.5), 0, 1)


_BODY = _Organ((0, 0, 0), (94, 78, 400), grey=0.72, texture=0.03, roughness=0.006)
_ANATOMY = (  # painted in this order; grey levels as in a T2-weighted abdomen
    _Organ((0, 1, 0), (86, 69, 400), grey=0.24, texture=0.02, roughness=0.01),  # wall muscle
    _Organ((0, 8, 0), (78, 56, 400), grey=0.52, texture=0.06, roughness=0.02),  # fat between the organs
    _Organ((24, -50, 0), (17, 14, 400), grey=0.2, texture=0.03),  # muscles of the back
    _Organ((-24, -50, 0), (17, 14, 400), grey=0.2, texture=0.03),
    _Organ((0, -34, 0), (15, 13, 400), grey=0.4, texture=0.06),  # vertebra
    _Organ((0, -51, 0), (8, 6, 400), grey=0.95, texture=0.01, roughness=0.02),  # spinal canal
    _Organ((-9, -14, 0), (7, 7, 400), grey=0.06, texture=0.01, roughness=0.02),  # aorta
    _Organ((12, -14, 0), (9, 6, 400), grey=0.1, texture=0.01, roughness=0.02),  # vena cava
    _Organ((-26, 32, 4), (30, 17, 40), grey=0.16, texture=0.05, roughness=0.12, angle=0.3),  # stomach
    _Organ((-30, 35, 4), (19, 8, 30), grey=0.85, texture=0.06, roughness=0.15, angle=0.3),  # and its fluid
    _Organ((-58, -6, 14), (15, 30, 34), grey=0.6, texture=0.04, roughness=0.08, angle=-0.3),  # spleen
    _Organ((-14, 8, -14), (24, 9, 18), grey=0.34, texture=0.07, roughness=0.15, angle=0.25),  # pancreas
    _Organ((40, 16, 12), (39, 38, 64), grey=0.34, texture=0.035, roughness=0.07, angle=-0.35),  # liver
    _Organ((22, 24, -2), (8, 12, 18), grey=0.92, texture=0.01, angle=0.5),  # gall bladder
    _Organ((52, 30, 8), (4, 13, 9), grey=0.1, texture=0.01, angle=0.8),  # vessels of the liver
    _Organ((34, 2, 14), (15, 3.5, 9), grey=0.1, texture=0.01, angle=0.6),
)
_KIDNEY = _Organ((43, -31, -4), (17, 21, 32), grey=0.68, texture=0.035, roughness=0.05, angle=0.5)
_KIDNEY_HILUM = _Organ((29, -22, -4), (11, 8, 14), grey=0.55, texture=0.05, roughness=0.08, angle=0.5)
_LESION = _Organ((52, 8, 2), (13.5, 12, 15), grey=0.7, texture=0.06, roughness=0.1)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix [3, 3] about the x, y and z axes in turn, by ``angles`` in radians."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _oblique_affine(rng: np.random.Generator, tilt: NDArray[np.float64]) -> NDArray[np.float64]:
    """A voxel-to-RAS+ affine: about left, posterior, superior, turned by ``tilt`` and set a little off."""
    affine = np.eye(4)
    turn = _rotation(tilt + rng.normal(0, np.deg2rad(1.0), 3))
    affine[:3, :3] = turn @ np.diag(np.array(_PATIENT_SPACING) * (-1, -1, 1))
    centre = (np.array(_PATIENT_SHAPE) - 1) / 2
    affine[:3, 3] = rng.uniform(-3, 3, 3) - affine[:3, :3] @ centre
    return affine


class _Patient:
    """What stays of a patient from visit to visit: anatomy, textures, surfaces and the way tissue gives."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        rng = self.rng
        self.grain, self.clouds = _Waves(rng, 4, 9, 40), _Waves(rng, 14, 40)
        self.rough = _Waves(rng, 25, 60)
        self.give = [_Waves(rng, 90, 200, 6) for _ in range(3)]
        self.lesion_surface = _Waves(rng, 16, 36)
        self.drift = rng.normal(0, 1, 3) * (2.5, 2.5, 1.5)
        self.tilt = np.deg2rad(rng.uniform(5, 10, 3) * rng.choice((-1, 1), 3))

    def anatomical(self, points: Floats, visit: int) -> Floats:
        """Take ``points`` [3, N] of a visit to where their tissue lay at visit 0, before it moved."""
        moved = points.copy()
        for axis, field in enumerate(self.give):
            moved[axis] -= np.float32(1.5 * visit) * field(points + np.float32(40 * visit))
        moved[2] -= np.float32((0.0, 3.0, -2.5)[visit]) * np.exp(-((points[1] / 60 - 0.3) ** 2))
        return moved

    def lesion(self, visit: int) -> _Organ:
        """The lesion as it is at one visit: larger, further along its drift, longer than wide."""
        centre = np.array(_LESION.centre) + self.drift * visit
        stretch = (1 + 0.08 * visit, 1 - 0.06 * visit, 1.0)
        radii = np.array(_LESION.radii) * _LESION_GROWTH[visit] * stretch
        (x, y, z), (a, b, c) = map(float, centre), map(float, radii)
        return replace(_LESION, centre=(x, y, z), radii=(a, b, c), angle=0.35 * visit)

    def draw(self, points: Floats, visit: int) -> tuple[Floats, Floats, Floats]:
        """Signal 0..1, relative radius of the lesion and of the kidney, each [N], at ``points`` [3, N]."""
        tissue = self.anatomical(points, visit)
        rough = self.rough(tissue)
        texture = np.float32(0.8) * self.grain(tissue) + np.float32(0.6) * self.clouds(tissue)
        signal = np.zeros(points.shape[1], np.float32)

        def paint(organ: _Organ, coverage: Floats) -> None:
            value = np.float32(organ.grey) + np.float32(organ.texture) * texture
            signal[...] += (value - signal) * coverage

        for organ in (_BODY, *_ANATOMY):
            paint(organ, organ.coverage(organ.level(tissue, rough)))
        hilum = _KIDNEY_HILUM.level(tissue, rough)
        # a bean: the kidney ends where its hilum begins
        bean = np.maximum(_KIDNEY.level(tissue, rough), 1 + (1 - hilum) * np.float32(8 / 17))
        paint(_KIDNEY, _KIDNEY.coverage(bean))
        signal += np.float32(0.16) * _KIDNEY.coverage(bean + np.float32(0.32))  # brighter medulla
        lesion = self.lesion(visit)
        growth = lesion.level(tissue, self.lesion_surface(tissue + np.float32(5 * visit)))
        paint(lesion, lesion.coverage(growth))
        signal += np.float32(0.15) * lesion.coverage(growth + np.float32(0.45))  # fluid in the middle
        return signal, growth, bean


def _voxel_points(affine: NDArray[np.float64], offset: float) -> Floats:
    """Points [3, N] in mm of all voxel centres, moved by ``offset`` slices along the third axis."""
    x, y, z = (np.arange(n, dtype=np.float64) for n in _PATIENT_SHAPE)
    grid = np.broadcast_arrays(x[:, None, None], y[:, None], z + offset)
    return (affine[:3, :3] @ np.stack([axis.ravel() for axis in grid]) + affine[:3, 3:]).astype(np.float32)


def _visit(patient: _Patient, visit: int, affine: NDArray[np.float64]) -> PhantomVisit:
    rng = patient.rng
    bias = _Waves(rng, 250, 500, 8)
    draws = [patient.draw(_voxel_points(affine, offset), visit) for offset in _SUBSLICES]
    signal = np.mean([signal for signal, _, _ in draws], axis=0)
    _, lesion, kidney = draws[len(_SUBSLICES) // 2]
    label = np.zeros(lesion.shape, np.uint8)
    label[kidney < 1] = PATIENT_LABELS["kidney"]
    label[lesion < 1] = PATIENT_LABELS["lesion"]
    signal = np.clip(signal, 0, None) * np.maximum(1 + np.float32(0.12) * bias(_voxel_points(affine, 0)), 0.3)
    volume = ndimage.gaussian_filter(signal.reshape(_PATIENT_SHAPE), (0.45, 0.45, 0))
    noise = rng.normal(0, 0.025, (2, *_PATIENT_SHAPE))
    magnitude = np.hypot(volume + noise[0], noise[1])  # Rician
    image = (rng.uniform(850, 1150) * magnitude).astype(np.float32)
    return PhantomVisit(image, label.reshape(_PATIENT_SHAPE), affine)


def phantom_patient(seed: int = 0) -> list[PhantomVisit]:
    """Three MR-like visits of one patient with a growing lesion in the liver and, below it, a kidney.

    Anatomy and texture are the same tissue at every visit; from visit to visit it deforms smoothly by a few
    mm and is breathed along the body, the lesion drifts, changes its shape and grows, and bias field, noise
    and gain are drawn anew. Each visit has its own mildly oblique grid of 128 x 112 x 8 voxels of 1.6 x 1.6 x
    8 mm.

    Args:
        seed: the patient; the same seed gives the same arrays.

    Returns:
        One :class:`PhantomVisit` a visit, in time order.
    """
    patient = _Patient(seed)
    affines = [_oblique_affine(patient.rng, patient.tilt) for _ in _LESION_GROWTH]
    return [_visit(patient, visit, affine) for visit, affine in enumerate(affines)]


# --------------------------------------------------------------------------------------- the RGB video


FRAME_LABELS = {"polyp": 255}
_FRAME_SHAPE = (288, 384)  # rows, columns
_SCENE_SHAPE = (576, 768)  # leaves the camera room to move
_VIDEO_CAMERA = _Endoscope(
    lamp=(0.46, 0.42),
    lamp_height=0.6,
    falloff=0.9,
    shine=0.6,
    aperture=0.84,
    octagon=True,
    gain=1.35,
    noise=0.015,
    blur=0.7,
)


def _video_view(
    rng: np.random.Generator, scene: _Surface, centre: tuple[float, float], turn: float, zoom: float
) -> _Surface:
    """What a camera above ``centre`` (x, y) of the scene sees: turned, zoomed, stretched by motion."""
    rows, columns = _FRAME_SHAPE
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    x, y = (x - (columns - 1) / 2) / zoom, (y - (rows - 1) / 2) / zoom
    give = [3 * _smooth_noise(rng, _FRAME_SHAPE, 2) for _ in range(2)]
    places = [
        centre[1] + np.sin(turn) * x + np.cos(turn) * y + give[0],
        centre[0] + np.cos(turn) * x - np.sin(turn) * y + give[1],
    ]

    def look(field: NDArray[Any]) -> Floats:
        return ndimage.map_coordinates(field.astype(np.float32), places, order=1, mode="reflect")

    return _Surface(
        np.stack([look(channel) for channel in scene.colour]),
        look(scene.height) * np.float32(zoom),
        (look(scene.label > 0) > 0.5).astype(np.int64),
        look(scene.light),
    )


def phantom_frames(seed: int = 0, n: int = 6) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """A short endoscopy-like video of one polyp under a moving camera.

    Args:
        seed: the scene and the way of the camera; the same seed gives the same frames.
        n: number of frames, at least 1.

    Returns:
        For each frame the picture, uint8 [288, 384, 3] (rows, columns, RGB), and its label, uint8 [288, 384],
        255 on the polyp and 0 elsewhere.

    Raises:
        ValueError: ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"a phantom video needs at least one frame, not {n}")
    rng = np.random.default_rng([seed, 4])
    mucosa = np.array([0.85, 0.47, 0.4], np.float32) * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    scene = _surface(rng, _SCENE_SHAPE, mucosa, [rng.uniform(40, 60)], spread=0.05)
    y, x = (float(c) for c in ndimage.center_of_mass(scene.label))
    way = rng.uniform(0, 2 * np.pi, 3)
    frames = []
    for t in np.linspace(0, 1, n):
        centre = (x + 70 * np.sin(way[0] + 3 * t), y + 45 * np.sin(way[1] + 3.5 * t))
        view = _video_view(rng, scene, centre, 0.35 * np.sin(way[2] + 2 * t), 0.9 + 0.3 * t)
        picture = np.rint(_light(rng, view, _VIDEO_CAMERA).transpose(1, 2, 0)).astype(np.uint8)
        label = np.where(_in_view(view.label, _VIDEO_CAMERA) > 0, FRAME_LABELS["polyp"], 0).astype(np.uint8)
        frames.append((picture, label))
    return frames


# --------------------------------------------------------------------------------------------- to disk


def _write_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write one volume, the same bytes for the same array (no time stamp in the gzip header)."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def _write_picture(path: Path, array: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary)


def _write_list(path: Path, dataset: str, modality: str, labels: dict[str, int], cases: list[dict[str, Any]]) -> Path:
    content = {"dataset": dataset, "modality": modality, "labels": labels, "cases": cases}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def write_phantom_patient(folder: str | os.PathLike[str], seed: int = 0) -> Path:
    """Write :func:`phantom_patient` as int16 NIfTI with uint8 labels and a data list of its three visits.

    Args:
        folder: where to; made where it is missing, files of an earlier call are replaced.
        seed: the patient; the same seed gives the same bytes.

    Returns:
        The data list, ``folder/phantom.json``, with paths relative to the folder. Written last.
    """
    folder = Path(folder)
    cases: list[dict[str, Any]] = []
    for number, visit in enumerate(phantom_patient(seed)):
        image, label = f"visit{number}_image.nii.gz", f"visit{number}_label.nii.gz"
        _write_nifti(folder / image, np.rint(visit.image).astype(np.int16), visit.affine)
        _write_nifti(folder / label, visit.label, visit.affine)
        case = {"case": f"phantom_visit{number}", "patient": "phantom", "visit": number}
        cases.append({**case, "image": image, "label": label})
    return _write_list(folder / "phantom.json", "phantom", "MR", PATIENT_LABELS, cases)


def write_phantom_frames(folder: str | os.PathLike[str], seed: int = 0, n: int = 6) -> Path:
    """Write :func:`phantom_frames` as PNG pictures of 384 x 288 pixels and a data list, visits 1 to ``n``.

    Args:
        folder: where to; made where it is missing, files of an earlier call are replaced.
        seed: the scene; the same seed gives the same pixels.
        n: number of frames, at least 1.

    Returns:
        The data list, ``folder/phantom_frames.json``, with paths relative to the folder. Written last.
    """
    folder = Path(folder)
    cases: list[dict[str, Any]] = []
    for number, (picture, polyp) in enumerate(phantom_frames(seed, n), start=1):
        image, label = f"frame{number:03d}_image.png", f"frame{number:03d}_label.png"
        _write_picture(folder / image, picture)
        _write_picture(folder / label, polyp)
        case = {"case": f"phantom_frame{number:03d}", "patient": "phantom_video", "visit": number}
        cases.append({**case, "image": image, "label": label})
    return _write_list(folder / "phantom_frames.json", "phantom_frames", "endoscopy", FRAME_LABELS, cases)
