"""run.json: what ran on which files, and which files it wrote."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import distributed, multiprocessing

from monai_ext.files import sha256_of
from monai_ext.handlers.run_record import RunRecord


def run(record: RunRecord, output_dir: Path, *, fail: bool = False) -> dict:
    """Run an engine that writes one mask and, at the end, a table; return what is recorded."""
    output_dir.mkdir(exist_ok=True)

    def step(engine, batch):
        if fail:
            raise RuntimeError("broken")
        (output_dir / "masks").mkdir(exist_ok=True)
        (output_dir / "masks" / "case.png").write_bytes(b"mask")

    engine = Engine(step)
    engine.add_event_handler(Events.COMPLETED, lambda: (output_dir / "metrics.csv").write_text("rows"))
    record.attach(engine)
    engine.run([0])
    return json.loads((output_dir / "run.json").read_text())


@pytest.fixture
def files(tmp_path):
    """Five input files by name."""
    paths = {}
    for name in ("image", "label", "reference_image", "reference_label", "weights"):
        paths[name] = str(tmp_path / f"{name}.bin")
        Path(paths[name]).write_bytes(name.encode() * 1000)
    return paths


def test_hash_is_that_of_the_bytes(files):
    assert sha256_of(files["image"]) == hashlib.sha256(b"image" * 1000).hexdigest()


def test_inputs_of_pairs_are_hashed_once(files, tmp_path):
    pair = {
        "case": "c",
        "image": files["image"],
        "label": files["label"],
        "reference_image": [files["reference_image"]],
        "reference_label": [files["reference_label"]],
    }
    record = run(RunRecord(tmp_path / "out", inputs=[pair, pair, files["image"]]), tmp_path / "out")
    assert [entry["path"] for entry in record["inputs"]] == sorted(
        path for name, path in files.items() if name != "weights"
    )
    assert record["inputs"][0] == {
        "path": files["image"],
        "in": None,
        "bytes": 5000,
        "sha256": hashlib.sha256(b"image" * 1000).hexdigest(),
    }


def test_outputs_are_what_this_run_wrote(tmp_path):
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    (output_dir / "old.csv").write_text("of an earlier run")
    (output_dir / "metrics.csv").write_text("of an earlier run")
    record = run(RunRecord(output_dir), output_dir)
    assert [entry["path"] for entry in record["outputs"]] == ["masks/case.png", "metrics.csv"]
    assert record["outputs"][1]["sha256"] == hashlib.sha256(b"rows").hexdigest()
    assert sorted(path.name for path in output_dir.iterdir()) == [
        "masks",
        "metrics.csv",
        "old.csv",
        "run.json",
    ]


def test_files_of_an_interrupted_run_are_kept(tmp_path):
    output_dir = tmp_path / "out"
    (output_dir / "masks").mkdir(parents=True)
    for name in ("first.png", "stray.png"):
        (output_dir / "masks" / name).write_bytes(name.encode())
    record = RunRecord(output_dir)
    record.keep([output_dir / "masks" / "first.png", output_dir / "masks" / "gone.png"])
    written = run(record, output_dir)["outputs"]
    assert [entry["path"] for entry in written] == ["masks/case.png", "masks/first.png", "metrics.csv"]


def run_rank(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    inputs = [folder / f"input{rank}"]
    inputs[0].write_text(str(rank))
    record = RunRecord(folder / "out", inputs=inputs, data_root=folder)

    def step(engine, batch):
        (folder / "out" / f"mask{rank}.png").write_text(str(rank))

    engine = Engine(step)
    record.attach(engine)
    engine.run([0])
    assert (folder / "out" / "run.json").is_file()
    distributed.destroy_process_group()


def test_one_of_two_processes_writes_for_both(tmp_path):
    (tmp_path / "out").mkdir()
    multiprocessing.start_processes(run_rank, (tmp_path,), nprocs=2, start_method="fork")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["processes"] == 2
    assert [entry["path"] for entry in record["inputs"]] == ["input0", "input1"]
    assert [entry["path"] for entry in record["outputs"]] == ["mask0.png", "mask1.png"]


def test_run_is_described(files, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "monai.bundle", "run"])
    record = run(RunRecord(tmp_path / "out", checkpoint=files["weights"], seed=7), tmp_path / "out")
    assert record["seed"] == 7
    assert record["checkpoint"]["sha256"] == hashlib.sha256(b"weights" * 1000).hexdigest()
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["cores"] > 0
    assert record["peak_memory_bytes"] > 10_000_000
    assert 0 <= record["wall_seconds"] < 60
    assert record["command"] == "python -m monai.bundle run"


def test_config_of_any_type_is_written(tmp_path):
    config = {
        "labels": {"RV": np.int64(1)},
        "device": torch.device("cpu"),
        "datalist": tmp_path,
        "sizes": (1, 2.5, float("inf")),
        "fold": None,
    }
    record = run(RunRecord(tmp_path / "out", config=config), tmp_path / "out")
    assert record["config"] == {
        "labels": {"RV": 1},
        "device": "cpu",
        "datalist": str(tmp_path),
        "sizes": [1, 2.5, "inf"],
        "fold": None,
    }
    assert record["checkpoint"] is None


def test_a_failed_run_leaves_no_record(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("that of an earlier run")
    with pytest.raises(RuntimeError, match="broken"):
        run(RunRecord(tmp_path / "out"), tmp_path / "out", fail=True)
    assert list((tmp_path / "out").iterdir()) == []
