"""One slice as it is read: grey values in a window, structures as outlines with a light fill, the patient's sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patheffects import withStroke

COLOURS = ("#56B4E9", "#F0E442", "#FF7FC4", "#00D18F", "#FFA040", "#B79CFF", "#C8C8C8", "#C08552")
"""One a label, repeated beyond eight; told apart by colour-blind readers and visible on grey as on mucosa."""

FILL_OPACITY = 0.18
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
LUNG_WINDOW = (-1350.0, 150.0)
"""HU, width 1500 and level -600: what lies in air is black in the soft-tissue window."""

DARK = 0.4
"""Share of black pixels around the structures from which a CT is shown in the lung window."""


def colour_of(number: int) -> str:
    """Return the colour of the structure with this number, counted from 0."""
    return COLOURS[number % len(COLOURS)]


def is_dark_around(image: np.ndarray, mask: np.ndarray, reach: int = 6) -> bool:
    """Tell whether a structure lies in what a window shows as black, such as lung in the soft-tissue window.

    Args:
        image: [H, W] grey values in [0, 255].
        mask: [H, W] bool, the structure.
        reach: pixels around it that are looked at.
    """
    from scipy import ndimage

    if not mask.any():
        return False
    near = ndimage.binary_dilation(mask, iterations=reach) & ~mask
    return bool(near.any()) and float((image[near] < 2).mean()) > DARK


def windowed(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Return grey values in [0, 255], those outside of the window clipped."""
    low, high = window
    return np.clip((image - low) / (high - low), 0, 1) * 255


def show_image(axes: Axes, image: np.ndarray, extent: tuple[float, float]) -> None:
    """Show grey values [H, W] or colours [H, W, 3] in [0, 255] on ``extent``, (height, width) in mm."""
    picture = image.clip(0, 255) / 255
    picture = np.broadcast_to(picture[..., None], (*picture.shape, 3)) if picture.ndim == 2 else picture
    axes.imshow(picture, extent=(0.0, extent[1], extent[0], 0.0), interpolation="bilinear")
    axes.set_axis_off()


def show_fill(axes: Axes, masks: Mapping[str, np.ndarray], extent: tuple[float, float]) -> None:
    """Fill masks [H, W] lightly; where structures overlap their colours are averaged."""
    planes = np.stack(list(masks.values())).astype(float)
    count = planes.sum(axis=0)
    colours = np.array([to_rgb(colour_of(number)) for number in range(len(planes))])
    rgb = np.einsum("lhw,lc->hwc", planes, colours) / np.maximum(count, 1)[..., None]
    filled = np.concatenate([rgb, FILL_OPACITY * (count > 0)[..., None]], axis=-1)
    axes.imshow(filled, extent=(0.0, extent[1], extent[0], 0.0), interpolation="nearest")


def show_outlines(axes: Axes, masks: Mapping[str, np.ndarray], extent: tuple[float, float], dashed: bool) -> None:
    """Draw the outlines of masks [H, W]: dashed ones are annotations, the others predictions."""
    for number, mask in enumerate(masks.values()):
        if not mask.any():
            continue
        sides = [side / n for side, n in zip(extent, mask.shape, strict=True)]
        rows, columns = ((np.arange(n + 2) - 0.5) * side for n, side in zip(mask.shape, sides, strict=True))
        drawn = axes.contour(
            columns,
            rows,
            np.pad(mask, 1),
            levels=[0.5],
            colors=[colour_of(number)],
            linewidths=1.3,
            linestyles=[(0, (2.2, 1.4))] if dashed else ["solid"],
        )
        drawn.set_path_effects([withStroke(linewidth=2.2, foreground="black", alpha=0.5)])


def view_corner(
    masks: Mapping[str, np.ndarray], extent: tuple[float, float], size: tuple[float, float]
) -> tuple[float, float]:
    """Return the upper left corner in mm of a view around masks [H, W], inside of the image if it can be.

    Args:
        masks: by structure; where none holds anything the view is around the middle of the image.
        extent: height and width of the image in mm.
        size: height and width of the view in mm.
    """
    held = np.any(list(masks.values()), axis=0)
    corner = []
    for axis, (side, shown) in enumerate(zip(extent, size, strict=True)):
        places = np.nonzero(held.any(axis=1 - axis))[0]
        middle = (places.min() + places.max() + 1) / 2 / held.shape[axis] * side if len(places) else side / 2
        corner.append(min(max(0.0, float(middle) - shown / 2), max(0.0, side - shown)))
    return corner[0], corner[1]


def show_sides(axes: Axes, directions: str) -> None:
    """Name the patient's sides at the top and at the left of a slice.

    Args:
        axes: of the slice.
        directions: letters of the directions in which rows and columns grow; "" for a picture without any.
    """
    if directions:
        show_text(axes, 0.5, 0.98, OPPOSITE[directions[0]], ha="center", va="top")
        show_text(axes, 0.02, 0.5, OPPOSITE[directions[1]], va="center")


def show_text(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Write on a slice; ``x`` and ``y`` are shares of its width and height from the lower left."""
    options = {"color": "white", "fontsize": 8, **options}
    axes.text(
        x, y, text, transform=axes.transAxes, path_effects=[withStroke(linewidth=2, foreground="black")], **options
    )
