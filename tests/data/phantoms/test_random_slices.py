from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_ext.data.phantoms import random_slice

KINDS = ("mr", "ct", "rgb")


@pytest.mark.parametrize(("kind", "channels"), [("mr", 1), ("ct", 1), ("rgb", 3)])
def test_slice_is_a_float_image_of_0_to_255(kind, channels):
    rng = np.random.default_rng(0)
    for size in (64, 100, 256):
        image, label = random_slice(rng, size, kind)
        assert image.shape == (channels, size, size)
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 255
        assert image.std() > 5
        assert label.shape == (size, size)
        assert label.dtype == np.int64


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 128])
def test_every_slice_has_consecutive_labels_and_a_structure(kind, size):
    rng = np.random.default_rng(1)
    for _ in range(60):
        _, label = random_slice(rng, size, kind)
        pixels = np.bincount(label.ravel())[1:]
        assert 1 <= len(pixels) <= 4
        assert (pixels > 20).all()
        assert pixels.max() <= 0.3 * label.size


@pytest.mark.parametrize("kind", KINDS)
def test_slice_depends_on_the_generator_alone(kind):
    first, again = (random_slice(np.random.default_rng(7), 96, kind) for _ in range(2))
    other = random_slice(np.random.default_rng(8), 96, kind)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_structures_are_seen_in_the_image(kind):
    rng, seen = np.random.default_rng(2), []
    for _ in range(40):
        image, label = random_slice(rng, 128, kind)
        for value in range(1, label.max() + 1):
            inside = label == value
            around = ndimage.binary_dilation(inside, iterations=3) & ~inside
            difference = image[:, inside].mean(axis=1) - image[:, around].mean(axis=1)
            seen.append(np.abs(difference).max() > 5)
    assert np.mean(seen) > 0.75


def test_slice_refuses_an_unknown_kind_and_a_tiny_size():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'us'"):
        random_slice(rng, 64, "us")
    with pytest.raises(ValueError, match="64 pixels"):
        random_slice(rng, 16, "mr")
