"""Point prompts from scribbles, and the combination of one mask a class into pseudo-labels (SAM-SP, appendix).

Scribbles are class indices: 0 a background scribble, 1 to K the structures, any other value no scribble. Points are
(x, y) in pixels of the scribble, pixel centres at integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import skeletonize
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.ties import first_maximum

SAMPLINGS = ("random", "even", "skeleton")
NEGATIVES = ("all", "one_class")


def sample_scribble(
    mask: NDArray[np.bool_], count: int, sampling: str, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Choose points on a scribble.

    ``random`` draws without replacement (the appendix). ``even`` takes pixels at equal steps in raster order, as the
    authors' code does for fine-tuning; ``skeleton`` thins the scribble first, dilated by one pixel, as it does for
    pseudo-labels (with Guo-Hall thinning; here Zhang-Suen, which differs by single pixels; what it leaves beside the
    scribble is no truth and is not taken).

    Args:
        mask: [H, W], the scribble of one class.
        count: points wanted; a scribble of fewer pixels gives all of them.
        sampling: one of :data:`SAMPLINGS`.
        rng: source of randomness, for ``random``.

    Returns:
        [n, 2] (x, y), n at most ``count``.
    """
    if sampling == "skeleton":
        thin = mask & skeletonize(ndimage.binary_dilation(mask, np.ones((3, 3), dtype=bool)))
        mask = thin if thin.any() else mask
    pixels = np.argwhere(mask)[:, ::-1].astype(np.float32)
    if len(pixels) <= count:
        return pixels
    if sampling == "random":
        return pixels[np.sort(rng.choice(len(pixels), count, replace=False))]
    return pixels[np.linspace(0, len(pixels) - 1, count).astype(int)]


def scribble_prompts(
    scribble: NDArray[np.integer],
    classes: int,
    rng: np.random.Generator,
    points: int = 10,
    sampling: str = "random",
    negatives: str = "all",
    order: Mapping[int, Sequence[int]] | None = None,
) -> dict[int, Prompt]:
    """Return one prompt for each structure that is scribbled on.

    Positive points lie on the structure's own scribble. Negative ones lie on the scribbles of every other structure and
    of the background, at most ``points`` of each; with ``one_class``, as in the authors' code, on those of the first of
    ``order`` that is there, and of the background where none is. (That code takes unlabelled pixels for background.)

    Args:
        scribble: [H, W].
        classes: K.
        rng: source of randomness.
        points: most points of a class.
        sampling: see :func:`sample_scribble`.
        negatives: ``all`` or ``one_class``.
        order: structure -> the others in the order of preference, for ``one_class``; by default from 1 to K.

    Raises:
        UserError: for an unknown option.
    """
    if sampling not in SAMPLINGS:
        raise UserError(f"sampling {sampling!r} is unknown: choose one of {', '.join(SAMPLINGS)}.")
    if negatives not in NEGATIVES:
        raise UserError(f"negatives {negatives!r} is unknown: choose one of {', '.join(NEGATIVES)}.")
    if points < 1:
        raise UserError(f"points is {points}: give 1 or more points of a class.")
    found = {c: scribble == c for c in range(classes + 1)}
    placed = {c: sample_scribble(mask, points, sampling, rng) for c, mask in found.items() if mask.any()}
    prompts = {}
    for own in (c for c in placed if c > 0):
        preferred = [*((order or {}).get(own) or range(1, classes + 1)), 0]
        others = [c for c in preferred if c in placed and c != own]
        if negatives == "one_class":
            others = others[:1]
        outside = [placed[c] for c in others]
        prompts[own] = Prompt.from_points(
            torch.from_numpy(placed[own]),
            torch.from_numpy(np.concatenate([np.empty((0, 2), np.float32), *outside])),
        )
    return prompts


def combine_masks(probabilities: Tensor, present: Sequence[int], paint_order: Sequence[int] | None = None) -> Tensor:
    """Merge one mask a class into class indices.

    A pixel gets the class of the largest probability, of equal ones (:mod:`monai_ext.prompts.ties`) the first, and
    background where none reaches 0.5. With ``paint_order``, the
    authors' rule, the masks are painted one over the other.

    Args:
        probabilities: [N, H, W], the sigmoid of each class's logits.
        present: the N classes.
        paint_order: classes, the last one on top.

    Returns:
        [H, W] uint8; 0 is background.
    """
    result = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
    if not len(present):
        return result
    if paint_order is not None:
        for c in paint_order:
            if c in present:
                result[probabilities[list(present).index(c)] >= 0.5] = c
        return result
    values = torch.tensor(list(present), dtype=torch.uint8, device=probabilities.device)
    return values[first_maximum(probabilities, dim=0)].where((probabilities >= 0.5).any(dim=0), result)
