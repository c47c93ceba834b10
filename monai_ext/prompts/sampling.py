"""Points and boxes drawn from masks: the prompts of interactive training, and the click that knows the answer.

Everything is batched over K masks and draws from a given generator, so a run can be repeated and resumed.
Points are (x, y) in pixels of the mask.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` pixels for each of the maps [K, H, W] in proportion to their weights: [K, count, 2] (x, y)."""
    width = weights.shape[-1]
    index = torch.multinomial(weights.flatten(1), count, replacement=True, generator=generator)
    return torch.stack([index % width, index // width], dim=-1).float()


def border_band(masks: Tensor, radius: float) -> Tensor:
    """Mark the pixels within about ``radius`` pixels of the outline of each mask: [K, H, W] bool -> bool."""
    coarse = F.max_pool2d(masks[:, None].float(), 4, ceil_mode=True)
    size = 2 * max(1, round(radius / 4)) + 1
    grown = F.max_pool2d(coarse, size, stride=1, padding=size // 2)
    shrunk = -F.max_pool2d(-coarse, size, stride=1, padding=size // 2)
    band = F.interpolate(grown - shrunk, scale_factor=4.0, mode="nearest")
    return band[:, 0, : masks.shape[-2], : masks.shape[-1]] > 0.5


def sample_points(
    masks: Tensor,
    valid: Tensor,
    positives: int,
    negatives: int,
    generator: torch.Generator,
    near_border: float = 0.0,
    radius: float = 12,
) -> tuple[Tensor, Tensor]:
    """Draw points inside (label 1) and outside (label 0) of each mask.

    Args:
        masks: [K, H, W] bool, none of them empty.
        valid: [K, H, W] bool, where negatives may lie (the image without its padding).
        positives: points inside, for each mask.
        negatives: points outside, for each mask.
        generator: source of randomness, on the CPU.
        near_border: share of each point's probability that goes to a band along the outline; 0 is uniform.
        radius: half width of that band in pixels.

    Returns:
        Points [K, positives + negatives, 2] (x, y) and labels [K, positives + negatives]: 1 inside, 0 outside. Where a
        mask fills the image there is no outside; what should have been negatives are then further positives.
    """
    drawn = []
    band = border_band(masks, radius) if near_border else None
    for region, count in ((masks, positives), (valid & ~masks, negatives)):
        if not count:
            continue
        weights = _uniform(region)
        if band is not None:
            weights = (1 - near_border) * weights + near_border * _uniform(region & band)
        weights = torch.where(weights.sum((1, 2), keepdim=True) > 0, weights, masks.float())
        drawn.append(_draw(weights.cpu(), count, generator).to(masks.device))
    if not drawn:
        empty = torch.zeros(len(masks), 0, 2, device=masks.device)
        return empty, empty[..., 0]
    points = torch.cat(drawn, dim=1)
    return points, _labels_at(masks, points)


def _labels_at(masks: Tensor, points: Tensor) -> Tensor:
    """Look up masks [K, H, W] at points [K, N, 2]: [K, N], 1 inside and 0 outside."""
    x, y = points.long().unbind(-1)
    return masks[torch.arange(len(masks), device=masks.device)[:, None], y, x].float()


def _uniform(region: Tensor) -> Tensor:
    return region.float() / region.sum((1, 2), keepdim=True).clamp(min=1)


def sample_correction(
    masks: Tensor, predictions: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw points uniformly from the error region, as SAM's interactive training does (P²SAM, Appendix A).

    Args:
        masks: [K, H, W] bool, the truth; none empty.
        predictions: [K, H, W] bool.
        count: points for each mask.
        generator: source of randomness, on the CPU.

    Returns:
        Points [K, count, 2] (x, y); labels [K, count]: 1 where the prediction missed the structure, 0 where it
        spilled over. A perfect prediction is given points inside the mask.
    """
    error = masks ^ predictions
    region = torch.where(error.any(dim=2, keepdim=True).any(dim=1, keepdim=True), error, masks)
    points = _draw(region.float().cpu(), count, generator).to(masks.device)
    return points, _labels_at(masks, points)


def noisy_boxes(masks: Tensor, generator: torch.Generator, share: float = 0.1, most: float = 20.0) -> Tensor:
    """Tight boxes with noise of standard deviation ``share`` of the side, at most ``most`` pixels (SAM's training).

    Args:
        masks: [K, H, W] bool, none empty.
        generator: source of randomness, on the CPU.
        share: standard deviation as a share of the box's side.
        most: no corner moves by more than this many pixels.

    Returns:
        [K, 4] (x0, y0, x1, y1), inside the image.
    """
    height, width = masks.shape[-2:]
    columns, rows = masks.any(dim=1).float(), masks.any(dim=2).float()
    x0, y0 = columns.argmax(1), rows.argmax(1)
    x1, y1 = width - 1 - columns.flip(1).argmax(1), height - 1 - rows.flip(1).argmax(1)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator).to(masks.device) * share * sides
    boxes = boxes + noise.clamp(-most, most)
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], dim=1)
    limits = torch.tensor([width - 1, height - 1, width - 1, height - 1], device=masks.device)
    return torch.minimum(boxes.clamp(min=0), limits)


def centre_click(mask: np.ndarray) -> tuple[int, int]:
    """Return the pixel (x, y) of a mask [H, W] that lies deepest inside it: the click of someone who knows.

    Depth is the Euclidean distance to the outside; the image border counts as outside. The first such pixel in
    reading order is taken.
    """
    if not mask.any():
        raise ValueError("an empty mask has no centre")
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)
