"""Point prompts where a target looks like a part of the reference (P²SAM §3.2, Eq. 2).

All points are ``(x, y)`` in input-frame pixels with pixel centres at integers, as segment_anything expects
them (its prompt encoder adds 0.5). Of equal similarities (:mod:`monai_ext.prompts.ties`) the first cell or pixel, row
by row, is taken.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ext.prompts.ties import TOLERANCE, first_maximum


def cosine_maps(parts: Tensor, features: Tensor) -> Tensor:
    """Similarity of each part to each cell, S^c_ij (Eq. 2).

    Args:
        parts: ``[n, C]`` part-level features P_R^c of the reference.
        features: ``[C, g, g]`` features F_T of the target.

    Returns:
        ``[n, g, g]`` float32 in [-1, 1]; 0 where a feature is the zero vector.
    """
    cells = F.normalize(features.float().flatten(1), dim=0)
    return (F.normalize(parts.float(), dim=1) @ cells).unflatten(1, features.shape[1:])


def argmax_points(
    maps: Tensor, stride: int, valid: Tensor | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """Place one point a map at the centre of the cell with the highest similarity (mode ``paper``).

    Args:
        maps: ``[n, g, g]`` similarities.
        stride: side of a cell in pixels.
        valid: ``[g, g]`` bool, the cells to choose from (those that hold image); None: all.
        size: height and width of the image in the input frame: a cell centre beyond it is moved onto its last
            row or column; None: not moved.

    Returns:
        ``[n, 2]`` float32 ``(x, y)``.

    Raises:
        ValueError: if no cell is valid.
    """
    if valid is not None:
        if not bool(valid.any()):
            raise ValueError("no cell is valid: there is nowhere to place a point")
        maps = maps.masked_fill(~valid.to(maps.device), float("-inf"))
    points = _argmax_xy(maps) * stride + (stride - 1) / 2
    if size is None:
        return points
    height, width = size
    return points.minimum(points.new_tensor([width - 1, height - 1]))


def lowest_point(maps: Tensor, stride: int, valid: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """Place the single negative point of natural images: the lowest value of the average map (after PerSAM).

    Args:
        maps: ``[n, g, g]`` similarities to the foreground parts.
        stride: as in :func:`argmax_points`.
        valid: as in :func:`argmax_points`.
        size: as in :func:`argmax_points`.

    Returns:
        ``[1, 2]`` float32 ``(x, y)``.
    """
    return argmax_points(-maps.mean(dim=0, keepdim=True), stride, valid, size)


def official_points(
    maps: Tensor, image_size: int, input_size: tuple[int, int], original_size: tuple[int, int]
) -> Tensor:
    """Place one point a map at the highest similarity in the original image, as the authors' code does.

    The maps are brought to the original grid first, in SAM's steps (x4, to the padded square, crop, to the
    original size, each bilinear): that is not the same as the best cell, and may lie far from it.

    Args:
        maps: ``[n, g, g]`` similarities.
        image_size: side of the padded square in pixels.
        input_size: height and width of the image in the input frame.
        original_size: height and width of the original image.

    Returns:
        ``[n, 2]`` float32 ``(x, y)`` in the input frame: whole pixels of the original image, scaled as
        ``ResizeLongestSide.apply_coords`` does.
    """
    # one map at a time: many candidates at the size of a large original would take gigabytes
    points = torch.cat([_argmax_xy(_to_original(m[None], image_size, input_size, original_size)) for m in maps])
    scale = [input_size[1] / original_size[1], input_size[0] / original_size[0]]
    return points * points.new_tensor(scale)


def official_lowest_point(
    maps: Tensor, image_size: int, input_size: tuple[int, int], original_size: tuple[int, int]
) -> Tensor:
    """Place the single negative point of natural images on the original grid; see :func:`official_points`.

    Args:
        maps: ``[n, g, g]`` similarities to the foreground parts.
        image_size: as in :func:`official_points`.
        input_size: as in :func:`official_points`.
        original_size: as in :func:`official_points`.

    Returns:
        ``[1, 2]`` float32 ``(x, y)`` in the input frame.
    """
    return official_points(-maps.mean(dim=0, keepdim=True), image_size, input_size, original_size)


def target_attention(similarity: Tensor, valid: Tensor) -> Tensor:
    """Turn a similarity map into the bias of target-guided attention (PerSAM §3.2): sigmoid of its z-score.

    Mean and deviation are those of the cells that hold image; padding gets no bias.

    Args:
        similarity: ``[g, g]``, the mean map where there are several parts.
        valid: ``[g, g]`` bool of :func:`monai_ext.prompts.masks.valid_cells`.

    Returns:
        ``[1, g, g]`` in [0, 1]; 0.5 everywhere in the image where the map is constant.
    """
    valid = valid.to(similarity.device)
    mean, deviation = _spread(similarity[valid])
    return (((similarity - mean) / deviation).sigmoid() * valid)[None]


def official_target_attention(
    similarity: Tensor, image_size: int, input_size: tuple[int, int], original_size: tuple[int, int]
) -> Tensor:
    """Make the bias of :func:`target_attention` as the authors' code does: by way of the original grid.

    The map of the original image, without padding, is resized to the grid of the padded square; in images that are
    not square it so lies beside the features. Kept, to repeat their results.

    Args:
        similarity: ``[g, g]``.
        image_size: as in :func:`official_points`.
        input_size: as in :func:`official_points`.
        original_size: as in :func:`official_points`.

    Returns:
        ``[1, g, g]`` in [0, 1].
    """
    original = _to_original(similarity[None], image_size, input_size, original_size)
    mean, deviation = _spread(original)
    return _bilinear((original - mean) / deviation, (similarity.shape[0], similarity.shape[1])).sigmoid()


def _spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation, for division: of a constant map 1."""
    mean = values.mean()
    deviation = ((values - mean).square().sum() / max(values.numel() - 1, 1)).sqrt()
    return mean, torch.where(deviation > TOLERANCE, deviation, 1.0)


def _argmax_xy(maps: Tensor) -> Tensor:
    index = first_maximum(maps.flatten(1))
    columns = maps.shape[2]
    return torch.stack([index % columns, index // columns], dim=1).float()


def _to_original(maps: Tensor, image_size: int, input_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
    low_resolution = (4 * maps.shape[1], 4 * maps.shape[2])
    square = _bilinear(_bilinear(maps, low_resolution), (image_size, image_size))
    return _bilinear(square[:, : input_size[0], : input_size[1]], original_size)


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
