"""Blobs: the smooth random outlines [H, W] that organs, lesions and polyps are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.phantoms.noise import Floats

Window = tuple[slice, slice]

REFERENCE_SIZE = 256.0  # lengths of the random slices are given in pixels of a slice of this size
_UNIT_CIRCLE = np.exp(2j * np.pi * np.arange(40) / 40)


@dataclass(frozen=True)
class Blob:
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


def random_blob(
    rng: np.random.Generator,
    x: float,
    y: float,
    radius: float,
    *,
    roughness: float = 0.08,
    stretch: float = 1.5,
    bend: float = 0.0,
) -> Blob:
    """A blob of about ``radius`` pixels around (x, y), its axes up to ``stretch`` apart in ratio, turned at random."""
    ratio = np.sqrt(rng.uniform(1, stretch))
    orders = np.arange(2, 6)
    harmonics = rng.normal(0, roughness, 4) / (orders / 2) * np.exp(2j * np.pi * rng.random(4))
    harmonics *= min(1.0, 0.5 / float(np.abs(harmonics).sum()))  # the contour never meets the centre
    angle = rng.uniform(0, 2 * np.pi)
    return Blob(x, y, (radius * ratio, radius / ratio), angle, tuple(map(complex, harmonics)), bend)


def point_inside(rng: np.random.Generator, blob: Blob, share: float) -> tuple[float, float]:
    """A random point (x, y) of the ellipse within ``share`` of its radii."""
    phi, r = rng.uniform(0, 2 * np.pi), share * np.sqrt(rng.random())
    u, v = r * np.cos(phi) * blob.radii[0], r * np.sin(phi) * blob.radii[1]
    cos, sin = np.cos(blob.angle), np.sin(blob.angle)
    return float(blob.x + u * cos - v * sin), float(blob.y + u * sin + v * cos)
