from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_ext.inferers.cycle import cycle_dice
from monai_ext.inferers.p2sam import P2SamInferer
from monai_ext.inferers.reference import Reference
from monai_ext.inferers.reference_inferer import MatchedSlice, SliceResult

SIZE = (40, 64)
LABELS = {"lesion": 3, "organ": 5}


@pytest.fixture
def reference(make_image, disc) -> tuple[MetaTensor, np.ndarray]:
    label = np.stack([disc(SIZE, (14, 20), 6)] * 2, axis=-1) * 3
    label[..., 1] = np.where(disc(SIZE, (30, 45), 5), 5, label[..., 1])
    return make_image(1, (*SIZE, 2)), label


def test_what_comes_back_is_compared_with_the_annotation(make_image, reference, tiny_network):
    image, label = reference
    there = Reference(image, torch.as_tensor(label)[None])
    logits = torch.full((2, *SIZE, 2), -20.0)
    logits[0, 10:20, 10:30] = 1.0
    logits[1, 15:25, 10:30] = 2.0  # goes before the lesion where they overlap
    seen = []

    def segment(network, target, matched):
        seen.append((target.index, matched[0].index, matched[0].label.unique().tolist()))
        truth = there.label[0, ..., target.index] == 3
        return [SliceResult(torch.where(truth, 1.0, -1.0), "ok", {}), SliceResult(None, "no_foreground", {})]

    served = {0: [MatchedSlice(there, 1)], 1: [MatchedSlice(there, 0)]}
    found = cycle_dice(segment, tiny_network(0), make_image(2, (*SIZE, 2)), logits, [3, 5], served)
    assert found == {(0, 0): 1.0, (1, 0): 0.0, (0, 1): 1.0}  # the organ is on slice 1 of the reference alone
    assert seen == [(1, 0, [0, 3, 5]), (0, 1, [0, 3, 5])]


@pytest.mark.slow
def test_the_cycle_is_a_feature_and_changes_no_mask(tiny_network, make_image, make_loader, reference):
    network, image = tiny_network(0), make_image(2, (*SIZE, 2))
    masks, rows = [], []
    for check in (False, True):
        inferer = P2SamInferer(LABELS, make_loader({"a": reference}, LABELS), place="prior", cycle_check=check)
        found = [inferer.segment_case(image[None], network, "a", "a", self_check=False) for _ in range(2)]
        masks += [logits.as_tensor() for logits, _ in found]
        rows.append(found[-1][1].rows)
    assert all(torch.equal(masks[0], mask) for mask in masks)
    assert all("cycle" not in row["features"] for row in rows[0] if "features" in row)
    cycles = [row["features"]["cycle"] for row in rows[1] if "features" in row]
    assert cycles
    assert all(0 <= cycle <= 1 for cycle in cycles)


def test_a_perfect_copy_of_the_visit_comes_back_as_the_self_check_does(tiny_network, make_image, make_loader, disc):
    label = np.stack([disc(SIZE, (14, 20), 6)], axis=-1)
    image, network = make_image(1, (*SIZE, 1)), tiny_network(0)
    inferer = P2SamInferer({"lesion": 1}, make_loader({"a": (image, label)}, {"lesion": 1}), cycle_check=True)
    there = Reference(image, torch.as_tensor(label)[None])
    own = inferer.check_reference(network, there)["lesion"]
    logits = torch.where(torch.as_tensor(label == 1), 5.0, -5.0)[None]
    found = cycle_dice(inferer.segment_slice, network, image, logits, [1], {0: [MatchedSlice(there, 0)]})
    assert found[0, 0] == pytest.approx(own, abs=1e-6)
