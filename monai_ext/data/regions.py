"""Regions of an image that nobody labelled: pseudo-structures that teach a promptable model to follow outlines.

A model that has seen four organs only learns to find those four. Regions cut from the image alone (superpixels, as in
self-supervised few-shot segmentation and in ScribblePrompt's synthetic tasks) have any shape, size and contrast, so
that a click means "what belongs to this place" and not "the liver". No label is read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MOST_REGIONS = 40
SOLID = 0.3
"""Least share of a region's pixels whose eight neighbours belong to it: threads and crumbs are dropped."""


def draw_regions(
    image: NDArray[np.floating],
    rng: np.random.Generator,
    smallest: float = 0.0006,
    largest: float = 0.1,
) -> NDArray[np.uint8]:
    """Cut an image into regions of like grey values or into catchment basins, at a random scale.

    One of two rules is drawn. *Levels*: the smoothed image is cut at random quantiles, and the connected parts of each
    level are the regions (bright cavities, dark organs). *Basins*: the watershed of the smoothed gradient (pieces of
    tissue between edges). Regions on empty background, thin ones, and those smaller than ``smallest`` or larger than
    ``largest`` of the image are dropped.

    Args:
        image: [C, H, W] in [0, 255]; the channels' mean is cut.
        rng: source of randomness.
        smallest: smallest area of a region as a share of the image.
        largest: largest area.

    Returns:
        [H, W]: 0 background, 1..K the regions, K at most 40; may be all 0 for an empty image.
    """
    grey = np.asarray(image, dtype=np.float32).mean(axis=0)
    smooth = ndimage.gaussian_filter(grey, float(np.exp(rng.uniform(np.log(0.7), np.log(4.0)))))
    pieces = _levels(smooth, rng) if rng.random() < 0.6 else _basins(smooth, rng)
    return _keep(pieces, smooth, rng, smallest * grey.size, largest * grey.size)


def _levels(smooth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Connected parts of the image between random quantiles of its non-black values: [H, W], 0 nowhere."""
    bright = smooth[smooth > 0.05 * smooth.max()] if smooth.max() > 0 else smooth.ravel()
    cuts = np.quantile(bright, np.sort(rng.uniform(0.02, 0.98, int(rng.integers(2, 7)))))
    level = np.digitize(smooth, cuts)
    pieces = np.zeros(smooth.shape, np.int32)
    for value in np.unique(level):
        mask = ndimage.binary_opening(level == value, iterations=int(rng.integers(0, 3))) if value else level == value
        parts, _ = ndimage.label(mask)
        pieces = np.where(parts > 0, parts + pieces.max(), pieces)
    return pieces


def _basins(smooth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Catchment basins of the gradient's magnitude around its regional minima: [H, W], 1..K."""
    edges = ndimage.gaussian_gradient_magnitude(smooth, 1.0)
    top = float(edges.max())
    depth = (np.sqrt(edges / max(top, 1e-6)) * 65535).astype(np.uint16)
    reach = int(rng.integers(7, 25))
    minima = (depth == ndimage.minimum_filter(depth, reach)) & (depth < np.quantile(depth, 0.6))
    markers, _ = ndimage.label(minima, structure=np.ones((3, 3)))
    return ndimage.watershed_ift(depth, markers.astype(np.int32)).astype(np.int32)


def _keep(
    pieces: NDArray[np.int32], smooth: NDArray[np.float32], rng: np.random.Generator, smallest: float, largest: float
) -> NDArray[np.uint8]:
    """Number the pieces of a fitting size that hold tissue, 1..K in random order."""
    count = int(pieces.max()) + 1
    areas = np.bincount(pieces.ravel(), minlength=count)
    means = np.bincount(pieces.ravel(), smooth.ravel(), minlength=count) / np.maximum(areas, 1)
    tissue = means > 0.06 * max(float(smooth.max()), 1e-6)
    inner = pieces[ndimage.maximum_filter(pieces, 3) == ndimage.minimum_filter(pieces, 3)]
    solid = np.bincount(inner, minlength=count) >= SOLID * areas
    fits = np.flatnonzero((areas >= smallest) & (areas <= largest) & tissue & solid)
    fits = rng.permutation(fits[fits > 0])[:MOST_REGIONS]
    numbers = np.zeros(count, np.uint8)
    numbers[fits] = np.arange(1, len(fits) + 1)
    return numbers[pieces]
