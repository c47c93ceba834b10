"""Tests of monai_ext.engines.held_out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_ext.data.scribble_slices import ScribbleDataset
from monai_ext.data.slice_store import IGNORE
from monai_ext.engines.held_out import HeldOutSelection, read_score
from monai_ext.errors import UserError
from tests.stored_cases import stored_case


class Threshold(nn.Module):
    """Finds the structure where a pixel is brighter than the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([self.weight - image, image - self.weight], dim=1)


@pytest.fixture
def selection(tmp_path) -> HeldOutSelection:
    """A slice whose scribbles ask for a threshold between 100 and 200, and one without a scribble."""
    image = np.zeros((2, 8, 8), np.uint8)
    image[0, 2], image[0, 5] = 200, 100
    scribble = np.full_like(image, IGNORE)
    scribble[0, 2, 1:5], scribble[0, 5, 1:5] = 1, 0
    dataset = ScribbleDataset([stored_case(tmp_path, image, scribble=scribble)], 8)
    return HeldOutSelection(Threshold(), dataset, lambda network, images: network(images), batch_size=1)


def set_threshold(selection: HeldOutSelection, value: float) -> None:
    with torch.no_grad():
        selection.network.weight.fill_(value / 255)


def test_the_epoch_that_agrees_best_with_the_scribbles_is_kept(selection, tmp_path) -> None:
    assert len(selection.items) == 1
    for threshold in (220, 150, 160, 50):  # misses the structure; right; right, too; all is structure
        set_threshold(selection, threshold)
        selection.update()
    assert selection.scores == pytest.approx([1 / 3, 1, 1, 1 / 3])
    selection.finish(tmp_path, epoch_length=100)
    assert selection.network.weight.item() == pytest.approx(150 / 255)
    assert read_score(tmp_path) == 1
    assert json.loads((tmp_path / "held_out.json").read_text())["iteration"] == 200


def test_it_goes_on_from_a_checkpoint(selection, tmp_path) -> None:
    set_threshold(selection, 150)
    selection.update()
    torch.save(selection.state_dict(), tmp_path / "state.pt")
    selection.scores, selection.best = [], {}
    selection.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    set_threshold(selection, 50)
    selection.update()
    selection.finish(tmp_path, 10)
    assert selection.network.weight.item() == pytest.approx(150 / 255)


def test_patients_without_a_scribble_cannot_choose(tmp_path) -> None:
    image = np.zeros((1, 8, 8), np.uint8)
    dataset = ScribbleDataset([stored_case(tmp_path, image, scribble=np.full_like(image, IGNORE))], 8)
    with pytest.raises(UserError, match="no slice that is scribbled on"):
        HeldOutSelection(Threshold(), dataset, lambda network, images: network(images))
