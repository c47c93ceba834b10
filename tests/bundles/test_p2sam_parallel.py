"""A run that is killed, divided into shards, or shared out among processes ends in the same bytes as one in one go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from forked import BundleCommand
from monai_ext.data.shards import shard_of
from monai_ext.evaluation.merge import merge
from monai_ext.evaluation.verify import verify

BUNDLE = Path(__file__).parents[2] / "bundles" / "p2sam"
FAST = {"n_pos": [1, 2], "n_neg": [1, 1]}
SHARDS = 4
Options = dict[str, Any]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Three patients at three visits, 24 x 20 x 2 voxels: six targets."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:24, :20]
    cases = []
    for patient in ("anna", "bela", "caro"):
        for visit in range(3):
            distance = np.hypot(x - 11 - visit, y - 9)
            label = np.repeat(np.where(distance < 4, 1, np.where(distance < 7, 2, 0))[..., None], 2, axis=-1)
            image = np.array([10.0, 100.0, 60.0])[label] + rng.normal(size=label.shape)
            name = f"{patient}_{visit}"
            for kind, array in (("image", image.astype(np.float32)), ("label", label.astype(np.uint8))):
                nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2.0, 6.0, 1.0])), folder / f"{name}_{kind}.nii.gz")
            case = {"case": name, "patient": patient, "visit": visit}
            cases.append({**case, "image": f"{name}_image.nii.gz", "label": f"{name}_label.nii.gz"})
    content = {"dataset": "cohort", "modality": "MR", "labels": {"disc": 1, "ring": 2}, "cases": cases}
    (folder / "list.json").write_text(json.dumps(content))
    return folder / "list.json"


@pytest.fixture(scope="module")
def evaluate(run_bundle, cohort) -> Callable[..., None]:
    def run(output_dir: Path, **options: Any) -> None:
        run_bundle(
            "p2sam", "inference", "evaluate", datalist=str(cohort), output_dir=str(output_dir), **FAST, **options
        )

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, evaluate) -> Path:
    """The outputs of a run in one go."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files but ``run.json``, which tells of times, and the shards' own folders."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("shard-")}


def assert_same(folder: Path, other: Path) -> None:
    one, two = contents(folder), contents(other)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def state(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for part in ("masks", "overlays") for path in (folder / part).iterdir()}


def command(configs: tuple[str, ...], options: Options) -> list[str]:
    """What follows `python -m monai.bundle`."""
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in configs]
    words = [word for key, value in options.items() for word in (f"--{key}", str(value).replace(" ", ""))]
    return ["run", "--config_file", str(files), *words]


def torchrun(configs: tuple[str, ...], options: Options) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*launcher, "-m", "monai.bundle", *command(configs, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=600)


# ---------------------------------------------------------------------------------------------------------- resume


def test_a_killed_run_goes_on_to_the_same_bytes(whole, evaluate, cohort, tiny_options, tmp_path, capsys):
    options = {"bundle_root": BUNDLE, **tiny_options, "datalist": cohort, "output_dir": tmp_path / "out", **FAST}
    process = BundleCommand(command(("inference", "evaluate"), options), join=True)
    while len(list((tmp_path / "out" / "cases").glob("[!.]*.json"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, printed
    done = {path.stem for path in (tmp_path / "out" / "cases").glob("[!.]*.json")}
    assert 2 <= len(done) < 6
    assert not (tmp_path / "out" / "metrics.csv").exists()
    before = state(tmp_path / "out")

    evaluate(tmp_path / "out")
    assert f"{len(done)} of 6 cases are finished" in capsys.readouterr().out
    after = state(tmp_path / "out")
    assert all(after[name] == before[name] for name in after if name.split(".")[0] in done)
    assert_same(tmp_path / "out", whole)


def test_a_second_start_runs_no_case(whole, evaluate, tmp_path):
    before, files = state(whole), contents(whole)
    (whole / "metrics.csv").unlink()
    evaluate(whole)
    assert state(whole) == before
    assert contents(whole) == files
    assert len(json.loads((whole / "run.json").read_text())["outputs"]) == len(files)
    assert verify(whole / "run.json").agrees


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, 0),
        ({"threads": 1}, 0),
        ({"seed": 1}, 6),
        ({"n_neg": [1, 2]}, 6),
        ({"nsd_tolerance_mm": 1.0}, 6),
        ({"inferer#slice_match": "relative"}, 6),  # not an option of its own
        ({"mean_of": "patient"}, 0),
    ],
)
def test_options_that_matter_run_the_cases_again(whole, load_bundle, cohort, change, left):
    options = {"datalist": str(cohort), "output_dir": str(whole), **FAST, **change}
    workflow = load_bundle("p2sam", "inference", "evaluate", **options)
    assert len(workflow.parser.get_parsed_content("finished").left) == left


# ---------------------------------------------------------------------------------------------------------- shards


def test_merged_shards_are_the_whole(whole, evaluate, tmp_path, capsys):
    for index in range(SHARDS):
        evaluate(tmp_path, shard=f"{index}/{SHARDS}")
        folder = tmp_path / f"shard-{index}-of-{SHARDS}"
        holds = [name for name in ("anna", "bela", "caro") if shard_of(name, SHARDS) == index]
        assert {path.name.split("_")[0] for path in (folder / "cases").glob("*")} == set(holds)
        assert (folder / "metrics.csv").exists() == bool(holds)
    assert "no patient falls into shard" in capsys.readouterr().out
    assert not (tmp_path / "metrics.csv").exists()
    merge([tmp_path], tmp_path)
    assert_same(tmp_path, whole)
    assert len(json.loads((tmp_path / "run.json").read_text())["shards"]) == SHARDS
    assert verify(tmp_path / "run.json").agrees
    before = state(tmp_path)
    evaluate(tmp_path)
    assert state(tmp_path) == before, "the merged run is a finished run"


# ------------------------------------------------------------------------------------------------------- processes


def test_two_processes_write_the_same_bytes(whole, cohort, tiny_options, tmp_path):
    options = {"bundle_root": BUNDLE, **tiny_options, "datalist": cohort, "output_dir": tmp_path / "out", **FAST}
    done = torchrun(("inference", "evaluate"), options)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "out", whole)
    assert done.stdout.count("p2sam on cohort") == 1
    assert done.stderr.count("3/3") >= 1
    assert "(process 1 of 2)" in done.stderr
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["processes"] == 2
    assert verify(tmp_path / "out" / "run.json").agrees


def test_a_mistake_in_one_process_is_told_once_and_ends_all(tiny_options, tmp_path):
    """The phantom's second target, the second process's only case, cannot be written."""
    blocked = tmp_path / "masks" / "phantom_visit2.nii.gz"
    (blocked / "folder").mkdir(parents=True)
    options = {"bundle_root": BUNDLE, **tiny_options, "output_dir": tmp_path, **FAST}
    done = torchrun(("inference",), options)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, done.stderr
    assert f"cannot write {blocked}" in told[0]
    assert "monai_ext/handlers" not in done.stderr, "no traceback of ours"
    assert not (tmp_path / "prompts.csv").exists()
    assert len(list((tmp_path / "phantom").iterdir())) == 7
