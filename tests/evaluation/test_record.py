"""run.json without an engine: what it says, where paths are relative to, shards."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from monai_ext.data.provenance import TrainingData, WeightRecord
from monai_ext.data.provenance import write_record as write_weight_record
from monai_ext.errors import UserError
from monai_ext.evaluation import record
from monai_ext.evaluation.record import code_version, read_record, write_merged_record, write_record
from monai_ext.files import source_sha256


@pytest.fixture
def data(tmp_path) -> Path:
    """A data root with a list of one case."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.nii").write_bytes(b"image of a")
    content = {"dataset": "Toy", "licence": "CC BY 4.0", "cases": []}
    (root / "list.json").write_text(json.dumps(content))
    return root


def write(folder: Path, **options: Any) -> dict[str, Any]:
    """Write a folder of one output with its record."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text("rows")
    return write_record(folder, **options)


def test_paths_are_relative_to_data_and_outputs(data, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere.nii"
    elsewhere.write_bytes(b"other")
    (out / "phantom").mkdir(parents=True)
    (out / "phantom" / "b.nii").write_bytes(b"phantom")
    inputs = [data / "images" / "a.nii", elsewhere, out / "phantom" / "b.nii", Path(record.__file__)]
    found = write(out, inputs=inputs, datalist=data / "list.json", outputs=["metrics.csv"])
    assert {(entry["path"], entry["in"]) for entry in found["inputs"]} == {
        ("images/a.nii", "data_root"),
        (str(elsewhere), None),
        ("phantom/b.nii", "output_dir"),
        ("monai_ext/evaluation/record.py", "repository"),
    }
    assert found["outputs"] == [{"path": "metrics.csv", "bytes": 4, "sha256": hashlib.sha256(b"rows").hexdigest()}]
    assert found["data"]["root"] == str(data)
    assert found["data"]["datalist"]["path"] == "list.json"


def test_a_file_below_a_linked_folder_is_below_the_root(data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    (data / "images" / "annexed.nii").symlink_to(tmp_path / "object")
    (tmp_path / "object").write_bytes(b"object")
    paths = [tmp_path / "link" / "images" / "a.nii", data / "images" / "annexed.nii"]
    for root in (data, tmp_path / "link"):
        found = write(tmp_path / "out", inputs=paths, data_root=root)
        assert sorted(entry["path"] for entry in found["inputs"]) == ["images/a.nii", "images/annexed.nii"]


@pytest.mark.parametrize(
    ("content", "dataset", "licence"),
    [
        ({"dataset": "Toy", "licence": "CC0"}, "Toy", "CC0"),
        ({"dataset": "Toy"}, "Toy", "not stated"),
        ({"dataset": "ACDC"}, "ACDC", "CC-BY-NC-SA-4.0"),
    ],
)
def test_licence_of_the_data_comes_from_the_list(tmp_path, content, dataset, licence):
    (tmp_path / "list.json").write_text(json.dumps(content))
    found = write(tmp_path / "out", datalist=tmp_path / "list.json")["data"]
    assert (found["dataset"], found["licence"]) == (dataset, licence)


def test_weights_come_with_their_record(tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    unknown = write(tmp_path / "out", checkpoint=weights)["checkpoint"]
    assert (unknown["licence"], unknown["record"]) == ("not stated", None)
    data = TrainingData(dataset="ACDC", patients=["p1"], labels="dense", licence="CC BY-NC-SA 4.0")
    known = WeightRecord(name="m", variant="compact", datasets=[data], command="c", licence="CC0", sha256="")
    write_weight_record(weights, known)
    found = write(tmp_path / "out", checkpoint=weights)["checkpoint"]
    assert found["licence"] == "CC0"
    assert found["record"]["datasets"] == [data.model_dump()]


def test_times_are_from_start_to_end(tmp_path):
    started = datetime.now(timezone.utc) - timedelta(seconds=100)
    found = write(tmp_path / "out", started=started)
    assert 100 <= found["wall_seconds"] < 130
    assert found["started"] == started.isoformat(timespec="seconds")
    assert write(tmp_path / "out", started=started, wall_seconds=7)["wall_seconds"] == 7
    assert write(tmp_path / "out")["wall_seconds"] is None


def test_outputs_are_all_files_unless_named(tmp_path):
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks" / "a.png").write_bytes(b"mask")
    (out / ".hidden").write_bytes(b"")
    write(out)
    assert [entry["path"] for entry in write(out)["outputs"]] == ["masks/a.png", "metrics.csv"]


def test_what_was_written_is_read(tmp_path):
    found = write(tmp_path / "out", config={"labels": {"RV": 1}}, seed=4, shard="1/4")
    assert read_record(tmp_path / "out") == read_record(tmp_path / "out" / "run.json") == found
    assert (found["seed"], found["shard"], found["config"]) == (4, "1/4", {"labels": {"RV": 1}})


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not a record of a run"),
        ("[]", "no object"),
        ('{"inputs": [], "outputs": {}}', "outputs is no list"),
        ('{"inputs": [{"path": 1}], "outputs": []}', "has no path"),
        ('{"inputs": [{"path": "a"}], "outputs": []}', "'a' has no sha256"),
        ('{"inputs": [], "outputs": [], "data": 3}', "data is no object"),
        ('{"inputs": [], "outputs": [], "data": {"root": 3}}', "root of data is no path"),
        ('{"inputs": [], "outputs": [], "versions": [1]}', "versions is no object"),
        ('{"inputs": [], "outputs": [], "code": "abc"}', "code is no object"),
        ('{"inputs": [{"path": "a", "sha256": "0", "in": ["b"]}], "outputs": []}', "no usable path"),
        ('{"inputs": [{"path": "a", "sha256": "0", "bytes": "many"}], "outputs": []}', "no usable path"),
        ('{"inputs": [{"path": "a\\u0000", "sha256": "0"}], "outputs": []}', "no usable path"),
        ('{"inputs": [], "outputs": [], "checkpoint": "x"}', "has no path"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, content, match):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=match):
        read_record(tmp_path)


def test_an_absent_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"run\.json: there is no such file"):
        read_record(tmp_path)


def test_a_lost_input_is_named_and_nothing_written(tmp_path):
    with pytest.raises(UserError, match=r"gone\.nii: cannot be read"):
        write(tmp_path / "out", inputs=[tmp_path / "gone.nii"])
    assert not (tmp_path / "out" / "run.json").exists()


def test_command_can_be_pasted_and_names_no_folder_of_python(tmp_path, monkeypatch):
    words = ["/opt/env/bin/python", "-m", "monai.bundle", "--config_file", "['a b.yaml','c.yaml']", "--x", "$HOME it's"]
    monkeypatch.setattr(sys, "orig_argv", words)
    command = write(tmp_path / "out")["command"]
    assert command.startswith("python -m monai.bundle --config_file \"['a b.yaml','c.yaml']\" --x ")
    pasted = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert pasted.stdout.splitlines() == ["python", *words[1:]]


def git(folder: Path, *words: str) -> str:
    options = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *options, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_commit_of_a_clone_and_whether_it_differs(tmp_path, monkeypatch):
    (tmp_path / "monai_ext").mkdir()
    (tmp_path / "monai_ext" / "a.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    monkeypatch.setattr(record, "REPOSITORY", tmp_path)
    (tmp_path / "notes.txt").write_text("not code")
    source = {"source": source_sha256()}
    assert code_version() == source | {"commit": commit, "dirty": False}
    (tmp_path / "monai_ext" / "b.py").write_text("")
    assert code_version() == source | {"commit": commit, "dirty": True}
    monkeypatch.setattr(record, "REPOSITORY", tmp_path / "monai_ext")  # installed below another repository
    assert code_version() == source | {"commit": None, "dirty": None}


def test_no_git_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_version() == {"source": source_sha256(), "commit": None, "dirty": None}


# Shards


def shard(tmp_path: Path, number: int, data: Path, **options: Any) -> Path:
    folder = tmp_path / f"shard{number}"
    image = data / "images" / f"{number}.nii"
    image.write_bytes(b"%d" % number)
    given: dict[str, Any] = {"inputs": [image, data / "images" / "a.nii"], "datalist": data / "list.json"}
    config = {"fold": 0, "device": f"cuda:{number}", "output_dir": str(folder)}
    write(
        folder, **given, shard=f"{number}/2", **({"config": config, "wall_seconds": 10 * number, "seed": 5} | options)
    )
    return folder


def test_shards_are_merged(tmp_path, data):
    shards = [shard(tmp_path, 1, data), shard(tmp_path, 2, data)]
    out = tmp_path / "merged"
    out.mkdir()
    (out / "metrics.csv").write_text("all rows")
    merged = write_merged_record(out, shards)
    assert [entry["path"] for entry in merged["inputs"]] == ["images/1.nii", "images/2.nii", "images/a.nii"]
    assert [entry["path"] for entry in merged["outputs"]] == ["metrics.csv"]
    assert (merged["wall_seconds"], merged["seed"], merged["shard"]) == (30, 5, None)
    assert merged["config"] == {"fold": 0}
    assert [part["shard"] for part in merged["shards"]] == ["1/2", "2/2"]
    assert read_record(out) == merged


@pytest.mark.parametrize(
    ("options", "match"), [({"seed": 6}, "seed is 5 and 6"), ({"config": {"fold": 1}}, "option fold is 0 and 1")]
)
def test_shards_of_other_runs_are_refused(tmp_path, data, options, match):
    shards = [shard(tmp_path, 1, data), shard(tmp_path, 2, data, **options)]
    with pytest.raises(UserError, match=match):
        write_merged_record(tmp_path / "merged", shards)


def test_shards_of_other_lists_are_refused(tmp_path, data):
    first = shard(tmp_path, 1, data)
    (data / "list.json").write_text('{"dataset": "Other"}')
    with pytest.raises(UserError, match="data list is"):
        write_merged_record(tmp_path / "merged", [first, shard(tmp_path, 2, data)])


def test_a_shard_without_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"shard7/run\.json: there is no such file"):
        write_merged_record(tmp_path, [tmp_path / "shard7"])
