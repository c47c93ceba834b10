"""Facts of the runs, and the warnings that they give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_ext.data.provenance import TrainingData, WeightRecord
from monai_ext.data.provenance import write_record as write_weight_record
from monai_ext.evaluation.record import write_record
from monai_ext.evaluation.report.provenance import provenance, provenance_warnings, training_text, weights_text
from monai_ext.evaluation.report.sources import Evaluation, read_evaluations


def rewrite(folder: Path, **options) -> Evaluation:
    """Record a folder again, with these options, as a clean commit."""
    write_record(folder, **options)
    record = json.loads((folder / "run.json").read_text())
    record["code"] = {"commit": "c0ffee", "dirty": False}
    (folder / "run.json").write_text(json.dumps(record))
    return read_evaluations([folder])[0]


def facts(evaluations: list[Evaluation]) -> dict[str, tuple[str, ...]]:
    return {fact.name: fact.cells for fact in provenance(evaluations).facts}


def weights(path: Path, patients: list[str], dataset: str = "toy") -> Path:
    path.write_bytes(b"weights")
    data = [
        TrainingData(dataset=dataset, patients=patients, labels="dense", licence="CC BY 4.0"),
        TrainingData(dataset="phantoms", labels="none", licence="Apache-2.0"),
    ]
    fields = {"variant": "compact", "datasets": data, "command": "train", "licence": "CC BY 4.0", "sha256": "0"}
    write_weight_record(path, WeightRecord(name=path.stem, **fields))
    return path


def test_weights_say_what_they_have_seen(outputs, tmp_path):
    checkpoint = weights(tmp_path / "small.pt", ["p8", "p9"])
    found = rewrite(outputs("ours"), checkpoint=checkpoint)
    assert weights_text(found) == "small (compact)"
    assert training_text(found) == "toy (2 patients, dense labels); phantoms (no labels)"
    told = facts([found])
    assert told["Weights’ licence"] == ("CC BY 4.0",)
    assert told["Of these evaluated"] == ("none",)
    assert list(provenance_warnings([found])) == []


def test_weights_that_have_seen_test_patients_are_warned_about(outputs, tmp_path):
    found = rewrite(outputs("ours"), checkpoint=weights(tmp_path / "small.pt", ["p1", "p2", "p77"], dataset="TOY"))
    assert list(provenance_warnings([found])) == ["ours: the weights have seen 2 patients of this evaluation"]
    assert facts([found])["Of these evaluated"] == ("p1, p2",)


def test_an_absent_record_is_warned_about(outputs):
    (found,) = read_evaluations([outputs("ours", record=False)])
    assert list(provenance_warnings([found])) == ["ours: there is no run.json, so nothing is known of the run"]
    assert (weights_text(found), training_text(found)) == ("not stated", "not stated")
    assert provenance([found]).commands == ()


def test_a_table_changed_after_its_run_is_warned_about(outputs):
    folder = outputs("ours")
    rewrite(folder)
    assert list(provenance_warnings(read_evaluations([folder]))) == []
    rows = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join([rows[0], *rows[:0:-1]]) + "\n")
    (folder / "summary.json").unlink()
    assert list(provenance_warnings(read_evaluations([folder]))) == [
        "ours: metrics.csv has changed since its run was recorded"
    ]


def test_code_that_no_commit_holds_is_warned_about(outputs):
    folder = outputs("ours")
    rewrite(folder)
    record = json.loads((folder / "run.json").read_text())
    record["code"]["dirty"] = True
    (folder / "run.json").write_text(json.dumps(record))
    (found,) = read_evaluations([folder])
    assert list(provenance_warnings([found])) == ["ours: the code of the run differed from its commit"]
    assert facts([found])["Commit"] == ("c0ffee with changes",)


@pytest.mark.slow
def test_methods_that_read_other_bytes_are_warned_about(outputs, tmp_path):
    image = tmp_path / "data" / "a.nii"
    image.parent.mkdir()
    found = []
    for name in ("ours", "other"):
        image.write_text(f"image of {name}")
        found.append(rewrite(outputs(name), inputs=[image], data_root=image.parent))
    assert list(provenance_warnings(found)) == ["other and ours have read different bytes of a.nii"]


@pytest.mark.slow
def test_what_methods_share_is_said_once(outputs):
    one = rewrite(outputs("ours"), seed=3, config={"n_pos": 1, "labels": {"RV": 1}})
    other = rewrite(outputs("other"), seed=3, config={"n_pos": 2, "labels": {"RV": 1}, "extra": None})
    found = provenance([one, other])
    assert {fact.name: fact.common for fact in found.facts}["Seed"] == "3"
    assert [(fact.name, fact.cells, fact.common) for fact in found.options] == [
        ("n_pos", ("1", "2"), None),
        ("labels", ("RV 1", "RV 1"), "RV 1"),
        ("extra", ("–", "–"), "–"),
    ]


def test_folders_of_one_machine_are_not_told(outputs, tmp_path):
    folder = outputs("ours")
    (tmp_path / "data").mkdir()
    rewrite(folder, data_root=tmp_path / "data", config={"datalist": tmp_path / "data" / "list.json"})
    record = json.loads((folder / "run.json").read_text())
    record["command"] = f"python -m x --data_root {tmp_path}/data --output_dir {folder}"
    (folder / "run.json").write_text(json.dumps(record))
    found = provenance(read_evaluations([folder]))
    assert found.commands == (("ours", "python -m x --data_root DATA --output_dir OUT"),)
    assert str(tmp_path) not in repr(found)
