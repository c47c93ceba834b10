"""Real MONAI Label servers on small studies; run by `make test-label` in MONAI Label's own environment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage

from monai_ext.errors import UserError
from monai_ext.label.layout import prepare
from monai_ext.label.server import running
from monai_ext.networks.sam import build_compact
from phantoms.video import write_phantom_frames

BUNDLE = Path(__file__).parents[2] / "bundles" / "p2sam"
TINY: dict[str, Any] = {"image_size": 64, "stride": 8, "channels": [16, 16, 32, 32], "blocks": [1, 1, 1], "width": 32}
SHAPE = (26, 20, 5)
SPOT = (20, 4, 4)
"""A voxel of a small bright disc beside, on a slice of which the annotation is silent."""


def oblique() -> np.ndarray:
    """Affine of a volume stored as posterior, right, inferior, turned by 12 and tipped by 9 degrees, 2 x 1.5 x 6 mm."""
    turn, tip = np.deg2rad(12), np.deg2rad(9)
    turned = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    tipped = np.array([[1, 0, 0], [0, np.cos(tip), -np.sin(tip)], [0, np.sin(tip), np.cos(tip)]])
    axes = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, -1]]) @ np.diag([2.0, 1.5, 6.0])
    affine = np.eye(4)
    affine[:3, :3] = turned @ tipped @ axes
    affine[:3, 3] = (31.0, -17.0, 44.0)
    return affine


def _write_patient(folder: Path) -> Path:
    """Three visits of one patient (the first annotated) and one patient without any annotation.

    A disc in a ring; on the last slice neither, but a spot elsewhere.
    """
    rng = np.random.default_rng(0)
    x, y = np.mgrid[: SHAPE[0], : SHAPE[1]]
    spot = np.hypot(2.0 * (x - SPOT[0]), 1.5 * (y - SPOT[1])) < 6
    cases = []
    for name, patient, visit in (("a0", "a", 0), ("a1", "a", 1), ("a2", "a", 2), ("b0", "b", 0), ("b1", "b", 1)):
        distance = np.hypot(x - 12 - visit, y - 9)
        label = np.repeat(np.where(distance < 4, 1, np.where(distance < 7, 3, 0))[..., None], SHAPE[2], axis=-1)
        label[..., SPOT[2]] = 0
        noise = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1)
        image = 100.0 * (label == 1) + 60.0 * (label == 3) + 20 * noise
        image[..., SPOT[2]] += 100.0 * spot
        nib.save(nib.Nifti1Image(image.astype(np.float32), oblique()), folder / f"{name}.nii.gz")
        case = {"case": name, "patient": patient, "visit": visit, "image": f"{name}.nii.gz"}
        if name == "a0":
            nib.save(nib.Nifti1Image(label.astype(np.uint8), oblique()), folder / "a0_label.nii.gz")
            case["label"] = "a0_label.nii.gz"
        cases.append(case)
    content = {"dataset": "small", "modality": "MR", "labels": {"disc": 1, "odd ring": 3}, "cases": cases}
    (folder / "list.json").write_text(json.dumps(content))
    return folder / "list.json"


def _make_bundle(bundle: Path, weights: str | None = None) -> Path:
    """The bundle with weights of its own, or with a tiny network of random weights."""
    (bundle / "models").mkdir(parents=True)
    (bundle / "configs").mkdir()
    for name in ("docs", "LICENSE"):
        (bundle / name).symlink_to(BUNDLE / name)
    for path in (BUNDLE / "configs").iterdir():
        (bundle / "configs" / path.name).write_bytes(path.read_bytes())
    config = yaml.safe_load((BUNDLE / "configs" / "inference.yaml").read_text())
    config["checkpoint"] = "own_weights"  # MONAI Label takes the shortest of the names in models
    if weights is None:
        config["network_def"].update(TINY)
    (bundle / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (bundle / "models" / "own_weights.pt").symlink_to("model.pt")
    if weights is not None:
        (bundle / "models" / "model.pt").symlink_to(BUNDLE / "models" / weights)
        return bundle
    torch.manual_seed(2)
    network = build_compact(**TINY)
    with torch.no_grad():
        for embedding in network.prompt_encoder.point_embeddings:
            embedding.weight *= 4  # masks that differ from prompt to prompt
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return bundle


def _break_weights(bundle: Path) -> str:
    """Leave one tensor out of the file that the server reads, not of the config's own; the tensor's name."""
    models = bundle / "models"
    (models / "own_weights.pt").unlink()
    (models / "model.pt").rename(models / "own_weights.pt")
    state = torch.load(models / "own_weights.pt", weights_only=True)
    name = next(iter(state))
    torch.save({key: value for key, value in state.items() if key != name}, models / "model.pt")
    return name


@contextmanager
def _running(app: Path, studies: Path, log: Path, bundles: str = "p2sam") -> Iterator[str]:
    """A server; one that does not start shows the end of its log."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(running(app, studies, log, bundles))
        except UserError as error:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
            pytest.fail("\n".join([str(error), *tail]))
        yield url


class Served:
    """A running server and its files."""

    def __init__(self, url: str, folder: Path, bundle: Path, datalist: Path, missing: str = "") -> None:
        self.url, self.folder, self.bundle, self.datalist, self.missing = url, folder, bundle, datalist, missing
        self.app = folder / "apps" / "monaibundle"


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Iterator[Served]:
    """Volumes, served by five bundles.

    ``p2sam`` is tiny, ``trained`` has our weights, those of ``broken`` do not fit: ``missing`` is not there. ``apscl``
    and ``prosam`` are the bundles as they are shipped.
    """
    folder = tmp_path_factory.mktemp("volumes")
    (folder / "images").mkdir()
    datalist, bundle = _write_patient(folder / "images"), _make_bundle(folder / "p2sam")
    broken = _make_bundle(folder / "broken")
    missing = _break_weights(broken)
    shipped = [BUNDLE.parent / name for name in ("apscl", "prosam")]
    for one in (bundle, broken, _make_bundle(folder / "trained", "compact_chaos.pt"), *shipped):
        app = prepare(datalist, folder, one)
    with _running(app, folder / "studies", folder / "log", "p2sam,broken,trained,apscl,prosam") as url:
        yield Served(url, folder, bundle, datalist, missing)


@pytest.fixture(scope="session")
def served_frames(served, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("frames")
    app = folder / "apps" / "monaibundle"
    shutil.copytree(served.app, app, ignore=shutil.ignore_patterns("model", "logs"))  # fetched once
    datalist, bundle = write_phantom_frames(folder / "images", n=3), _make_bundle(folder / "p2sam")
    prepare(datalist, folder, bundle)
    with _running(app, folder / "studies", folder / "log") as url:
        yield Served(url, folder, bundle, datalist)
