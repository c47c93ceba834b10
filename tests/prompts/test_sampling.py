"""Tests of monai_ext.prompts.sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_ext.prompts.sampling import border_band, centre_click, noisy_boxes, sample_correction, sample_points


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ellipses(size: tuple[int, int] = (48, 64)) -> Tensor:
    """Three masks: an ellipse, a small square, a single pixel."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    masks = torch.zeros(3, *size, dtype=torch.bool)
    masks[0] = ((x - 30) / 20) ** 2 + ((y - 20) / 10) ** 2 <= 1
    masks[1, 5:9, 50:54] = True
    masks[2, 40, 3] = True
    return masks


def valid_part(masks: Tensor) -> Tensor:
    valid = torch.zeros_like(masks)
    valid[:, :44, :58] = True
    return valid


def at(maps: Tensor, points: Tensor) -> Tensor:
    """The map's value at each point (x, y): [K, N]."""
    return torch.stack([m[p[:, 1].long(), p[:, 0].long()] for m, p in zip(maps, points, strict=True)])


@pytest.mark.parametrize("near_border", [0.0, 0.5, 1.0])
def test_points_lie_where_their_labels_say(near_border: float) -> None:
    masks = ellipses()
    valid = valid_part(masks)
    points, labels = sample_points(masks, valid, 40, 60, seeded(), near_border, radius=4)
    assert points.shape == (3, 100, 2)
    assert labels.tolist() == [[1.0] * 40 + [0.0] * 60] * 3
    assert torch.equal(points, points.round())
    assert bool(at(masks, points[:, :40]).all())
    assert not bool(at(masks, points[:, 40:]).any())
    assert bool(at(valid, points[:, 40:]).all())


def test_points_are_uniform_over_the_structure() -> None:
    masks = ellipses()[1:2]  # 16 pixels
    points, _ = sample_points(masks, torch.ones_like(masks), 8000, 0, seeded())
    _, counts = torch.unique(points[0], dim=0, return_counts=True)
    assert len(counts) == 16
    assert bool(((counts - 500).abs() < 5 * math.sqrt(500)).all())


@pytest.mark.parametrize("near_border", [0.3, 1.0])
def test_share_of_points_near_the_border(near_border: float) -> None:
    masks = ellipses()[:1]
    valid = torch.ones_like(masks)
    band = border_band(masks, 4)
    points, _ = sample_points(masks, valid, 4000, 4000, seeded(), near_border, radius=4)
    for region, part in ((masks, points[:, :4000]), (~masks, points[:, 4000:])):
        chance = float((band & region).sum() / region.sum())
        expected = near_border + (1 - near_border) * chance
        assert float(at(band, part).float().mean()) == pytest.approx(expected, abs=0.04)


def test_band_lies_along_the_outline() -> None:
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(92), indexing="ij")
    depth = 36 - torch.hypot(rows - 45.0, columns - 48.0)  # of a disc, > 0 inside
    band = border_band(depth[None] > 0, 12)[0]
    assert bool(band[depth.abs() < 8].all()), "a pixel at the outline is not in the band"
    assert not bool(band[depth.abs() > 22].any()), "the band reaches far from the outline"


@pytest.mark.parametrize("near_border", [0.0, 0.5])
def test_a_mask_that_fills_the_image_has_no_negatives(near_border: float) -> None:
    masks = torch.ones(1, 16, 16, dtype=torch.bool)
    points, labels = sample_points(masks, masks, 2, 3, seeded(), near_border)
    assert points.shape == (1, 5, 2)
    assert labels.tolist() == [[1.0] * 5]


def test_no_points_asked() -> None:
    masks = ellipses()
    points, labels = sample_points(masks, torch.ones_like(masks), 0, 0, seeded())
    assert points.shape == (3, 0, 2)
    assert labels.shape == (3, 0)
    assert points.dtype == labels.dtype == torch.float32


def test_corrections_lie_in_the_error_with_the_true_label() -> None:
    masks = ellipses()
    predictions = masks.roll((3, 5), dims=(1, 2))
    points, labels = sample_correction(masks, predictions, 50, seeded())
    assert points.shape == (3, 50, 2)
    assert bool(at(masks ^ predictions, points).all())
    assert torch.equal(labels > 0.5, at(masks, points))
    assert set(labels[0].tolist()) == {0.0, 1.0}, "missed and spilled pixels are both drawn"


