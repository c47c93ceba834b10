"""Two processes of torchrun train as one: killed and resumed, they end in the weights of one process in one go.

Without prompts, augmentation and further steps of the loop nothing is drawn but the batches, so that both see the same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_ext.data.provenance import read_record
from monai_ext.files import sha256_of

BUNDLE = Path(__file__).parents[2] / "bundles" / "p2sam"
EPOCHS, LENGTH = 4, 4
OPTIONS: dict[str, Any] = {
    "sam_variant": "compact",
    "epochs": EPOCHS,
    "epoch_length": LENGTH,
    "batch_size": 5,  # two slices for the first process, three for the second
    "val_interval": 2,
    "drop_path": 0.0,
    "iterations": 1,
    "first_prompt": {"none": 1},
    "augment": None,
    "phantoms": 2,  # their classes are unknown to the dense loss
    "phantom_share": 0.3,
    "regions": 1,  # no targets without a prompt
    "dense_loss": 1.0,
    "threads": 1,
    "learning_rate": 0.05,
    "optimizer#eps": 1.0,  # Adam's step would turn rounding in a gradient near 0 into a whole step
}


def torchrun(folder: Path, overlay: Path, options: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    """Start a training by two processes into ``folder``."""
    files = [str(BUNDLE / "configs" / name) for name in ("train.yaml", "train_multi_gpu.yaml")] + [str(overlay)]
    given = {**options, "bundle_root": BUNDLE, "output_dir": folder}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value).replace(" ", ""))]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "monai.bundle", "run"]
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, *launcher, "--config_file", str(files), *words],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
        )


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.*")):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return {tag: sorted(values) for tag, values in found.items()}


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> Path:
    """The options as a config, for MONAI's command line knows no null."""
    path = tmp_path_factory.mktemp("overlay") / "plain.yaml"
    path.write_text(json.dumps(OPTIONS))
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory, run_bundle, overlay) -> Path:
    """The outputs of one process in one go."""
    folder = tmp_path_factory.mktemp("alone")
    run_bundle("p2sam", "train", str(overlay.with_suffix("")), output_dir=str(folder))
    return folder


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, tiny_options, overlay) -> Path:
    """The outputs of two processes, of which one was killed after the first epoch, and that were started again."""
    folder = tmp_path_factory.mktemp("resumed")
    out, log, checkpoint = folder / "out", folder / "log", folder / "out" / "checkpoint.pt"
    job = torchrun(out, overlay, tiny_options, log)
    while not checkpoint.exists() and job.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert job.wait(300) != 0, log.read_text()
    assert not (out / "model.pt").exists()
    assert torch.load(checkpoint, weights_only=True)["epoch"] < EPOCHS
    assert torchrun(out, overlay, tiny_options, log).wait(300) == 0, log.read_text()
    assert log.read_text().count(f"{EPOCHS * LENGTH}/{EPOCHS * LENGTH}") >= 1
    assert " 0/16" not in log.read_text(), "the resumed run began anew"
    return out


def test_weights_are_those_of_one_process(alone, resumed, tiny_weights) -> None:
    one, two = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (alone, resumed))
    began = torch.load(tiny_weights, weights_only=True)
    moved = max(float((value - began[name]).abs().max()) for name, value in one["network"].items())
    assert moved > 0.01
    for part in ("network", "auxiliary"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, atol=1e-5, rtol=0, msg=name)
    assert {key: two[key] for key in ("epoch", "iteration", "lr_scheduler")} == {
        key: one[key] for key in ("epoch", "iteration", "lr_scheduler")
    }


def test_losses_and_validation_are_those_of_one_process(alone, resumed) -> None:
    one, two = curves(alone), curves(resumed)
    assert set(one) == set(two) == {"loss", "mask_loss", "auxiliary_loss", "click_dice", "no_prompt_dice"}
    for tag, values in one.items():
        last = dict(two[tag])  # steps after the last checkpoint were taken twice
        assert last == pytest.approx(dict(values), abs=1e-4), tag


def test_the_first_process_alone_writes(resumed) -> None:
    """Each start leaves two files of events, of the training and of the validation."""
    writers = {path.name.split(".")[5] for path in resumed.glob("events.*")}
    assert len(list(resumed.glob("events.*"))) == 4
    assert len(writers) == 2
    record = read_record(resumed / "model.pt")
    assert record is not None
    assert record.sha256 == sha256_of(resumed / "model.pt")
    assert record.command.startswith("torchrun --nproc_per_node 2 -m monai.bundle run")
    assert not list(resumed.rglob("*.part"))
