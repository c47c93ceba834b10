from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from monai.data import MetaTensor

from monai_ext.errors import UserError
from monai_ext.transforms.labels import MergeLabelsd


def merged_slowly(logits: np.ndarray, values: list[int]) -> np.ndarray:
    mask = np.zeros((1, *logits.shape[1:]), dtype=int)
    for index in np.ndindex(*logits.shape[1:]):
        best = 0.0
        for value, logit in zip(values, logits[(slice(None), *index)], strict=True):
            if logit > best:
                best, mask[(0, *index)] = logit, value
    return mask


@settings(max_examples=50, deadline=None)
@given(npst.arrays(np.float32, (3, 4, 3, 2), elements=st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0])))
def test_largest_positive_logit_wins(logits):
    values = [7, 255, 1]
    mask = MergeLabelsd(keys="pred", values=values)({"pred": torch.as_tensor(logits)})["pred"]
    assert np.array_equal(mask, merged_slowly(logits, values))


def test_rounding_does_not_choose_among_equal_labels():
    noise = 1e-4 * torch.rand(2, 40, generator=torch.Generator().manual_seed(0))
    mask = MergeLabelsd(keys="pred", values=[7, 3])({"pred": 2 + noise})["pred"]
    assert set(mask.flatten().tolist()) == {7}


def test_overlapping_labels_stay_apart():
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.0], [3.0, -2.0, -1.0, 0.5]])
    both = MergeLabelsd(keys="pred", values=[1, 2], overlap=True)({"pred": logits})["pred"]
    assert both.dtype == torch.uint8
    assert both.tolist() == [[1, 1, 0, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize("overlap", [False, True])
def test_meta_is_kept(overlap):
    affine = torch.diag(torch.tensor([2.0, 2, 3, 1], dtype=torch.float64))
    pred = MetaTensor(torch.randn(2, 4, 4, 3), affine=affine, meta={"filename_or_obj": "a"})
    mask = MergeLabelsd(keys="pred", values=[1, 2], overlap=overlap)({"pred": pred})["pred"]
    assert torch.equal(mask.affine, affine)
    assert mask.meta["filename_or_obj"] == "a"


@pytest.mark.parametrize("values", [[], [0, 1], [2, 2]])
def test_values_must_tell_the_labels_apart(values):
    with pytest.raises(UserError, match="distinct"):
        MergeLabelsd(keys="pred", values=values)


def test_channels_must_be_the_labels():
    with pytest.raises(UserError, match=r"3 channels, .* 2 values"):
        MergeLabelsd(keys="pred", values=[1, 2])({"pred": torch.zeros(3, 2, 2)})
