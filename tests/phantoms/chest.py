"""The chest: a CT in Hounsfield units at several visits, with a tumour that breathes, drifts and grows in a lung."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.phantoms.noise import Waves
from monai_ext.data.phantoms.patient import PhantomVisit
from monai_ext.data.phantoms.writing import write_visits

Points = NDArray[np.float64]

CHEST_LABELS = {"tumour": 1}


@dataclass(frozen=True)
class Tumour:
    """An ellipsoid with a lobed outline: centre and radii in RAS+ mm; ``lobes`` of orders 2, 3, 4."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    lobes: tuple[complex, ...]

    def _outline(self, phi: NDArray[Any]) -> NDArray[Any]:
        waves = [np.real(c * np.exp(1j * k * phi)) for k, c in enumerate(self.lobes, start=2)]
        return np.asarray(1 + np.sum(waves, axis=0))

    def level(self, points: NDArray[Any]) -> NDArray[Any]:
        """Relative radius [N] at ``points`` [3, N] in RAS+ mm, below 1 inside."""
        u, v, w = (points - np.array(self.centre)[:, None]) / np.array(self.radii)[:, None]
        return np.sqrt((np.hypot(u, v) / self._outline(np.arctan2(v, u))) ** 2 + w**2)

    def contour(self, z: float, count: int = 72) -> Points | None:
        """The outline [count, 3] in LPS mm in the axial plane at ``z``; None where the tumour is not."""
        height = (z - self.centre[2]) / self.radii[2]
        if abs(height) >= 1:
            return None
        phi = 2 * np.pi * np.arange(count) / count
        radius = np.sqrt(1 - height**2) * self._outline(phi)
        x = self.centre[0] + radius * self.radii[0] * np.cos(phi)
        y = self.centre[1] + radius * self.radii[1] * np.sin(phi)
        return np.stack([-x, -y, np.full(count, z)], axis=1)


_SHAPE, _SPACING = (96, 96, 16), (3.7, 3.7, 6.0)
_TUMOUR = Tumour((68.0, -12.0, 4.0), (25.0, 22.0, 26.0), (0.08 + 0.05j, -0.05 + 0.06j, 0.03j))
_GROWTH = (1.0, 1.15, 1.28, 1.4)  # of the radii, at each visit
_ORGANS: tuple[tuple[float, tuple[float, float, float], tuple[float, float, float]], ...] = (  # HU, centre, radii
    (-85, (0, 0, 0), (168, 112, 900)),  # skin and fat
    (45, (0, 0, 0), (154, 99, 900)),  # muscle, with the ribs
    (-40, (0, 2, 0), (138, 86, 900)),  # fat of the mediastinum
    (-830, (76, -4, 0), (56, 78, 105)),  # right lung: the patient's right is +x
    (-830, (-80, -8, 0), (50, 74, 105)),  # left lung
    (40, (-22, 24, -22), (50, 42, 44)),  # heart
    (50, (-22, -36, 0), (13, 13, 900)),  # aorta
    (40, (8, 34, 40), (15, 15, 44)),  # great vessels
    (-950, (0, 0, 42), (8, 8, 40)),  # trachea
    (260, (0, -62, 0), (20, 17, 900)),  # vertebra
    (20, (0, -72, 0), (8, 8, 900)),  # spinal cord
)
_RIBS = (0.95, 0.88)  # of the radii of the muscle, outside and inside
_CORD = ((0.0, -72.0), 8.0)


