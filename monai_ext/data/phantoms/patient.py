"""The follow-up patient: an MR-like abdomen at three visits, with a growing lesion and a kidney."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.phantoms.noise import Floats, Waves

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
        self.grain, self.clouds = Waves(rng, 4, 9, 40), Waves(rng, 14, 40)
        self.rough = Waves(rng, 25, 60)
        self.give = [Waves(rng, 90, 200, 6) for _ in range(3)]
        self.lesion_surface = Waves(rng, 16, 36)
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
    bias = Waves(rng, 250, 500, 8)
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
