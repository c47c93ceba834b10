"""Real MONAI Label servers on small studies; run by `make test-label` in MONAI Label's own environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage

from monai_ext.data.phantoms import write_phantom_frames
from monai_ext.label_server import prepare, running
from monai_ext.networks.sam import build_compact

BUNDLE = Path(__file__).parents[2] / "bundles" / "p2sam"
TINY: dict[str, Any] = {"image_size": 64, "stride": 8, "channels": [16, 16, 32, 32], "blocks": [1, 1, 1], "width": 32}
SHAPE = (26, 20, 5)  # disc and ring: slices along the second stored axis are 6 mm apart


def oblique() -> np.ndarray:
    """Affine of a volume stored as (posterior, superior, left)-ish axes, 12 degrees oblique, 2 x 1.5 x 6 mm."""
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    axes = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, -1]]) @ np.diag([2.0, 1.5, 6.0])
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes
    affine[:3, 3] = (31.0, -17.0, 44.0)
    return affine


def _write_patient(folder: Path) -> Path:
    """Three visits of one patient (the first annotated) and one patient without any annotation."""
    rng = np.random.default_rng(0)
    x, y = np.mgrid[: SHAPE[0], : SHAPE[1]]
    cases = []
    for name, patient, visit in (("a0", "a", 0), ("a1", "a", 1), ("a2", "a", 2), ("b0", "b", 0), ("b1", "b", 1)):
        distance = np.hypot(x - 12 - visit, y - 9)
        label = np.repeat(np.where(distance < 4, 1, np.where(distance < 7, 3, 0))[..., None], SHAPE[2], axis=-1)
        noise = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1)
        image = 100.0 * (label == 1) + 60.0 * (label == 3) + 20 * noise
        nib.save(nib.Nifti1Image(image.astype(np.float32), oblique()), folder / f"{name}.nii.gz")
        case = {"case": name, "patient": patient, "visit": visit, "image": f"{name}.nii.gz"}
        if name == "a0":
            nib.save(nib.Nifti1Image(label.astype(np.uint8), oblique()), folder / "a0_label.nii.gz")
            case["label"] = "a0_label.nii.gz"
        cases.append(case)
    content = {"dataset": "small", "modality": "MR", "labels": {"disc": 1, "odd ring": 3}, "cases": cases}
    (folder / "list.json").write_text(json.dumps(content))
    return folder / "list.json"


def _make_bundle(folder: Path) -> Path:
    """The bundle with a tiny network of random weights."""
    bundle = folder / "p2sam"
    (bundle / "models").mkdir(parents=True)
    (bundle / "configs").mkdir()
    for name in ("docs", "LICENSE"):
        (bundle / name).symlink_to(BUNDLE / name)
    for path in (BUNDLE / "configs").iterdir():
        (bundle / "configs" / path.name).write_bytes(path.read_bytes())
    config = yaml.safe_load((BUNDLE / "configs" / "inference.yaml").read_text())
    config["network_def"].update(TINY)
    config["checkpoint"] = "model"
    (bundle / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    torch.manual_seed(2)
    network = build_compact(**TINY)
    with torch.no_grad():
        for embedding in network.prompt_encoder.point_embeddings:
            embedding.weight *= 4  # masks that differ from prompt to prompt
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return bundle


class Served:
    """A running server and its files."""

    def __init__(self, url: str, folder: Path, bundle: Path, datalist: Path) -> None:
        self.url, self.folder, self.bundle, self.datalist = url, folder, bundle, datalist


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("volumes")
    (folder / "images").mkdir()
    datalist, bundle = _write_patient(folder / "images"), _make_bundle(folder)
    app = prepare(datalist, folder, bundle)
    with running(app, folder / "studies", folder / "log") as url:
        yield Served(url, folder, bundle, datalist)


@pytest.fixture(scope="session")
def served_frames(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("frames")
    datalist, bundle = write_phantom_frames(folder / "images", n=3), _make_bundle(folder)
    app = prepare(datalist, folder, bundle)
    with running(app, folder / "studies", folder / "log") as url:
        yield Served(url, folder, bundle, datalist)


@pytest.fixture(scope="session")
def write_patient() -> Callable[[Path], Path]:
    return _write_patient


@pytest.fixture(scope="session")
def make_bundle() -> Callable[[Path], Path]:
    return _make_bundle