def _chest(points: Points, tumour: Tumour, seed: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """HU [N] at ``points`` [3, N] in RAS+ mm."""
    tissue = np.random.default_rng([seed, 4])  # the same at every visit
    rough, grain = Waves(tissue, 60, 120), Waves(tissue, 9, 18, 40)
    near = points.astype(np.float32)
    surface, texture = 2.5 * rough(near), grain(near)
    hu = np.full(points.shape[1], -1000.0)
    for value, centre, radii in _ORGANS:
        level = np.sqrt((((points - np.array(centre)[:, None]) / np.array(radii)[:, None]) ** 2).sum(axis=0))
        hu += (value - hu) * np.clip(((1 - level) * min(radii) + surface) / 4 + 0.5, 0, 1)
        if value == 45:
            hu[_is_rib(points, level)] = 350
    lung = (hu < -500) & (hu > -920)
    hu += np.where(lung, 25, 8) * texture
    hu += np.where(lung, 500 * np.clip(texture - 1.8, 0, 1), 0)  # vessels
    hu += (35 + 12 * texture - hu) * np.clip((1 - tumour.level(points)) * 22 / 4 + 0.5, 0, 1)
    return np.clip(hu + rng.normal(0, 12, hu.shape), -1024, 3000).astype(np.float32)


def _is_rib(points: Points, level: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether points lie in a rib: spirals in a shell below the skin, lower in front than behind."""
    angle = np.arctan2(points[1] / 99, np.abs(points[0]) / 154)
    return (level < _RIBS[0]) & (level > _RIBS[1]) & (np.cos(points[2] / 4.5 + 7 * angle) > 0.2)


class ChestScan(NamedTuple):
    """One CT: image [X, Y, Z] float32 in HU, affine to RAS+ in mm, and the tumour, whose shape is known exactly."""

    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    tumour: Tumour

    @property
    def label(self) -> NDArray[np.uint8]:
        """[X, Y, Z]: 1 where the centre of a voxel lies in the tumour."""
        inside = self.tumour.level(_voxel_centres(self.affine)) < 1
        return (CHEST_LABELS["tumour"] * inside).astype(np.uint8).reshape(_SHAPE)


def scan_chest(seed: int, visit: int, gate: int, rng: np.random.Generator) -> ChestScan:
    """Scan the patient ``seed`` once, axially: 96 x 96 x 16 voxels of 3.7 x 3.7 x 6 mm.

    Args:
        seed: the patient's tissue, the same at every visit.
        visit: 0 to 3; the tumour drifts and grows from visit to visit.
        gate: percent of the breathing cycle; the tumour sinks by up to 9 mm.
        rng: of the noise and of where the patient lies.
    """
    breath = (1 - np.cos(2 * np.pi * gate / 100)) / 2
    x, y, z = np.array(_TUMOUR.centre) + np.array([2.0, -3.0, 2.0]) * visit + np.array([0.0, 2.0, -9.0]) * breath
    a, b, c = np.array(_TUMOUR.radii) * _GROWTH[visit]
    tumour = replace(_TUMOUR, centre=(float(x), float(y), float(z)), radii=(float(a), float(b), float(c)))
    affine = np.diag([-_SPACING[0], -_SPACING[1], _SPACING[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(_SHAPE) - 1) / 2) + rng.uniform(-3, 3, 3)
    hu = _chest(_voxel_centres(affine), tumour, seed, rng).reshape(_SHAPE)
    return ChestScan(hu, affine, tumour)


def cord_outline(z: float, count: int = 40) -> Points:
    """The outline [count, 3] of the spinal cord in LPS mm in the axial plane at ``z``."""
    angle = 2 * np.pi * np.arange(count) / count
    (x, y), radius = _CORD
    return np.stack([-x - radius * np.cos(angle), -y - radius * np.sin(angle), np.full(count, z)], axis=1)


def phantom_chest(seed: int = 0, visits: int = 3) -> list[PhantomVisit]:
    """CT-like visits of one patient with a growing tumour in the right lung; labels as in CHEST_LABELS.

    Args:
        seed: the patient; the same seed gives the same arrays.
        visits: 1 to 4.

    Returns:
        One :class:`~monai_ext.data.phantoms.patient.PhantomVisit` a visit, in time order; images in HU.
    """
    rng = np.random.default_rng([seed, 5])
    scans = [scan_chest(seed, visit, 0, rng) for visit in range(visits)]
    return [PhantomVisit(scan.image, scan.label, scan.affine) for scan in scans]


def write_phantom_chest(folder: str | os.PathLike[str], seed: int = 0, visits: int = 3) -> Path:
    """Write :func:`phantom_chest` as NIfTI and return the data list, ``folder/phantom_chest.json``."""
    return write_visits(Path(folder), "phantom_chest", "CT", CHEST_LABELS, phantom_chest(seed, visits))


def _voxel_centres(affine: NDArray[np.float64]) -> Points:
    """Points [3, N] in RAS+ mm."""
    return affine[:3, :3] @ np.indices(_SHAPE, dtype=np.float64).reshape(3, -1) + affine[:3, 3:]
