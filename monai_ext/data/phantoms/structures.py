"""Labelled structures of the MR-like slices: lesions, organs, bananas, crescents and rings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.phantoms.blobs import Blob, Window, point_inside, random_blob
from monai_ext.data.phantoms.noise import Floats

MIN_PIXELS = 21


@dataclass(frozen=True)
class Structure:
    """Coverages 0..1 in one window, one for each label it brings (a ring brings wall and cavity)."""

    window: Window
    parts: tuple[Floats, ...]
    outline: Blob


def solid(blob: Blob, shape: tuple[int, int]) -> Structure:
    """The one-label structure that fills ``blob`` in an image of ``shape`` (H, W)."""
    window = blob.window(shape)
    return Structure(window, (blob.coverage(window),), blob)


def _lesion(rng: np.random.Generator, body: Blob, shape: tuple[int, int], unit: float) -> Structure:
    """A small round spot, 5 to 12 px in radius."""
    radius = max(3.5, float(np.exp(rng.uniform(np.log(5), np.log(12)))) * unit)
    return solid(random_blob(rng, *point_inside(rng, body, 0.8), radius, stretch=1.3), shape)


def _organ(rng: np.random.Generator, body: Blob, shape: tuple[int, int], unit: float) -> Structure:
    """A smooth organ, 12 to 70 px in radius."""
    radius = float(np.exp(rng.uniform(np.log(12), np.log(70)))) * unit
    place = point_inside(rng, body, 0.75 if radius < 40 * unit else 0.35)
    return solid(random_blob(rng, *place, radius, roughness=0.12, stretch=2.2), shape)


def _banana(rng: np.random.Generator, body: Blob, shape: tuple[int, int], unit: float) -> Structure:
    """An elongated, bent structure, 2 to 5 times as long as wide."""
    radius = rng.uniform(10, 30) * unit
    blob = random_blob(rng, *point_inside(rng, body, 0.65), radius, roughness=0.04)
    ratio = np.sqrt(rng.uniform(2, 5))
    radii = (radius * ratio, radius / ratio)
    return solid(Blob(blob.x, blob.y, radii, blob.angle, blob.harmonics, rng.uniform(0.2, 0.6)), shape)


def _crescent_around(rng: np.random.Generator, core: Blob, shape: tuple[int, int]) -> Structure:
    """What a shifted copy of ``core`` has outside of ``core``: a crescent that hugs it."""
    phi, radius = rng.uniform(0, 2 * np.pi), float(np.sqrt(np.prod(core.radii)))
    shift = rng.uniform(0.4, 1.1) * radius
    moved = random_blob(
        rng, core.x + shift * np.cos(phi), core.y + shift * np.sin(phi), rng.uniform(0.85, 1.2) * radius
    )
    window = moved.window(shape)
    return Structure(window, (moved.coverage(window) * (1 - core.coverage(window)),), moved)


def _crescent(rng: np.random.Generator, body: Blob, shape: tuple[int, int], unit: float) -> Structure:
    core = random_blob(rng, *point_inside(rng, body, 0.55), rng.uniform(14, 40) * unit)
    return _crescent_around(rng, core, shape)


def _ring(rng: np.random.Generator, body: Blob, shape: tuple[int, int], unit: float) -> Structure:
    """A wall of uneven thickness (first label) around a cavity (second label)."""
    radius = float(np.exp(rng.uniform(np.log(12), np.log(50)))) * unit
    place = point_inside(rng, body, 0.65 if radius < 30 * unit else 0.35)
    outer = random_blob(rng, *place, radius, roughness=0.04, stretch=1.4)
    inner_share = rng.uniform(0.5, 0.82)
    offset = rng.normal(0, 0.25 * (1 - inner_share) * min(outer.radii), 2)
    inner = Blob(
        outer.x + offset[0],
        outer.y + offset[1],
        (outer.radii[0] * inner_share, outer.radii[1] * inner_share),
        outer.angle + rng.normal(0, 0.1),
        tuple(0.7 * c for c in outer.harmonics),
    )
    window = outer.window(shape)
    whole = outer.coverage(window)
    cavity = np.minimum(inner.coverage(window), whole)
    return Structure(window, (whole - cavity, cavity), outer)


_Maker = Callable[[np.random.Generator, Blob, tuple[int, int], float], Structure]
_STRUCTURES: tuple[_Maker, ...] = (_lesion, _organ, _banana, _crescent, _ring)
_STRUCTURE_ODDS = (0.22, 0.28, 0.12, 0.13, 0.25)


def fits(structure: Structure, label: NDArray[np.int64], body: Floats, *, touching: bool) -> bool:
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


def next_structure(
    rng: np.random.Generator, placed: list[Structure], body: Blob, shape: tuple[int, int], unit: float
) -> Structure:
    """A candidate to place: now and then a crescent around the last one, else any kind by its odds."""
    if placed and rng.random() < 0.3:
        return _crescent_around(rng, placed[-1].outline, shape)
    return _STRUCTURES[rng.choice(len(_STRUCTURES), p=_STRUCTURE_ODDS)](rng, body, shape, unit)
