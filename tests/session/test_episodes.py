"""Structures and patients that learned prompts are not tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.errors import UserError
from monai_ext.session.episodes import choose_classes, refuse_trained

KNOWN = ["liver", "spleen", "kidney"]


@pytest.fixture
def prompts(tmp_path) -> Path:
    seen = TrainingData(dataset="Toy", patients=["c"], labels="dense", licence="none")
    fields = {"name": "w", "variant": "v", "command": "none", "licence": "none", "sha256": ""}
    record = WeightRecord(datasets=[seen], trained_as={"classes": ["Liver", "spleen"]}, **fields)
    write_record(tmp_path / "prompts.pt", record)
    return tmp_path / "prompts.pt"


def test_novel_classes_are_the_default(prompts):
    assert choose_classes(prompts, KNOWN) == ["kidney"]
    assert choose_classes(prompts, KNOWN, allow_trained=True) == KNOWN
    assert choose_classes(prompts, KNOWN, "kidney") == ["kidney"]
    with pytest.raises(UserError, match=r"learned from all structures .*--novel"):
        choose_classes(prompts, KNOWN[:2])


def test_unknown_and_known_classes_are_refused(prompts):
    with pytest.raises(UserError, match="class 'heart' is in no data list: they have liver, spleen, kidney"):
        choose_classes(prompts, KNOWN, ["heart"])
    with pytest.raises(UserError, match="liver is among the classes"):
        choose_classes(prompts, KNOWN, ["kidney", "liver"])
    assert choose_classes(prompts, KNOWN, ["liver"], allow_trained=True) == ["liver"]


def test_patients_of_the_training_are_refused(prompts):
    items = [{"dataset": "toy", "patient": name} for name in "abc"]
    with pytest.raises(UserError, match="c of toy are patients that"):
        refuse_trained(prompts, items)
    refuse_trained(prompts, items, allow=True)
    refuse_trained(prompts, items[:2])
    refuse_trained(prompts, [{"dataset": "Other", "patient": "c"}])
