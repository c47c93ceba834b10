"""Tests of monai_ext.prompts.boxes."""

from __future__ import annotations

import numpy as np
import torch

from monai_ext.prompts.boxes import tight_box


def test_box_is_the_extent_of_the_nonzero_pixels() -> None:
    mask = torch.rand(9, 14, generator=torch.Generator().manual_seed(0)) > 0.95
    rows, columns = np.nonzero(mask.numpy())
    assert tight_box(mask).tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_single_pixel_has_a_box_without_extent() -> None:
    mask = torch.zeros(5, 8, dtype=torch.bool)
    mask[2, 6] = True
    assert tight_box(mask).tolist() == [6, 2, 6, 2]


def test_empty_mask_has_no_box() -> None:
    assert tight_box(torch.zeros(4, 4, dtype=torch.bool)) is None
