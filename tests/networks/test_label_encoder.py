"""Tests of monai_ext.networks.label_encoder."""

from __future__ import annotations

import torch

from monai_ext.networks.label_encoder import LabelEncoder


def test_number_of_parameters() -> None:
    assert sum(p.numel() for p in LabelEncoder().parameters()) == 978_400


def test_masks_become_features_of_the_trunks_grid() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(2, 1, 64, 64)
    masks[1, :, 8:24, 8:24] = 1
    with torch.no_grad():
        features = LabelEncoder(16)(masks)
    assert features.shape == (2, 16, 8, 8)
    assert not torch.allclose(features[0], features[1])
