"""Where a structure is expected: a prior from the reference's mask, after a shift that the images alone give.

None of this is in the P²SAM paper, which compares features wherever they lie. Follow-ups of one patient also share a
place, which keeps points off tissue that looks alike elsewhere. Pure functions of tensors in the target's input frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from monai_ext.prompts.masks import valid_cells

REACH = 0.75
"""Width of the prior beyond the mask, as a share of the radius of a disc of the mask's area; a cell at least."""

CUT = 2.0
"""Widths beyond the mask where the prior ends: nothing further out is accepted."""

NEIGHBOURHOOD = 3.0
"""Widths beyond the mask within which negatives are taken and sought."""

AREA_FACTOR = 2.0
"""Growth, or shrinkage, of a structure on a slice that costs a candidate nothing."""

LARGEST_SHIFT = 0.15
"""Of the image's longer side: larger shifts are not believed."""

HIGHEST_FREQUENCY = 0.1
"""Width of the Gaussian, in cycles a pixel, that weighs frequencies of the phase correlation: noise lies above."""

LEAST_GAIN = 0.01
"""Gain in correlation below which a shift is not applied."""


def prior_width(mask: Tensor, stride: int) -> float:
    """Width of the prior of a mask ``[H, W]`` in pixels: see :data:`REACH`."""
    return max(float(stride), REACH * math.sqrt(float(mask.sum()) / math.pi))


def distance_outside(mask: Tensor) -> Tensor:
    """Distance of each pixel to the nearest of the mask, in pixels: ``[H, W]`` bool, not empty -> float32."""
    return torch.from_numpy(ndimage.distance_transform_edt(~mask.cpu().numpy())).float()


def place_prior(mask: Tensor, stride: int) -> Tensor:
    r"""Prior of a structure that was at ``mask``.

    .. math:: \pi(x) = \exp(-d(x)^2 / 2 w^2)

    with the distance d to the mask and the width w of :func:`prior_width`.

    Args:
        mask: ``[H, W]`` bool in the target's input frame, not empty.
        stride: side of a feature cell in pixels.

    Returns:
        ``[H, W]`` float32: 1 on the mask.
    """
    return torch.exp(-(distance_outside(mask) ** 2) / (2 * prior_width(mask, stride) ** 2))


def within(mask: Tensor, stride: int, widths: float) -> Tensor:
    """Pixels that lie within so many widths of a mask: ``[H, W]`` bool -> ``[H, W]`` bool."""
    return distance_outside(mask) <= widths * prior_width(mask, stride)


def to_cells(values: Tensor, stride: int, grid: tuple[int, int]) -> Tensor:
    """Mean of pixel values below each feature cell: ``[H, W]`` -> ``[g, g]`` float32; padding counts as 0."""
    height, width = values.shape
    room = (0, grid[1] * stride - width, 0, grid[0] * stride - height)
    return F.avg_pool2d(F.pad(values.float(), room)[None], stride)[0]


def weigh_maps(maps: Tensor, prior: Tensor) -> Tensor:
    """Weigh similarity maps ``[n, g, g]`` in [-1, 1] by a prior ``[g, g]``: (S + 1) / 2 times the prior."""
    return (maps + 1) / 2 * prior.to(maps.device)


def near_cells(mask: Tensor, stride: int, grid: tuple[int, int]) -> Tensor:
    """Cells in the neighbourhood of a mask ``[H, W]`` bool: ``[g, g]`` bool, of those that hold image."""
    near = to_cells(within(mask, stride, NEIGHBOURHOOD), stride, grid) > 0.5
    return near & valid_cells((mask.shape[0], mask.shape[1]), stride, grid)


def implausibility(candidates: Tensor, mask: Tensor, prior: Tensor) -> Tensor:
    r"""How unlikely place and size of each candidate are.

    .. math:: (1 - \bar\pi) + \max(0, |\log(A / A_R)| - \log 2)

    with the mean prior over the candidate, its area A and the reference's A_R: 0 for a candidate that lies on the
    reference's mask with half to double its area.

    Args:
        candidates: ``[K, H, W]`` bool.
        mask: ``[H, W]`` bool, of the reference.
        prior: ``[H, W]`` of :func:`place_prior`.

    Returns:
        ``[K]`` float64, infinite for an empty candidate.
    """
    candidates = candidates.cpu()
    areas = candidates.flatten(1).sum(dim=1).double()
    inside = (candidates * prior).flatten(1).sum(dim=1).double() / areas
    change = (areas.log() - math.log(float(mask.sum()))).abs() - math.log(AREA_FACTOR)
    return torch.where(areas > 0, 1 - inside + change.clamp(min=0), float("inf"))


def fit_shift(target: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """Fit the shift between two images of one patient by phase correlation, from the images alone.

    The normalised cross-power spectra of all slices are added up, so that all vote for one shift; high frequencies,
    which are mostly noise, count less (:data:`HIGHEST_FREQUENCY`). It is taken only if
    it makes the images correlate better than they do unshifted; else none is applied.

    Args:
        target: ``[H, W, D]``.
        reference: likewise, its slices matched to the target's and resampled to the target's frame.

    Returns:
        Rows and columns by which the reference has to be moved to lie on the target.
    """
    height, width, depth = target.shape
    window = np.hanning(height)[:, None] * np.hanning(width)[None, :]
    power = np.zeros((height, width), complex)
    for k in range(depth):
        one, other = (np.fft.fft2((image[..., k] - image[..., k].mean()) * window) for image in (target, reference))
        cross = one * other.conj()
        power += cross / np.maximum(np.abs(cross), 1e-9)
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    peaks = np.real(np.fft.ifft2(power * np.exp(-((frequencies / HIGHEST_FREQUENCY) ** 2) / 2)))
    reach = int(LARGEST_SHIFT * max(height, width))
    rows, columns = (np.minimum(np.arange(n), n - np.arange(n)) <= reach for n in (height, width))
    peaks = np.where(rows[:, None] & columns[None, :], peaks, -np.inf)
    row, column = (int(i) for i in np.unravel_index(peaks.argmax(), peaks.shape))
    shift = (row - height if row > height // 2 else row, column - width if column > width // 2 else column)
    gain = _correlation(target, _moved(reference, shift)) - _correlation(target, reference)
    return shift if gain > LEAST_GAIN else (0, 0)


def shift_mask(mask: Tensor, shift: Sequence[int]) -> Tensor:
    """Move a mask ``[H, W]`` bool by rows and columns; what leaves the image is lost."""
    return torch.from_numpy(ndimage.shift(mask.cpu().numpy().astype(np.uint8), shift, order=0) > 0)


def _moved(image: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    return np.roll(image, shift, axis=(0, 1))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    a, b = (image - image.mean() for image in (one, other))
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0
