"""Bundles through MONAI's front door, with a tiny network of random weights and a patient of a few small slices."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism
from scipy import ndimage

from monai_ext.networks.sam import build_compact

BUNDLES = Path(__file__).parents[2] / "bundles"
TINY: dict[str, Any] = {
    "image_size": 64,
    "stride": 8,
    "channels": [16, 16, 32, 32],
    "blocks": [1, 1, 1],
    "width": 32,
}


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    yield
    set_determinism(None)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """Random weights of the tiny network."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.manual_seed(2)
    network = build_compact(**TINY)
    with torch.no_grad():
        for embedding in network.prompt_encoder.point_embeddings:
            embedding.weight *= 4  # masks that differ from prompt to prompt
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_options(tiny_weights) -> dict[str, Any]:
    """Options that make a config build the tiny network and load its weights."""
    return {"checkpoint": str(tiny_weights), "device": "cpu", **{f"network_def#{k}": v for k, v in TINY.items()}}


@pytest.fixture(scope="session")
def load_bundle(tiny_options) -> Callable[..., ConfigWorkflow]:
    """(bundle, configs, options) -> the initialised workflow on the tiny network."""

    def load(bundle: str, *configs: str, workflow_type: str = "infer", **options: Any) -> ConfigWorkflow:
        files = [str(BUNDLES / bundle / "configs" / f"{name}.yaml") for name in configs]
        options = {"bundle_root": str(BUNDLES / bundle), **tiny_options, **options}
        workflow = ConfigWorkflow(files, logging_file=False, workflow_type=workflow_type, **options)
        workflow.initialize()
        return workflow

    return load


@pytest.fixture(scope="session")
def run_bundle(load_bundle) -> Callable[..., None]:
    """(bundle, configs, options) -> what `python -m monai.bundle run` does."""

    def run(bundle: str, *configs: str, **options: Any) -> None:
        workflow = load_bundle(bundle, *configs, **options)
        workflow.run()
        workflow.finalize()

    return run


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    spacing = np.diag([-2.0, -2.0, 6.0, 1.0])
    nib.save(nib.Nifti1Image(array, spacing if affine is None else affine), path)


@pytest.fixture
def patient(tmp_path) -> dict[str, Any]:
    """A data list of two visits, 24 x 20 x 3 voxels with a disc and a ring, not yet on disk as JSON.

    The files lie in ``tmp_path``; write the list with ``write_list``.
    """
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:24, :20]
    cases = []
    for visit, shift in enumerate((0, 2)):
        distance = np.hypot(x - 11 - shift, y - 9)
        label = np.repeat(np.where(distance < 4, 1, np.where(distance < 7, 2, 0))[..., None], 3, axis=-1)
        image = (
            100.0 * (label == 1) + 60.0 * (label == 2) + 20 * ndimage.gaussian_filter(rng.normal(size=label.shape), 1)
        )
        write_volume(tmp_path / f"image{visit}.nii.gz", image.astype(np.float32))
        write_volume(tmp_path / f"label{visit}.nii.gz", label.astype(np.uint8))
        case = {"case": f"visit{visit}", "patient": "p1", "visit": visit}
        cases.append({**case, "image": f"image{visit}.nii.gz", "label": f"label{visit}.nii.gz"})
    return {"dataset": "small", "modality": "MR", "labels": {"disc": 1, "ring": 2}, "cases": cases}


@pytest.fixture
def write_list(tmp_path) -> Callable[[dict[str, Any]], str]:
    def write(content: dict[str, Any]) -> str:
        (tmp_path / "list.json").write_text(json.dumps(content))
        return str(tmp_path / "list.json")

    return write
