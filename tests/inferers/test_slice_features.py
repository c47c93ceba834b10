from __future__ import annotations

import math

import pytest
import torch

from monai_ext.inferers.reference import Reference
from monai_ext.inferers.slice_features import dice, mask_features, spread


def volume(*areas: int) -> torch.Tensor:
    """Logits [4, 10, D]: so many pixels of each slice are in the mask."""
    logits = torch.full((4, 10, len(areas)), -20.0)
    for k, area in enumerate(areas):
        flat = logits[..., k].reshape(-1)
        flat[:area] = 20.0
        logits[..., k] = flat.reshape(4, 10)
    return logits


@pytest.fixture
def reference(make_image) -> Reference:
    label = torch.zeros(1, 4, 10, 1, dtype=torch.int64)
    label[0, 0, :, 0] = 2
    return Reference(make_image(1, (4, 10, 1)), label)


def test_features_of_a_mask(reference):
    found = mask_features(volume(10, 5, 0), 2, 1, [reference], [[0, 0, None]])
    assert found["area_change"] == pytest.approx(math.log(11 / 6))
    assert found["shift"] == pytest.approx(1 - 10 / 15)
    assert found["jump"] == pytest.approx(1 - 10 / 15)
    assert found["certainty"] == pytest.approx(1)


def test_what_is_not_defined_is_none(reference):
    found = mask_features(volume(5), 2, 0, [reference], [[None]])
    assert (found["area_change"], found["shift"], found["jump"]) == (None, None, None)


def test_spread_is_the_mean_disagreement_with_the_others():
    masks = (volume(10, 10, 5) > 0).permute(2, 0, 1)
    assert spread(masks, 0) == pytest.approx((0 + 1 / 3) / 2)
    assert spread(masks[:1], 0) is None
    assert dice(masks[0] & False, masks[0] & False) == 1
