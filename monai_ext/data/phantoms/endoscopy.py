"""Endoscopy-like images: mucosa with folds, vessels and polyps, lit and photographed by an endoscope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.phantoms.blobs import REFERENCE_SIZE, Blob, Window, random_blob
from monai_ext.data.phantoms.noise import Floats, blur, smooth_noise


@dataclass(frozen=True)
class Surface:
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
    wobble = smooth_noise(rng, shape, int(rng.integers(2, 5)))
    if rng.random() < 0.5:
        phase = np.float32(rng.uniform(3, 7)) * np.sqrt(lumen) + np.float32(rng.uniform(0.4, 1.0)) * wobble
        return 1 - 2 * np.abs(np.sin(np.float32(np.pi / 2) * phase))
    ridge = smooth_noise(rng, shape, int(rng.integers(3, 8)))
    return 1 - 2 * np.minimum(np.abs(ridge + np.float32(0.3) * wobble), 1)


def _vessels(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Thin winding lines [H, W], 0..1: zero crossings of a smooth noise where a second noise shows them."""
    line = smooth_noise(rng, shape, int(rng.integers(9, 20)))
    where = smooth_noise(rng, shape, 4)
    width = np.float32(rng.uniform(0.04, 0.1))
    lines = np.clip(1 - np.abs(line) / width, 0, 1) * np.clip(where, 0, 1)
    return lines.astype(np.float32, copy=False)


def random_surface(
    rng: np.random.Generator,
    shape: tuple[int, int],
    base: Floats,
    polyp_radii: Sequence[float],
    spread: float = 0.3,
) -> Surface:
    """Random mucosa [H, W] of colour ``base`` with polyps of these radii in pixels, labelled 1, 2 ...

    The polyps' centres lie within ``spread`` (a share of height and width) of the middle.
    """
    unit = min(shape) / REFERENCE_SIZE
    x, y = shape[1] * rng.uniform(-0.1, 1.1), shape[0] * rng.uniform(-0.1, 1.1)
    lumen = random_blob(rng, x, y, min(shape) / 2).level((slice(0, shape[0]), slice(0, shape[1])))
    coarse, fine = smooth_noise(rng, shape, 5), smooth_noise(rng, shape, int(rng.integers(30, 60)))
    height = unit * (
        np.float32(rng.uniform(2, 10)) * _folds(rng, shape, lumen)
        + np.float32(rng.uniform(2, 8)) * coarse
        + np.float32(rng.uniform(0.1, 0.5)) * fine
    )
    patchy = smooth_noise(rng, shape, 12) + np.float32(0.5) * fine
    patches = 1 + np.float32(rng.uniform(0.02, 0.1)) * patchy
    vessels = 1 - np.float32(rng.uniform(0.0, 0.5)) * _vessels(rng, shape)
    colour = np.empty((3, *shape), np.float32)
    colour[0] = base[0] * patches
    colour[1:] = base[1:, None, None] * (patches * vessels)
    open_lumen = rng.random() < 0.6
    light = np.clip(np.float32(rng.uniform(1.1, 2.5)) * (lumen - np.float32(rng.uniform(0, 0.3))), 0, 1)
    if not open_lumen:
        light[...] = 1
    surface = Surface(colour, height, np.zeros(shape, np.int64), light)
    for radius in polyp_radii:
        place = (
            shape[1] * (0.5 + spread * rng.uniform(-1, 1)),
            shape[0] * (0.5 + spread * rng.uniform(-1, 1)),
        )
        _add_polyp(
            rng,
            surface,
            base,
            random_blob(rng, *place, radius, roughness=rng.uniform(0.01, 0.07), stretch=1.7),
        )
    return surface


def _add_polyp(rng: np.random.Generator, surface: Surface, base: Floats, blob: Blob) -> None:
    """Raise a dome of its own hue and texture out of the mucosa, in place, unless it meets an earlier one."""
    colour, height, label = surface.colour, surface.height, surface.label
    window = blob.window((label.shape[0], label.shape[1]))
    level, cover = blob.level(window), blob.coverage(window)
    mask = level < 1
    if (label[window][mask] > 0).any():
        return
    label[window][mask] = int(np.max(label)) + 1
    dome = np.clip(1 - level * level, 0, 1)
    dome += np.float32(rng.uniform(0, 0.6)) * (dome * dome - dome)  # from a sharp to a soft foot
    height[window] *= 1 - np.float32(0.6) * dome - np.float32(0.1) * cover  # folds end at its foot
    height[window] += np.float32(rng.uniform(0.15, 0.6) * min(blob.radii)) * dome
    np.maximum(surface.light[window], np.float32(0.4) * cover, out=surface.light[window])
    paler = 1 + rng.uniform(0.05, 0.3) * (1 if rng.random() < 0.5 else -1)
    shift = base * (paler * rng.normal(1, 0.1, 3)).astype(np.float32)
    bumps = 1 + np.float32(rng.uniform(0, 0.08)) * smooth_noise(rng, level.shape, int(rng.integers(4, 12)))
    colour[:, window[0], window[1]] += (shift[:, None, None] * bumps - colour[:, window[0], window[1]]) * (
        cover * np.float32(rng.uniform(0.7, 1.0))
    )
    if rng.random() < 0.6:
        darkness = np.float32(rng.uniform(0.1, 0.6))
        colour[:, window[0], window[1]] *= 1 - darkness * _shadow(rng, blob, window, level)


def _shadow(rng: np.random.Generator, blob: Blob, window: Window, level: Floats) -> Floats:
    """Shadow 0..1 [h, w] at the foot of a polyp, on the side turned away from some direction."""
    phi = rng.uniform(0, 2 * np.pi)
    x = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] - np.float32(blob.x)
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(blob.y)
    side = (x * np.float32(np.cos(phi)) + y * np.float32(np.sin(phi))) / np.float32(max(blob.radii))
    foot = np.clip(1 - np.abs(level - np.float32(1.04)) / np.float32(0.12), 0, 1)
    return (np.clip(side, 0, 1) * foot).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Endoscope:
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


def _random_endoscope(rng: np.random.Generator) -> Endoscope:
    return Endoscope(
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


def photograph(rng: np.random.Generator, surface: Surface, camera: Endoscope) -> Floats:
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
        stain = np.float32(camera.noise / 2) * smooth_noise(rng, (rows, columns), 40)
        channel[...] = (blur(colour * shade + highlight, camera.blur) + grain + stain) * view
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


def in_view(label: NDArray[np.int64], camera: Endoscope) -> NDArray[np.int64]:
    """The label without what lies outside of the camera's field of view."""
    rows, columns = label.shape
    return np.where(_aperture(rows, columns, camera.aperture, camera.octagon) > 0.5, label, 0)


def rgb_slice(rng: np.random.Generator, size: int) -> tuple[Floats, NDArray[np.int64]]:
    """Draw an endoscopy-like image [3, size, size], 0..255, and the label [size, size] of its polyps, 1 or 2."""
    radii = np.exp(rng.uniform(np.log(9), np.log(62), int(rng.integers(1, 3)))) * size / REFERENCE_SIZE
    camera = _random_endoscope(rng)
    surface = random_surface(rng, (size, size), _random_colour(rng), [max(float(r), 4.0) for r in radii])
    return photograph(rng, surface, camera), in_view(surface.label, camera)
