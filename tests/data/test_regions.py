"""Tests of monai_ext.data.regions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_ext.data.phantoms import random_slice
from monai_ext.data.regions import MOST_REGIONS, draw_regions


def discs() -> tuple[np.ndarray, np.ndarray]:
    """A grey body on black with a bright and a dark disc: image [1, 96, 96], the true pieces [96, 96]."""
    y, x = np.mgrid[:96, :96]
    truth = np.zeros((96, 96), int)
    truth[(x - 48) ** 2 + (y - 48) ** 2 < 42**2] = 1
    truth[(x - 34) ** 2 + (y - 48) ** 2 < 9**2] = 2
    truth[(x - 62) ** 2 + (y - 44) ** 2 < 11**2] = 3
    grey = np.array([0, 120, 220, 60])[truth] + np.random.default_rng(0).normal(0, 3, truth.shape)
    return grey[None].clip(0, 255), truth


def test_some_draw_finds_each_disc() -> None:
    image, truth = discs()
    rng = np.random.default_rng(0)
    best = {2: 0.0, 3: 0.0}
    for _ in range(30):
        regions = draw_regions(image, rng, largest=0.5)
        for value in best:
            disc = truth == value
            for number in range(1, int(regions.max()) + 1):
                region = regions == number
                best[value] = max(best[value], 2 * (region & disc).sum() / (region.sum() + disc.sum()))
    assert min(best.values()) > 0.9


@pytest.mark.parametrize("kind", ["mr", "rgb"])
def test_regions_are_numbered_and_of_a_fitting_size(kind: str) -> None:
    rng = np.random.default_rng(1)
    image, _ = random_slice(rng, 96, kind)
    for _ in range(10):
        regions = draw_regions(image, rng, smallest=0.001, largest=0.2)
        areas = np.bincount(regions.ravel())[1:]
        assert regions.shape == (96, 96)
        assert len(areas) <= MOST_REGIONS
        assert (areas >= 0.001 * 96 * 96).all()
        assert (areas <= 0.2 * 96 * 96).all()
        inner = [ndimage.binary_erosion(regions == n + 1, np.ones((3, 3)), border_value=1) for n in range(len(areas))]
        assert all(mask.any() for mask in inner)


def test_no_region_is_background_in_the_main() -> None:
    image, _ = discs()
    rng = np.random.default_rng(2)
    for _ in range(10):
        regions = draw_regions(image, rng, largest=0.9)
        assert all(image[0][regions == n].mean() > 0.04 * image.max() for n in range(1, int(regions.max()) + 1))


@pytest.mark.parametrize("grey", [0.0, 80.0])
def test_image_without_edges_is_allowed(grey: float) -> None:
    regions = draw_regions(np.full((3, 32, 32), grey), np.random.default_rng(0))
    assert regions.shape == (32, 32)


def test_same_seed_same_regions() -> None:
    image, _ = discs()
    first, second = (draw_regions(image, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
