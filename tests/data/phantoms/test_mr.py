from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_ext.data.phantoms.mr import mr_slice


@pytest.mark.slow
def test_mr_slices_hold_rings():
    rng, rings = np.random.default_rng(4), 0
    for _ in range(40):
        _, label = mr_slice(rng, 128)
        for value in range(1, label.max() + 1):
            wall = label == value
            hole = ndimage.binary_fill_holes(wall) & ~wall
            rings += bool((label[hole] == value + 1).sum() > 20)
    assert rings >= 5
