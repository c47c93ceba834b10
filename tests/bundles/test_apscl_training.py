"""The training config of the APSCL bundle, run through MONAI's own front door on phantom patients."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from forked import BundleCommand
from monai_ext.data.episode_lists import read_episodes
from monai_ext.data.provenance import read_record
from monai_ext.evaluation.ablation import read_tables
from monai_ext.evaluation.bundle_runs import meaning, read_configs, refuse_unknown
from monai_ext.files import sha256_of
from monai_ext.networks.prototype_net import build_prototype_net

BUNDLE = Path(__file__).parents[2] / "bundles" / "apscl"
SIZES = {"latent": 4, "hidden": [8, 8], "prior_pool": 2, "sim_width": 8, "mgd_width": 8}
TINY = {
    "trunk_weights": "random",
    "image_size": 64,
    "network_options": SIZES,
    "min_pixels": 10,
    "steps": 6,
    "epoch_length": 2,
    "val_episodes": 4,
    "fold": 3,
}


def test_settings_of_the_ablations_are_options_of_the_training() -> None:
    parser = read_configs(
        "--train_configs", [str(BUNDLE / "configs" / name) for name in ("train.yaml", "train_light.yaml")]
    )
    tables = read_tables(BUNDLE)
    assert set(tables) == {"modules", "prototypes", "rivals", "episodes", "guidance"}
    for settings in tables.values():
        meanings = {meaning(parser, setting.options) for setting in settings}
        assert len(meanings) == len(settings)
        for setting in settings:
            refuse_unknown("--train_configs", parser, setting.options)


def start(folder: Path, overlay: str | None = None, **options: object) -> BundleCommand:
    """Start a training on phantom patients in ``folder/out``, on one thread and no GPU."""
    folder.mkdir(exist_ok=True)
    names = ["train.yaml", "train_light.yaml", *([overlay] if overlay else [])]
    configs = [str(BUNDLE / "configs" / name) for name in names]
    words = ["--config_file", str(configs), "--bundle_root", str(BUNDLE), "--output_dir", "out"]
    for key, value in {**TINY, "threads": 1, "device": "cpu", **options}.items():
        words += [f"--{key}", str(value)]
    return BundleCommand(["run", *words], cwd=folder, join=True)


def finish(process: BundleCommand, code: int = 0) -> str:
    """Wait for a training and return what it printed."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == code, printed
    return printed


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The output folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    printed = finish(start(folder))
    assert "Setting 1: 0 of" in printed
    return folder / "out"


def test_killed_and_resumed_training_gives_the_same_weights(whole, tmp_path) -> None:
    process = start(tmp_path)
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, printed
    assert not (tmp_path / "out" / "model.pt").exists()
    printed = finish(start(tmp_path))
    assert "6/6" in printed
    assert " 0/6" not in printed, "the resumed run began anew"
    for name in ("model.pt", "model.json", "validation.csv", "validation_episodes.json"):
        assert sha256_of(tmp_path / "out" / name) == sha256_of(whole / name), name


def test_weights_are_those_that_inference_needs(whole) -> None:
    network = build_prototype_net(checkpoint=whole / "model.pt", image_size=64, options={**SIZES, "prototypes": "both"})
    state = torch.load(whole / "model.pt", weights_only=True)
    assert state.keys() == network.state_dict().keys()
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}


def test_record_and_validation(whole) -> None:
    record = read_record(whole / "model.pt")
    assert record is not None
    assert [(d.dataset, d.patients) for d in record.datasets] == [
        ("phantoms", ["phantom1", "phantom2"]),
        ("ImageNet-1k", []),
    ]
    assert "choices were made on phantom0" in record.notes
    assert record.trained_as["prototypes"] == "both"
    assert record.trained_as["classes"] == ["lesion", "kidney"]
    episodes = read_episodes(whole / "validation_episodes.json")
    assert {e.query.case for e in episodes} == {"phantom0"}
    assert len((whole / "validation.csv").read_text().splitlines()) == 1 + 3


def test_episodes_are_drawn_as_the_training_draws_them(whole, tmp_path) -> None:
    printed = finish(start(tmp_path, "draw_episodes.yaml"))
    assert "4 episodes: " in printed
    name = "validation_episodes.json"
    assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert not list(tmp_path.glob("out/*.pt"))
    printed = finish(start(tmp_path, "draw_episodes.yaml", validation_patients="[]"), code=1)
    assert printed.splitlines()[-1].startswith("error: no episode was drawn, as no patient validates")


def test_each_loss_stands_in_tensorboard(whole) -> None:
    tags = set()
    for file in sorted(whole.glob("events*")):
        events = EventAccumulator(str(file))
        events.Reload()
        tags |= set(events.Tags()["scalars"])
    assert {"loss", "ce", "scl", "val_mean"} <= tags


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"novel": "heart"}, "class 'heart' is in no data list: they have lesion, kidney."),
        ({"novel": "kidney", "base": "['lesion','kidney']"}, "kidney is novel and among the base classes"),
        ({"novel": "kidney"}, "the training needs two base classes"),
        ({"prototypes": "few"}, "prototypes 'few' is unknown"),
        ({"select": "val_dice"}, "--select val_dice"),
    ],
)
def test_mistakes_end_the_run_with_one_sentence(tmp_path, options, sentence) -> None:
    printed = finish(start(tmp_path, **options), code=1)
    assert printed.splitlines()[-1].startswith(f"error: {sentence}")
    assert not list(tmp_path.glob("out/*.*"))
