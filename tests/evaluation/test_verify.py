"""verify: what changed, what is missing, folders that were moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from monai_ext.errors import UserError
from monai_ext.evaluation.record import write_record
from monai_ext.evaluation.verify import format_verification, main, verify


@pytest.fixture
def run(tmp_path) -> Path:
    """The output folder of a run: one image, a list, weights, a table and a phantom beside it."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (out / "masks").mkdir(parents=True)
    (data / "a.nii").write_bytes(b"image")
    (data / "list.json").write_text('{"dataset": "Toy"}')
    (out / "phantom.nii").write_bytes(b"phantom")
    (out / "metrics.csv").write_text("rows")
    (out / "masks" / "a.png").write_bytes(b"mask")
    (tmp_path / "model.pt").write_bytes(b"weights")
    write_record(
        out,
        inputs=[data / "a.nii", out / "phantom.nii"],
        outputs=["metrics.csv", "masks/a.png"],
        checkpoint=tmp_path / "model.pt",
        datalist=data / "list.json",
    )
    return out


def states(path: Path, **options: str | Path) -> dict[str, str]:
    return {f"{file.kind} {Path(file.path).name}": file.state for file in verify(path, **options).files}


def test_all_bytes_agree(run):
    assert states(run) == {
        "data list list.json": "ok",
        "input a.nii": "ok",
        "input phantom.nii": "ok",
        "weights model.pt": "ok",
        "output metrics.csv": "ok",
        "output a.png": "ok",
    }
    assert verify(run / "run.json").agrees
    assert verify(run).unrecorded == ()


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("out/masks/a.png", "output a.png"),
        ("out/phantom.nii", "input phantom.nii"),
        ("data/a.nii", "input a.nii"),
        ("data/list.json", "data list list.json"),
        ("model.pt", "weights model.pt"),
    ],
)
def test_one_changed_byte_is_found(run, path, what):
    file = run.parent / path
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert [name for name, state in states(run).items() if state != "ok"] == [what]
    assert states(run)[what] == "changed"
    file.unlink()
    assert states(run)[what] == "missing"
    file.mkdir()
    assert states(run)[what] == "unreadable"


def test_folders_may_have_moved(run, tmp_path):
    moved = tmp_path / "archive" / "2026"
    shutil.move(run, moved)
    assert verify(moved).agrees
    shutil.move(tmp_path / "data", tmp_path / "disk")
    shutil.move(tmp_path / "model.pt", tmp_path / "m.pt")
    found = verify(moved)
    assert {file.path for file in found.files if file.state == "missing"} == {
        "a.nii",
        "list.json",
        str(tmp_path / "model.pt"),
    }
    assert any("--data_root" in note for note in found.notes)
    assert verify(moved, data_root=tmp_path / "disk", checkpoint=tmp_path / "m.pt").agrees


def test_files_of_other_runs_are_told(run):
    (run / "old.csv").write_text("old")
    found = verify(run)
    assert found.agrees
    assert found.unrecorded == ("old.csv",)
    assert "1 other file" in format_verification(found)


def test_other_versions_are_told_but_no_failure(run):
    record = json.loads((run / "run.json").read_text())
    record["versions"]["numpy"] = "1.0"
    record["code"] = {"commit": "0" * 40, "dirty": True}
    (run / "run.json").write_text(json.dumps(record))
    found = verify(run)
    assert found.agrees
    assert found.versions["numpy"][0] == "1.0"
    assert found.versions["commit"][0] == "0" * 40
    assert "differed from its commit" in format_verification(found)


def test_the_command_says_what_changed(run, capsys):
    main([str(run)])
    assert capsys.readouterr().out.rstrip().endswith("all 6 files agree")
    (run / "metrics.csv").write_text("more rows")
    with pytest.raises(SystemExit) as ended:
        main([str(run / "run.json")])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "changed: output metrics.csv (4 bytes then, 9 now)" in out
    assert out.rstrip().endswith("1 of 6 files does not agree")
    with pytest.raises(SystemExit):
        main([str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not found["agrees"]
    assert [file["path"] for file in found["files"] if file["state"] == "changed"] == ["metrics.csv"]


def test_a_folder_without_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"run\.json: there is no such file; name the run\.json of a run$"):
        main([str(tmp_path)])


def test_a_record_without_files_proves_nothing(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"inputs": [], "outputs": []}')
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 1
    assert "it names no file" in capsys.readouterr().out
