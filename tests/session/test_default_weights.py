from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monai_ext import session
from monai_ext.data.manifest import DataList
from monai_ext.data.provenance import Serves, WeightRecord, read_record, write_record
from monai_ext.errors import UserError

SHIPPED = Path(__file__).parents[2] / "bundles" / "p2sam" / "models"


def weights(models: Path, name: str, variant: str = "compact", **serves: Any) -> None:
    torch.save({}, models / f"{name}.pt")
    known = Serves(**serves) if serves else None
    record = WeightRecord(name=name, variant=variant, datasets=[], command="", licence="CC0", sha256="", serves=known)
    write_record(models / f"{name}.pt", record)


@pytest.fixture
def models(tmp_path) -> Path:
    weights(tmp_path, "heart", modalities=["MR"], structures=["LV", "left ventricle", "heart"])
    weights(tmp_path, "belly", modalities=["MR"], structures=["liver", "kidney"])
    weights(tmp_path, "general", variant="compact_lite", modalities=[], structures=[])
    weights(tmp_path, "silent")
    torch.save({}, tmp_path / "unknown.pt")
    return tmp_path


def chosen(models: Path, modality: str | None, *labels: str, own: str | None = None, variant: str | None = None) -> str:
    case = {"case": "a", "image": "a.nii.gz", "modality": own}
    names = {name: value for value, name in enumerate(labels, start=1)}
    content = {"dataset": "D", "modality": modality, "labels": names, "cases": [case]}
    return session.choose_weights(models, DataList.model_validate(content), variant).stem


@pytest.mark.parametrize(
    ("modality", "labels", "name"),
    [
        ("MR", ["LV"], "heart"),
        ("mr", ["lv_cavity", "wall"], "heart"),
        ("T2 MR", ["Left-Ventricle"], "heart"),
        ("MR", ["leftVentricle"], "heart"),
        ("MR", ["left_kidney", "right_kidney"], "belly"),
        ("MR", ["liver tumour", "LV", "right kidney"], "belly"),
        ("MR", ["liver", "LV"], "general"),  # as much of the one as of the other
        ("MR", ["lesion"], "general"),
        ("MR", ["LVX", "kidneystone"], "general"),  # parts of words
        ("CT", ["LV"], "general"),
        ("MRCP", ["liver"], "general"),
        (None, ["liver"], "general"),
        ("endoscopy", ["polyp"], "general"),
    ],
)
def test_weights_are_chosen_by_modality_and_structures(models, modality, labels, name) -> None:
    assert chosen(models, modality, *labels) == name


def test_modality_of_a_case_goes_before_that_of_the_list(models) -> None:
    assert chosen(models, "MR", "LV", own="CT") == "general"
    assert chosen(models, "CT", "LV", own="MR") == "heart"


def test_only_weights_of_the_variant_count(models) -> None:
    assert chosen(models, "MR", "LV", variant="compact_lite") == "general"
    with pytest.raises(UserError, match=r"no weights .* serve CT with LV: name weights with --checkpoint \(belly"):
        chosen(models, "CT", "LV", variant="compact")


def test_a_link_to_weights_is_not_weights_of_its_own(models) -> None:
    (models / "model.pt").symlink_to("heart.pt")
    (models / "model.json").symlink_to("heart.json")
    assert chosen(models, "MR", "LV") == "heart"


@pytest.mark.parametrize(
    ("modality", "labels", "name"),
    [
        ("MR", ["RV", "MYO", "LV"], "compact_acdc"),
        ("MR", ["left atrium"], "compact_acdc"),
        ("MR", ["liver", "right_kidney", "left_kidney", "spleen"], "compact_chaos"),
        ("CT", ["liver", "spleen"], "compact_open"),
        ("MR", ["tumour"], "compact_open"),
        ("CT", ["tumour"], "compact_open"),
        ("US", ["lesion"], "compact_open"),
        ("endoscopy", ["polyp"], "compact_open"),
    ],
)
def test_shipped_weights(modality, labels, name) -> None:
    assert chosen(SHIPPED, modality, *labels) == name


def test_records_of_shipped_weights_name_their_network() -> None:
    variants = {p.stem: read_record(p).variant for p in SHIPPED.glob("compact_*.pt")}
    known = {"compact_acdc": "compact", "compact_chaos": "compact", "compact_open": "compact_lite"}
    assert variants == {name: known[name] for name in variants}
    assert {"compact_acdc", "compact_chaos"} <= set(variants)


def test_weights_out_of_range_are_named_in_one_line(models, capsys):
    def note(modality: str, *labels: str, name: str = "heart") -> str:
        names = {name: value for value, name in enumerate(labels, start=1)}
        case = {"case": "a", "image": "a.nii.gz"}
        content = {"dataset": "D", "modality": modality, "labels": names, "cases": [case]}
        return session.scope_note(models / f"{name}.pt", DataList.model_validate(content))

    assert note("MR", "LV") == ""
    assert capsys.readouterr().err == ""
    assert note("CT", "lung", "LV") == "out of range: heart has not seen CT, lung"
    assert "note: out of range: heart has not seen CT, lung" in capsys.readouterr().err
    assert note("CT", "lung", name="general") == note("CT", "lung", name="unknown") == ""
