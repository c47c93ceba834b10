from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from monai_ext.data.provenance import (
    OFFICIAL_WEIGHTS,
    TrainingData,
    WeightRecord,
    as_trained,
    check_overlap,
    read_record,
    refuse_dense_labels,
    verify_sha256,
    write_record,
)
from monai_ext.errors import UserError
from monai_ext.networks.sam import CHECKPOINTS

RECORD = WeightRecord(
    name="compact_acdc",
    variant="compact",
    datasets=[
        TrainingData(dataset="ACDC", patients=["p1", "p2", "p3"], labels="dense", licence="CC BY-NC-SA 4.0"),
        TrainingData(dataset="phantoms", labels="dense", licence="Apache-2.0"),
    ],
    command="make train",
    licence="CC BY-NC-SA 4.0",
    sha256="0" * 64,
)


def test_record_lies_beside_its_checkpoint(tmp_path: Path) -> None:
    write_record(tmp_path / "model.v1.pt", RECORD)
    assert read_record(tmp_path / "model.v1.pt") == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["model.v1.json"]
    assert read_record(tmp_path / "other.pt") is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": 3}, "name: input should be a valid string"),
        ({"licence": None}, "licence: "),
        ({"trained": 1}, "trained: extra inputs"),
        (
            {"datasets": [{"dataset": "A", "labels": "some", "licence": ""}]},
            "datasets.0.labels: input should be",
        ),
    ],
)
def test_record_that_is_not_usable(tmp_path: Path, change: dict[str, object], match: str) -> None:
    (tmp_path / "model.json").write_text(json.dumps(RECORD.model_dump() | change))
    with pytest.raises(UserError, match=rf"model\.json: {match}"):
        read_record(tmp_path / "model.pt")


def test_record_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(b"{\xff")
    with pytest.raises(UserError, match=r"model\.json: the file: "):
        read_record(tmp_path / "model.pt")


def test_options_are_those_of_the_record(tmp_path: Path) -> None:
    write_record(tmp_path / "model.pt", RECORD.model_copy(update={"trained_as": {"image_size": 128}}))
    assert as_trained(tmp_path / "model.pt", "image_size", 256) == 128
    assert as_trained(tmp_path / "model.pt", "slice_size", 256) == 256
    assert as_trained(tmp_path / "model.pt", "architecture", "sam_sp") == "compact"
    assert as_trained(tmp_path / "other.pt", "image_size", 256) == 256


def test_overlap_is_named_and_refused() -> None:
    with pytest.raises(UserError, match=r"'compact_acdc' were trained on 2 of the acdc patients .*\(p1, p3\)"):
        check_overlap(RECORD, "acdc", ["p9", "p3", "p1"])
    assert check_overlap(RECORD, "ACDC", ["p9", "p3", "p1"], allow_overlap=True) == ["p1", "p3"]


def test_no_overlap_with_other_patients_or_data_sets() -> None:
    assert check_overlap(RECORD, "ACDC", ["p4"]) == []
    assert check_overlap(RECORD, "MSCMR", ["p1"]) == []
    assert check_overlap(None, "ACDC", ["p1"]) == []


def test_two_sequences_of_the_same_patients_overlap() -> None:
    seen = TrainingData(dataset="CHAOS_T2", patients=["chaos01"], labels="dense", licence="CC BY-NC-SA 4.0")
    record = RECORD.model_copy(update={"datasets": [seen]})
    assert check_overlap(record, "CHAOS_T1", ["chaos01", "chaos02"], allow_overlap=True) == ["chaos01"]
    assert check_overlap(record, "ACDC", ["chaos01"]) == []


def test_patients_under_other_names_count_as_trained_on() -> None:
    seen = TrainingData(dataset="MS_CMRSeg", patients=["mscmrseg01"], labels="dense", licence="none")
    record = RECORD.model_copy(update={"datasets": [seen]})
    with pytest.raises(UserError, match="patients of MS_CMRSeg, who are those of MSCMR under other names"):
        check_overlap(record, "MSCMR", ["subject13"])
    assert check_overlap(record, "MSCMR", ["subject13"], allow_overlap=True) == ["subject13"]
    assert check_overlap(record, "MS_CMRSeg", ["mscmrseg02"]) == []
    with pytest.raises(UserError, match="dense labels of MS_CMRSeg"):
        refuse_dense_labels(record, "MSCMR")


def test_a_checksum_is_verified(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5
    (tmp_path / "model.pt").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    verify_sha256(tmp_path / "model.pt", expected.upper())
    with pytest.raises(UserError, match=rf"model\.pt: the sha256 is {expected}, not 00ff"):
        verify_sha256(tmp_path / "model.pt", "00ff")
    with pytest.raises(UserError, match=r"missing\.pt: cannot be read"):
        verify_sha256(tmp_path / "missing.pt", expected)


def test_official_weights_are_those_that_are_fetched() -> None:
    known = {record.variant: sha256 for sha256, record in OFFICIAL_WEIGHTS.items()}
    assert known == {variant: sha256 for variant, (_, sha256) in CHECKPOINTS.items()}


@pytest.mark.parametrize(
    ("dataset", "labels", "refused"), [("acdc", "dense", True), ("acdc", "scribble", False), ("MSCMR", "dense", False)]
)
def test_weights_that_saw_dense_labels_of_the_scribbled_data_set_are_refused(dataset, labels, refused) -> None:
    record = WeightRecord(
        name="w",
        variant="compact",
        datasets=[TrainingData(dataset=dataset, labels=labels, licence="CC0")],
        command="",
        licence="CC0",
        sha256="",
    )
    refuse_dense_labels(record, "ACDC", allow=True)
    refuse_dense_labels(None, "ACDC")
    if refused:
        with pytest.raises(UserError, match="'w' were trained on dense labels of acdc"):
            refuse_dense_labels(record, "ACDC")
    else:
        refuse_dense_labels(record, "ACDC")
