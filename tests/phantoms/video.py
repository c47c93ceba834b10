"""An RGB video: one polyp under the moving camera of an endoscope."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.phantoms.endoscopy import Endoscope, Surface, in_view, photograph, random_surface
from monai_ext.data.phantoms.noise import Floats, smooth_noise
from monai_ext.data.phantoms.writing import write_video

FRAME_LABELS = {"polyp": 255}
_FRAME_SHAPE = (288, 384)  # rows, columns
_SCENE_SHAPE = (576, 768)  # leaves the camera room to move
_VIDEO_CAMERA = Endoscope(
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
    rng: np.random.Generator, scene: Surface, centre: tuple[float, float], turn: float, zoom: float
) -> Surface:
    """What a camera above ``centre`` (x, y) of the scene sees: turned, zoomed, stretched by motion."""
    rows, columns = _FRAME_SHAPE
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    x, y = (x - (columns - 1) / 2) / zoom, (y - (rows - 1) / 2) / zoom
    give = [3 * smooth_noise(rng, _FRAME_SHAPE, 2) for _ in range(2)]
    places = [
        centre[1] + np.sin(turn) * x + np.cos(turn) * y + give[0],
        centre[0] + np.cos(turn) * x - np.sin(turn) * y + give[1],
    ]

    def look(field: NDArray[Any]) -> Floats:
        return ndimage.map_coordinates(field.astype(np.float32), places, order=1, mode="reflect")

    return Surface(
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
    scene = random_surface(rng, _SCENE_SHAPE, mucosa, [rng.uniform(40, 60)], spread=0.05)
    y, x = (float(c) for c in ndimage.center_of_mass(scene.label))
    way = rng.uniform(0, 2 * np.pi, 3)
    frames = []
    for t in np.linspace(0, 1, n):
        centre = (x + 70 * np.sin(way[0] + 3 * t), y + 45 * np.sin(way[1] + 3.5 * t))
        view = _video_view(rng, scene, centre, 0.35 * np.sin(way[2] + 2 * t), 0.9 + 0.3 * t)
        picture = np.rint(photograph(rng, view, _VIDEO_CAMERA).transpose(1, 2, 0)).astype(np.uint8)
        label = np.where(in_view(view.label, _VIDEO_CAMERA) > 0, FRAME_LABELS["polyp"], 0).astype(np.uint8)
        frames.append((picture, label))
    return frames


def write_phantom_frames(folder: str | os.PathLike[str], seed: int = 0, n: int = 6) -> Path:
    """Write :func:`phantom_frames` as PNG and return the data list, ``folder/phantom_frames.json``."""
    frames = phantom_frames(seed, n)
    return write_video(Path(folder), "phantom_frames", "phantom_video", "endoscopy", FRAME_LABELS, frames)