def test_corrections_are_uniform_over_the_error() -> None:
    masks = ellipses()[1:2]
    predictions = masks.roll(1, dims=2)  # 4 missed, 4 spilled
    points, labels = sample_correction(masks, predictions, 4000, seeded())
    _, counts = torch.unique(points[0], dim=0, return_counts=True)
    assert len(counts) == 8
    assert bool(((counts - 500).abs() < 5 * math.sqrt(500)).all())
    assert float(labels.mean()) == pytest.approx(0.5, abs=0.04)


def test_perfect_prediction_gets_points_inside() -> None:
    masks = ellipses()
    predictions = masks.clone()
    predictions[1] = False
    points, labels = sample_correction(masks, predictions, 9, seeded())
    assert bool(at(masks, points).all())
    assert bool((labels == 1).all())


def test_boxes_without_noise_are_tight() -> None:
    boxes = noisy_boxes(ellipses(), seeded(), share=0.0)
    assert boxes.tolist() == [[10, 10, 50, 30], [50, 5, 53, 8], [3, 40, 3, 40]]


def test_noise_of_boxes() -> None:
    masks = torch.zeros(4000, 40, 300, dtype=torch.bool)
    masks[:, 18:22, 50:250] = True  # sides 200 and 4
    tight = torch.tensor([50.0, 18, 249, 21])
    noise = noisy_boxes(masks, seeded(), share=0.1, most=20.0) - tight
    assert float(noise.abs().max()) == 20
    assert noise[:, [1, 3]].std(dim=0).tolist() == pytest.approx([0.4, 0.4], rel=0.05)
    inner = noise[:, [0, 2]].abs() < 20
    assert float(inner.float().mean()) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.02)  # within one deviation


def test_corners_are_never_swapped() -> None:
    masks = torch.zeros(500, 16, 16, dtype=torch.bool)
    masks[:, 8, 8] = True
    boxes = noisy_boxes(masks, seeded(), share=2.0)
    assert bool((boxes[:, 2:] >= boxes[:, :2]).all())


def test_boxes_stay_in_the_image() -> None:
    masks = torch.ones(200, 30, 50, dtype=torch.bool)
    boxes = noisy_boxes(masks, seeded())
    assert bool((boxes >= 0).all())
    assert bool((boxes <= torch.tensor([49, 29, 49, 29])).all())


def test_same_generator_same_prompts() -> None:
    masks = ellipses()
    valid, predictions = valid_part(masks), masks.roll(2, dims=1)
    draws = {
        "points": lambda g: sample_points(masks, valid, 3, 3, g, 0.5)[0],
        "corrections": lambda g: sample_correction(masks, predictions, 5, g)[0],
        "boxes": lambda g: noisy_boxes(masks, g),
    }
    for name, draw in draws.items():
        torch.manual_seed(1)
        first = draw(seeded(7))
        torch.manual_seed(2)
        assert torch.equal(first, draw(seeded(7))), name
        assert not torch.equal(first, draw(seeded(8))), name


def slow_centre(mask: np.ndarray) -> tuple[int, int]:
    """The first pixel in reading order that is farthest from every pixel outside, the image's surroundings included."""
    outside = [tuple(p) for p in np.argwhere(~np.pad(mask, 1)) - 1]
    best, centre = -1.0, (0, 0)
    for y, x in np.argwhere(mask):
        depth = min((y - a) ** 2 + (x - b) ** 2 for a, b in outside)
        if depth > best:
            best, centre = depth, (int(x), int(y))
    return centre


@pytest.mark.parametrize("seed", range(4))
def test_centre_is_the_deepest_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((4, 5)) < 0.6, np.ones((4, 4))).astype(bool)
    assert centre_click(mask) == slow_centre(mask)


def test_centre_of_a_full_image_and_of_none() -> None:
    assert centre_click(np.ones((5, 9), bool)) == (2, 2)
    with pytest.raises(ValueError, match="an empty mask has no centre"):
        centre_click(np.zeros((3, 3), bool))
