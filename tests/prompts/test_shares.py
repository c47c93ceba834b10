from __future__ import annotations

import pytest
import torch

from monai_ext.prompts.shares import covered_share, touched_cells


def test_each_cell_is_the_mean_of_its_pixels_and_padding_counts_as_none():
    mask = torch.rand(2, 10, 16, generator=torch.Generator().manual_seed(0)) > 0.9
    shares, touched = covered_share(mask, 4, (4, 4)), touched_cells(mask, 4, (4, 4))
    for k in range(2):
        for i in range(4):
            for j in range(4):
                count = int(mask[k, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].sum())
                assert float(shares[k, i, j]) == pytest.approx(count / 16)
                assert bool(touched[k, i, j]) == (count > 0)


def test_a_mask_beyond_the_grid_is_refused():
    with pytest.raises(ValueError, match="10 x 20 masks exceed 4 x 4 cells of 4 pixels"):
        covered_share(torch.ones(1, 10, 20), 4, (4, 4))
