"""Shapes with a formula, writers of small official-looking files, and the command as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ext.data.indexing.index import Options
from monai_ext.data.indexing.writing import index
from monai_ext.data.manifest import DataList, load_datalist

SHAPE = (14, 12, 6)


def oblique() -> np.ndarray:
    """An affine of 1.2 x 1.7 x 8 mm, turned about two axes and shifted."""
    a, b = 0.4, -0.3
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag([1.2, 1.7, 8.0])
    affine[:3, 3] = (-31.5, 12.25, 80.0)
    return affine


def ball(shape: tuple[int, ...], radius: float, shift: float = 0.0) -> np.ndarray:
    """Whether each pixel lies within ``radius`` pixels of the centre, moved along the first axis."""
    grid = np.indices(shape)
    centre = [(length - 1) / 2 for length in shape]
    centre[0] += shift
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def rings(values: tuple[int, ...], shift: float = 0.0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A ball of each value, the later inside the earlier."""
    label = np.zeros(shape, np.int16)
    for number, value in enumerate(values):
        label[ball(shape, 5.0 - number * 1.3, shift)] = value
    return label


def save_volume(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """Write NIfTI; noise without an array, the oblique affine unless another is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32) if array is None else array
    nib.save(nib.Nifti1Image(data, oblique() if affine is None else affine), path)
    return path


def save_picture(path: Path, array: np.ndarray, **options: Any) -> Path:
    """Write [W, H] or [W, H, 3] as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(np.swapaxes(array, 0, 1))).save(path, **options)
    return path


def photo(size: tuple[int, int] = (40, 30)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8)


@pytest.fixture
def indexed(tmp_path: Path) -> Callable[..., tuple[DataList, str]]:
    """Index a tree as the command line does; returns the list, read back, and the report."""

    def run(dataset: str, root: Path, **options: Any) -> tuple[DataList, str]:
        output = tmp_path / "list.json"
        report = index(dataset, root, output, Options(**options))
        return load_datalist(output), report

    return run


@pytest.fixture
def shapes() -> Any:
    """The helpers above, for test modules (which cannot import one another)."""

    class Shapes:
        pass

    for helper in (oblique, ball, rings, save_volume, save_picture, photo):
        setattr(Shapes, helper.__name__, staticmethod(helper))
    Shapes.SHAPE = SHAPE  # type: ignore[attr-defined]
    return Shapes
