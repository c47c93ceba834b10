"""Tests of monai_ext.engines.scribble_training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_ext.data.manifest import DataList
from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.engines.scribble_training import (
    check_provenance,
    hold_out,
    promptable_network,
    segmentor_record,
    unlabelled_value,
)
from monai_ext.errors import UserError
from monai_ext.networks.sam import build_sam

CASES = [{"patient": "p2"}, {"patient": "p1"}, {"patient": "p2"}]


def datalist(**changes) -> DataList:
    return DataList(**{"dataset": "ACDC", "labels": {"RV": 1, "LV": 3}, "ignore": 4, "cases": [], **changes})


def weights(folder: Path, *seen: tuple[str, str]) -> Path:
    path = folder / "sam.pt"
    path.touch()
    data = [TrainingData(dataset=name, labels=labels, licence="CC0") for name, labels in seen]
    write_record(
        path,
        WeightRecord(name="sam", variant="compact", datasets=data, command="", licence="CC0", sha256=""),
    )
    return path


def test_value_of_what_is_not_scribbled_on() -> None:
    assert unlabelled_value(datalist(), simulated=False) == 4
    assert unlabelled_value(datalist(ignore=9), simulated=True) == 4  # one above the labels: dense maps hold no 9
    assert unlabelled_value(datalist(ignore=None), simulated=True) == 4


def test_only_sam_sp_needs_a_promptable_model(tmp_path) -> None:
    size = {"image_size": 64, "channels": (16, 16, 32, 32), "blocks": (1, 1, 1), "width": 32}
    torch.save(build_sam("compact", None, **size).state_dict(), tmp_path / "sam.pt")
    network = promptable_network("sam_sp", "compact", tmp_path / "sam.pt", "cpu", **size)
    assert network is not None
    assert network.image_size == 64
    assert promptable_network("pce", "compact", None, "cpu") is None


def test_sam_that_saw_the_masks_is_refused_where_it_is_used(tmp_path) -> None:
    path = weights(tmp_path, ("acdc", "dense"))
    with pytest.raises(UserError, match="dense labels of acdc"):
        check_provenance("sam_sp", path, "ACDC")
    check_provenance("sam_sp", path, "ACDC", allow_dense=True)
    check_provenance("sam_sp", path, "MSCMR")
    check_provenance("dmpls", None, "ACDC")


def test_sam_sp_star_wants_scribbles_of_another_data_set(tmp_path) -> None:
    check_provenance("sam_sp", weights(tmp_path, ("ACDC", "scribble")), "MSCMR", tuned_elsewhere=True)
    with pytest.raises(UserError, match="on scribbles of ACDC itself"):
        check_provenance("sam_sp", weights(tmp_path, ("acdc", "scribble")), "ACDC", tuned_elsewhere=True)
    with pytest.raises(UserError, match="on no scribbles"):
        check_provenance("sam_sp", weights(tmp_path, ("CHAOS", "dense")), "ACDC", tuned_elsewhere=True)


def test_cases_of_validation_patients_are_not_trained_on(tmp_path) -> None:
    cases = [{"patient": "p1", "case": 1}, {"patient": "p2", "case": 2}, {"patient": "p1", "case": 3}]
    assert hold_out(cases) == {"train": cases, "validation": []}
    assert hold_out(cases, ["p1"]) == {"train": cases[1:2], "validation": [cases[0], cases[2]]}
    assert hold_out(cases, "p2") == hold_out(cases, ["p2"])
    with pytest.raises(UserError, match="'p3' has no scribbles"):
        hold_out(cases, ["p1", "p3"])
    with pytest.raises(UserError, match="no case is left"):
        hold_out(cases, ["p1", "p2"])


def test_weights_have_seen_their_cases_and_all_that_sam_has_seen(tmp_path) -> None:
    path = weights(tmp_path, ("CHAOS_T1", "dense"))
    record = segmentor_record("model", "sam_sp", "sam_sp", datalist(), CASES, "CC0", path, simulated=True)
    assert [(d.dataset, d.patients, d.labels) for d in record.datasets] == [
        ("ACDC", ["p1", "p2"], "scribble"),
        ("CHAOS_T1", [], "dense"),
    ]
    assert "pseudo-labels began with sam" in record.notes
    assert "simulated" in record.notes
    full = segmentor_record("model", "plain", "full", datalist(), CASES, "CC0", path)
    assert [(d.dataset, d.labels) for d in full.datasets] == [("ACDC", "dense")]
