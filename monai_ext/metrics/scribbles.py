"""What scribbles look like in numbers, to compare simulated ones with drawn ones; masks beside scribbles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import skeletonize


class ScribbleStatistics(NamedTuple):
    """The scribble of one structure on one slice.

    ``length``: of the scribble's medial axis in mm. ``relative_length``: that, divided by the square root of the
    structure's area. ``coverage``: share of the structure's pixels that are scribbled on. ``depth``: mean distance of
    the scribble's pixels to the structure's border, divided by the largest distance inside the structure. ``pieces``:
    number of connected pieces.
    """

    length: float
    relative_length: float
    coverage: float
    depth: float
    pieces: int


def scribble_statistics(
    scribble: NDArray[np.bool_], structure: NDArray[np.bool_], spacing: Sequence[float] = (1.0, 1.0)
) -> ScribbleStatistics | None:
    """Measure one scribble.

    Args:
        scribble: [H, W].
        structure: [H, W], what it stands for; scribbled pixels outside count for the length and, with depth 0, for the
            depth.
        spacing: size of a pixel along H and W in mm.

    Returns:
        The numbers, or None where there is no scribble or no structure.
    """
    if not scribble.any() or not structure.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(structure, 1), spacing)[1:-1, 1:-1]
    area = float(structure.sum()) * spacing[0] * spacing[1]
    length = axis_length(scribble, spacing)
    return ScribbleStatistics(
        length=length,
        relative_length=length / area**0.5,
        coverage=float((scribble & structure).sum() / structure.sum()),
        depth=float(depth[scribble].mean() / depth.max()),
        pieces=int(ndimage.label(scribble, np.ones((3, 3)))[1]),
    )


def axis_length(scribble: NDArray[np.bool_], spacing: Sequence[float] = (1.0, 1.0)) -> float:
    """Return the length of the medial axis of a scribble [H, W] in mm: the sum of its steps between neighbours.

    A diagonal step counts only where no two straight steps join the same pixels. A single pixel has no length.
    """
    axis = skeletonize(scribble)
    down, right = axis[:-1] & axis[1:], axis[:, :-1] & axis[:, 1:]
    total = down.sum() * spacing[0] + right.sum() * spacing[1]
    corner = {
        (0, 0): axis[:-1, :-1] & axis[1:, 1:] & ~axis[:-1, 1:] & ~axis[1:, :-1],
        (0, 1): axis[:-1, 1:] & axis[1:, :-1] & ~axis[:-1, :-1] & ~axis[1:, 1:],
    }
    diagonal = float(np.hypot(spacing[0], spacing[1]))
    return float(total + sum(c.sum() for c in corner.values()) * diagonal)


def scribble_dice(predicted: NDArray[np.integer], scribble: NDArray[np.integer]) -> float:
    """Return the mean Dice of the classes, background included, on pixels that are scribbled on.

    Args:
        predicted: [n] class indices of the scribbled pixels.
        scribble: [n] what is drawn there. Classes that are not drawn count as errors of the others alone.

    Raises:
        ValueError: nothing is drawn.
    """
    if not len(scribble):
        raise ValueError("no pixel is scribbled on")
    values = []
    for own in np.unique(scribble):
        found, drawn = predicted == own, scribble == own
        values.append(2 * float((found & drawn).sum()) / float(found.sum() + drawn.sum()))
    return float(np.mean(values))
