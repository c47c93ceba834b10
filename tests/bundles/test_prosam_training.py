"""The training of bundle prosam: killed and resumed, it ends with the same weights."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from forked import BundleCommand
from monai_ext.data.phantoms.writing import write_phantom_patients
from monai_ext.files import sha256_of

BUNDLE = Path(__file__).parents[2] / "bundles" / "prosam"
TINY = {
    **{"trunk": "sam", "hidden": 16, "prompt_count": 4, "samples": 2, "min_pixels": 4, "steps": 6, "epoch_length": 2},
    **{"val_episodes": 4, "validation_patients": ["phantom0", "phantom1"], "annotations": ["mask", "points"]},
    **{"threads": 1, "device": "cpu"},
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantom_patients(tmp_path_factory.mktemp("phantoms"), 4)


@pytest.fixture(scope="module")
def start(phantoms, tiny_options):
    """Start a training in a process of its own; the output folder is ``folder/out``."""

    def run(folder: Path, **options: Any) -> BundleCommand:
        words = ["--config_file", str([str(BUNDLE / "configs" / "train.yaml")]), "--bundle_root", str(BUNDLE)]
        for key, value in {**tiny_options, **TINY, "datalist": phantoms, "output_dir": "out", **options}.items():
            words += [f"--{key}", str(value)]
        return BundleCommand(["run", *words], cwd=folder, join=True)

    return run


def finish(process: BundleCommand) -> str:
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


def test_killed_and_resumed_training_gives_the_same_weights(start, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    finish(start(whole))
    process = start(killed)
    while not (killed / "out" / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "out" / "prompts.pt").exists()
    printed = finish(start(killed))
    assert " 0/6" not in printed, "the resumed run began anew"
    for name in ("prompts.pt", "prompts.json", "validation.csv", "validation_episodes.json"):
        assert sha256_of(killed / "out" / name) == sha256_of(whole / "out" / name), name
