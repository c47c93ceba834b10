"""Tests of monai_ext.engines.rounds; whole rounds, kills and early ends: tests/bundles/test_sam_sp_training.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_ext.data.provenance import WeightRecord
from monai_ext.data.scribble_slices import ScribbleDataset
from monai_ext.engines.rounds import AlternatingRounds
from monai_ext.engines.segmentor import SegmentorIteration, SegmentorTraining
from monai_ext.errors import UserError
from monai_ext.handlers.training import stage_handlers
from monai_ext.networks.dual_branch_unet import build_segmentor
from tests.stored_cases import stored_case

RECORD = WeightRecord(name="model", variant="plain", datasets=[], command="", licence="CC0", sha256="")


def rounds(folder: Path, variant: str = "pce", has_label: bool = True, **options: Any) -> AlternatingRounds:
    slices = np.ones((2, 16, 16), np.uint8)
    masks = {"scribble": slices, "label": slices} if has_label else {"scribble": slices}
    dataset = ScribbleDataset([stored_case(folder, slices, **masks)], 16)
    network = build_segmentor(2, "plain")
    training = SegmentorTraining(network, SegmentorIteration(variant), stage_handlers, iterations=1, batch_size=2)
    return AlternatingRounds(folder, dataset, {"x": 1}, training, RECORD, **options)


@pytest.mark.slow
def test_what_is_there_is_not_made_again(tmp_path) -> None:
    rounds(tmp_path).run()
    files = ["model.json", "model.pt", "round_0/segmentor.json", "round_0/segmentor.pt"]
    before = {name: (tmp_path / name).read_bytes() for name in files}
    assert not (tmp_path / "round_0" / "segmentor" / "checkpoint.pt").exists()
    made = (tmp_path / "round_0" / "segmentor.pt").stat().st_mtime_ns
    rounds(tmp_path).run()
    assert (tmp_path / "round_0" / "segmentor.pt").stat().st_mtime_ns == made
    assert {name: (tmp_path / name).read_bytes() for name in files} == before


def test_full_masks_need_dense_labels_and_rounds_a_number(tmp_path) -> None:
    (tmp_path / "without").mkdir()
    with pytest.raises(UserError, match="case a has no 'label'"):
        rounds(tmp_path / "without", "full", has_label=False).run()
    with pytest.raises(UserError, match="--rounds is -1"):
        rounds(tmp_path, rounds=-1)
    rounds(tmp_path, "full").run()
