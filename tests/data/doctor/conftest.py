"""A small study in which nothing is wrong, to be spoilt in one way at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

SHAPE = (12, 10, 6)
FRAME = (14, 11)  # width, height


def oblique(origin: tuple[float, float, float] = (13.7, -40.2, 9.1)) -> np.ndarray:
    """1.5 x 1.25 x 4 mm, turned about two axes."""
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine[:3, :3] = affine[:3, :3] @ np.diag([-1.5, 1.25, 4])
    affine[:3, 3] = origin
    return affine


class Study:
    """Two patients at two visits, with label maps and scribbles; ``write`` returns the data list."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(0)
        self.content: dict[str, Any] = {
            "dataset": "made up",
            "modality": "MR",
            "labels": {"lesion": 1, "organ": 2},
            "ignore": 4,
            "cases": [self._case(patient, visit) for patient in "ab" for visit in (0, 1)],
        }

    @property
    def cases(self) -> list[dict[str, Any]]:
        return self.content["cases"]

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self) -> Path:
        path = self.path("list.json")
        path.write_text(json.dumps(self.content), encoding="utf-8")
        return path

    def image(self, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
        return self.rng.integers(0, 1000, shape).astype(np.int16)

    def label(self, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
        """Two structures at random places, each of more than ten voxels."""
        label = np.zeros(shape, np.uint8)
        label.flat[self.rng.permutation(label.size)[:60]] = np.repeat([1, 2], 30)
        return label

    def save(self, name: str, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
        """Write a volume, or a picture of [W, H] or [W, H, channels]."""
        path = self.path(name)
        if name.endswith((".nii", ".nii.gz")):
            nib.save(nib.Nifti1Image(data, oblique() if affine is None else affine), path)
        else:
            Image.fromarray(np.swapaxes(data, 0, 1)).save(path)
        return path

    def edit_header(self, name: str, **fields: Any) -> None:
        """Overwrite fields of the header, which nibabel's own saving would repair."""
        path = self.path(name)
        header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
        for field, value in fields.items():
            header[field] = value
        path.write_bytes(header.binaryblock + path.read_bytes()[348:])

    def use_frames(self) -> None:
        """Make it one patient with two frames of a video instead."""
        self.content.update(modality="endoscopy", labels={"polyp": 255})
        del self.content["ignore"]
        self.cases[:] = []
        for visit in (1, 2):
            self.save(f"{visit}.png", self.rng.integers(0, 255, (*FRAME, 3), dtype=np.uint8))
            self.save(f"{visit}_label.png", 255 * (self.label(FRAME) == 1).astype(np.uint8))
            self.cases.append(
                {
                    **{"case": f"f{visit}", "patient": "a", "visit": visit},
                    **{"image": f"{visit}.png", "label": f"{visit}_label.png"},
                }
            )

    def _case(self, patient: str, visit: int) -> dict[str, Any]:
        name = f"{patient}{visit}"
        label = self.label()
        self.save(f"{name}.nii", self.image())
        self.save(f"{name}_label.nii", label)
        self.save(f"{name}_scribble.nii", np.where(self.rng.random(SHAPE) < 0.3, label, 4).astype(np.uint8))
        files = {"image": f"{name}.nii", "label": f"{name}_label.nii", "scribble": f"{name}_scribble.nii"}
        return {
            "case": name,
            "patient": patient,
            "visit": visit,
            "split": "train" if patient == "a" else "test",
            **files,
        }


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)
