from __future__ import annotations

import numpy as np
import pytest

from monai_ext.grey_values import factor_to_8_bits

PICTURE = np.random.default_rng(0).integers(0, 201, (9, 7)).astype(np.uint8)


@pytest.mark.parametrize(
    ("stored", "factor"),
    [
        (PICTURE, 1),
        (PICTURE // 100, 1),  # a dark picture of 8 bits stays dark
        (PICTURE.astype(np.int32), 1),
        (PICTURE.astype(np.uint16) * 257, 1 / 257),
        (PICTURE.astype(np.uint16) * 256, 1 / 256),
        (PICTURE / np.float32(255), 255),
        (PICTURE / np.float32(190) - 0.02, 255),  # an interpolation overshoots
        (PICTURE.astype(np.float32) + 0.5, 1),
        (PICTURE > 100, 1),
    ],
)
def test_type_and_values_say_what_is_white(stored, factor):
    assert factor_to_8_bits(stored, stored.dtype.kind == "f") == factor


@pytest.mark.parametrize(
    "stored",
    [
        np.arange(0, 4000, 13, np.uint16),  # 12 bits
        np.arange(-1000, 1000, dtype=np.int32),  # Hounsfield units
        np.linspace(0, 12.3, 50, dtype=np.float32),  # an uptake
        np.linspace(-1, 1, 50, dtype=np.float32),
        np.linspace(0, 0.01, 50, dtype=np.float32),
        np.linspace(0, 60000, 50, dtype=np.float32),
    ],
)
def test_other_values_do_not_say_it(stored):
    assert factor_to_8_bits(stored, stored.dtype.kind == "f") is None
