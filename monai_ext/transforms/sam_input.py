"""From the grid of a file to the frame the promptable network sees, and back.

A volume ``[C, X, Y, Z]`` in any stored orientation, or a frame ``[C, W, H]``, becomes ``[C, H, W, D]``: D
upright slices of H x W pixels that are square in mm, the longer side ``image_size`` pixels long (less where
another image of the patient covers more: :data:`FRAME_EXTENT`). Three
patient frames are possible, named after the axis closest to the slice normal (:data:`DISPLAY_DIRECTIONS`).
They have one handedness, and a stack whose normal lies between right and back, as the heart's short axis
does, looks the same whether it counts as sagittal or as coronal. Pixel grids are aligned by their field of
view (the outer edges of the corner pixels coincide, ``align_corners=False``), never by the centres of the
corner pixels.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, ensure_tuple_rep
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from monai_ext.errors import UserError
from monai_ext.prompts.scribble_grid import resize_scribble

DISPLAY_DIRECTIONS = {"S": "PLS", "A": "ILP", "R": "IPR"}
"""Slice axis -> patient directions in which H, W and D grow, as a radiologist looks at the picture.

Axial ("S"): anterior on top, patient right on the left, slices from the feet upwards. Coronal ("A"): head on
top, patient right on the left, slices from front to back. Sagittal ("R"): head on top, the patient looks to
the left, slices from patient left to right.
"""

SAME_SPACING = 0.01
"""Relative difference below which two spacings count as one when the slice axis is looked for."""

FRAME_EXTENT = "frame_extent"
"""Item, and key of the meta: mm (along H, along W) that the input frame of a patient covers; none of a video."""

ROUNDING = 1e-9
"""Relative difference below which two shares of a pixel count as equal."""

EDGE = 1e-3
"""Share of a pixel that a box may cover of one more: affines are often stored in single precision."""

SAME_EXTENT = 0.01
"""Relative difference up to which two images cover the same: less than one cell of the encoder's grid."""

Extent = tuple[float, float]
"""mm along H and along W."""

_OF_THE_FRAME = ("plane_size", "slice_axis", "frame_size", "plane_extent", FRAME_EXTENT)  # keys of the meta

_DIRECTION = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Layout:
    """How a stored grid is turned, without any resampling, into upright slices ``[H, W, D]``.

    Args:
        order: the stored axes that become H, W and D.
        flips: whether H, W and D run against their stored axis.
        slice_axis: "R", "A" or "S", the patient axis closest to the slice normal; "" for a frame.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    slice_axis: str

    @property
    def directions(self) -> str:
        """Letters of the patient directions in which H, W and D grow; "" for a frame."""
        return DISPLAY_DIRECTIONS.get(self.slice_axis, "")

    def to_stored_index(self, stored_shape: Sequence[int]) -> np.ndarray:
        """Matrix 4x4: index [h, w, d, 1] -> stored index [x, y, z, 1] of a grid of this shape."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for display_axis, (stored_axis, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[stored_axis, display_axis] = -1 if flip else 1
            matrix[stored_axis, 3] = stored_shape[stored_axis] - 1 if flip else 0
        return matrix


FRAME_LAYOUT = Layout(order=(1, 0, 2), flips=(False, False, False), slice_axis="")
"""A frame stored as [W, H, 1]: only W and H change places."""


def choose_slice_axis(spacing: Sequence[float], shape: Sequence[int]) -> str:
    """Choose the patient axis along which a volume is cut into slices.

    An axis of a single voxel is the slice axis; otherwise the one with the largest spacing. Of several that
    are within :data:`SAME_SPACING` of the largest it is the last in the order R, A, S: an isotropic volume is
    cut axially.

    Args:
        spacing: mm along R, A and S.
        shape: voxels along R, A and S.
    """
    candidates = [axis for axis in range(3) if shape[axis] == 1] or [0, 1, 2]
    largest = max(spacing[axis] for axis in candidates)
    return "RAS"[max(axis for axis in candidates if spacing[axis] >= (1 - SAME_SPACING) * largest)]


def find_layout(shape: Sequence[int], affine: np.ndarray, slice_axis: str | None = None) -> Layout:
    """Find the upright layout of a volume: closest canonical orientation, slices cut along one axis.

    Args:
        shape: stored shape (X, Y, Z).
        affine: 4x4, stored index -> RAS mm.
        slice_axis: "R", "A" or "S" to force it, None for :func:`choose_slice_axis`.

    Raises:
        UserError: the affine is not finite or flattens an axis.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise UserError("the affine is singular or not finite; repair the image header (sform/qform)")
    orientation = nib.orientations.io_orientation(affine)
    stored_axis = {int(patient_axis): axis for axis, (patient_axis, _) in enumerate(orientation)}
    order_ras = [stored_axis[patient_axis] for patient_axis in range(3)]
    if slice_axis is None:
        spacing = nib.affines.voxel_sizes(affine)
        slice_axis = choose_slice_axis([spacing[a] for a in order_ras], [shape[a] for a in order_ras])
    wanted = [_DIRECTION[letter] for letter in DISPLAY_DIRECTIONS[slice_axis]]
    order = [stored_axis[patient_axis] for patient_axis, _ in wanted]
    flips = [bool(orientation[stored_axis[patient_axis], 1] != sign) for patient_axis, sign in wanted]
    return Layout((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]), slice_axis)


def to_display(array: np.ndarray, affine: np.ndarray | None, slice_axis: str | None = None) -> np.ndarray:
    """Turn a stored array upright without resampling: the slices of :class:`SamInputd` on the stored grid.

    Args:
        array: volume [X, Y, Z] or frame [W, H].
        affine: 4x4, stored index -> RAS mm; not used for a frame.
        slice_axis: as in :func:`find_layout`.

    Returns:
        View [H, W, D] of ``array``, D = 1 for a frame.
    """
    if array.ndim == 2:
        return array.T[:, :, None]
    if affine is None:
        raise ValueError("a volume needs its affine")
    layout = find_layout(array.shape, affine, slice_axis)
    return np.flip(array.transpose(layout.order), tuple(axis for axis in range(3) if layout.flips[axis]))


def display_spacing(shape: Sequence[int], affine: np.ndarray | None, slice_axis: str | None = None) -> np.ndarray:
    """Spacing [3] of :func:`to_display`'s H, W and D in mm; ones (pixels) for a frame's shape (W, H)."""
    if len(shape) == 2 or affine is None:
        return np.ones(3)
    return nib.affines.voxel_sizes(affine)[list(find_layout(shape, affine, slice_axis).order)]


def slice_positions(image: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
    """Where the slices of an input-frame image lie in scanner coordinates.

    Args:
        image: [C, H, W, D] as :class:`SamInputd` leaves it (its affine: [h, w, d] -> RAS mm).

    Returns:
        Centres [D, 3] of the slices in RAS mm and their common unit normal [3], which points to the next
        slice. For a frame the unit is the frame's own pixel.
    """
    affine = np.asarray(image.affine, dtype=np.float64).reshape(4, 4)
    height, width, depth = image.shape[-3:]
    index = np.stack(
        [np.full(depth, (height - 1) / 2), np.full(depth, (width - 1) / 2), np.arange(depth), np.ones(depth)]
    )
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal *= np.sign(normal @ affine[:3, 2]) / np.linalg.norm(normal)
    return (affine @ index)[:3].T, normal


def input_points(image: MetaTensor, indices: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Carry points of the image file to the input frame, through scanner coordinates.

    Args:
        image: [C, H, W, D] as :class:`SamInputd` leaves it.
        indices: n points, [i, j, k] on the stored grid ([i, j] on a frame's), centres of voxels at integers.

    Returns:
        Points [n, 2] (x, y) in input-frame pixels, centres at integers, and the slice [n] that each lies on.

    Raises:
        UserError: a point lies outside of the image.
    """
    stored = np.asarray([[*index, 0.0, 0.0][:3] for index in indices], dtype=np.float64).reshape(-1, 3)
    to_mm = to_affine_nd(3, np.asarray(image.meta["original_affine"], dtype=np.float64))
    to_frame = np.linalg.inv(np.asarray(image.affine, dtype=np.float64).reshape(4, 4)) @ to_mm
    h, w, d = (np.c_[stored, np.ones(len(stored))] @ to_frame.T)[:, :3].T
    slices = np.rint(d).astype(int)
    height, width, depth = image.shape[-3:]
    inside = (h >= -0.51) & (h <= height - 0.49) & (w >= -0.51) & (w <= width - 0.49) & (slices >= 0) & (slices < depth)
    if not inside.all():
        outside = list(indices[int(np.flatnonzero(~inside)[0])])
        raise UserError(f"point {outside} lies outside of {_file(image)}: give voxel indices of this image.")
    return np.stack([w, h], axis=1), slices


def input_box(
    image: MetaTensor, corner: Sequence[float], opposite: Sequence[float]
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Carry a box of voxels of the image file to the input frame: it covers the voxels of its corners whole.

    Args:
        image: [C, H, W, D] as :class:`SamInputd` leaves it.
        corner: [i, j, k] on the stored grid ([i, j] on a frame's), as in :func:`input_points`.
        opposite: the other one.

    Returns:
        (x0, y0, x1, y1), centres of its outermost pixels, and the first and the last slice.

    Raises:
        UserError: a corner lies outside of the image.
    """
    points, slices = input_points(image, [corner, opposite])
    to_mm = to_affine_nd(3, np.asarray(image.meta["original_affine"], dtype=np.float64))
    to_frame = np.linalg.inv(np.asarray(image.affine, dtype=np.float64).reshape(4, 4)) @ to_mm
    room = np.abs(to_frame[[1, 0], :3]).sum(axis=1) / 2 - 0.5  # half a voxel, less half a pixel, along x and y
    low = np.floor(points.min(axis=0) - room + EDGE)
    high = np.ceil(points.max(axis=0) + room - EDGE)
    limits = np.array([image.shape[-2], image.shape[-3]]) - 1
    x0, y0, x1, y1 = (float(side) for side in (*np.clip(low, 0, limits), *np.clip(high, 0, limits)))
    return (x0, y0, x1, y1), (int(slices.min()), int(slices.max()))


def plane_size(image: MetaTensor) -> tuple[int, int]:
    """Return (h0, w0), the pixels of a slice before :class:`SamInputd` resampled it."""
    height, width = image.meta["plane_size"]
    return int(height), int(width)


def plane_extent(shape: Sequence[int], affine: np.ndarray, slice_axis: str | None = None) -> Extent:
    """Return the field of view of a volume's slices.

    Args:
        shape: stored shape (X, Y, Z).
        affine: 4x4, stored index -> RAS mm.
        slice_axis: as in :func:`find_layout`.

    Raises:
        UserError: the affine is not usable.
    """
    rows, columns, _ = find_layout(shape, affine, slice_axis).order
    spacing = nib.affines.voxel_sizes(affine)
    return float(spacing[rows] * shape[rows]), float(spacing[columns] * shape[columns])


def choose_extent(own: Extent, wanted: Extent | None) -> Extent:
    """Return what the input frame of an image covers: the image alone, or what all of its patient's cover together.

    Args:
        own: :func:`plane_extent` of the image.
        wanted: that of the largest image that it is compared with; None: it stands alone. What is larger by up to
            :data:`SAME_EXTENT` changes nothing.
    """
    height, width = (float(side) for side in own)
    if wanted is None:
        return height, width
    common = max(height, float(wanted[0])), max(width, float(wanted[1]))
    same = common[0] <= height * (1 + SAME_EXTENT) and common[1] <= width * (1 + SAME_EXTENT)
    return (height, width) if same else common


def frame_extent(image: MetaTensor) -> Extent | None:
    """Return the mm that the input frame of an image covers; None for a frame of a video."""
    extent = image.meta.get(FRAME_EXTENT)
    return None if extent is None else (float(extent[0]), float(extent[1]))


def frame_size(image: MetaTensor) -> tuple[int, int]:
    """Return the rows and columns of the input frame that the slices of an image lie in: H and W, or more."""
    height, width = image.meta.get("frame_size", image.shape[-3:-1])
    return int(height), int(width)


def input_plane_size(
    size: Sequence[int], spacing: Sequence[float], image_size: int, longest: float | None = None
) -> tuple[int, int]:
    """Return the (H, W) of square pixels that cover a plane, the longer side ``image_size`` pixels long.

    Args:
        size: pixels (h0, w0) of the plane as stored.
        spacing: mm (or any one unit) a pixel along h and w.
        image_size: pixels of the longer side.
        longest: mm that ``image_size`` pixels cover, where that is more than the plane's longer side.
    """
    extent = [size[0] * spacing[0], size[1] * spacing[1]]
    pixel = (max(extent) if longest is None else longest) / image_size
    height, width = (max(1, int(side / pixel + 0.5)) for side in extent)
    return height, width


def resize_planes(image: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> Tensor:
    """Resample every plane of ``image`` [C, H, W, D] to ``size``, grids aligned by field of view.

    Args:
        mode: "bilinear" (float32 result) or "nearest" (the value of the pixel whose area holds the new
            centre; any dtype, kept).
        antialias: widen the bilinear kernel where pixels get larger.
    """
    if tuple(image.shape[1:3]) == size:
        return image.float() if mode == "bilinear" else image
    if mode == "nearest":
        for axis, new in enumerate(size, start=1):
            old = image.shape[axis]
            source = (2 * torch.arange(new, device=image.device) + 1) * old // (2 * new)
            image = image.index_select(axis, source)
        return image
    slices = image.permute(3, 0, 1, 2).float()
    resized = interpolate(slices, size, mode="bilinear", align_corners=False, antialias=antialias)
    return resized.permute(1, 2, 3, 0)


def resize_labels(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample the planes of a label by nearest neighbours, small structures by the share of each pixel they cover.

    Where planes are reduced, nearest neighbours take a structure of one or two pixels or miss it, as its position falls
    on the grid. So a structure that covers no more than one new pixel of its plane, or that would be missed, takes the
    new pixels with at least half of the largest share instead. So does each dot of a structure that is nothing but dots
    so small and of about one size, as where a user has painted points. A structure that is nothing but lines one pixel
    wide, as a scribble or the outline of a box, takes all new pixels that it touches. All other structures stay as
    nearest neighbours have them, but for pixels that such a small one takes.

    Args:
        label: [C, H, W, D] whole numbers, 0 background.
        size: new (H, W), grids aligned by field of view.
    """
    resized = resize_planes(label, size, "nearest", antialias=False)
    if size[0] >= label.shape[1] and size[1] >= label.shape[2]:
        return resized
    resized = resized.clone()
    pixel = label.shape[1] * label.shape[2] / (size[0] * size[1])  # of the new grid, in pixels of the old
    for c, k in label.flatten(1, 2).any(dim=1).nonzero().tolist():
        before, after = label[c, :, :, k], resized[c, :, :, k]
        counts, kept = _count_values(before), _count_values(after)
        dots = {value: _find_dots(before == value, pixel) for value in counts if value}
        dots = {value: pieces for value, pieces in dots.items() if pieces}
        lines = {
            value for value, count in counts.items() if value and count >= LEAST_LINE and _is_line(before == value)
        }
        small = {value for value, count in counts.items() if value and (count <= pixel or value not in kept)}
        if small or dots or lines:
            resized[c, :, :, k] = _with_small(before, after, counts, small | dots.keys() | lines, dots, lines)
    return resized


MOST_DOTS = 50
"""Dots of a structure that are looked at one by one: a user paints no more."""


def _find_dots(mask: Tensor, pixel: float) -> list[Tensor]:
    """Return the pieces of a mask [H, W] where all are of about one size and cover at most ``pixel``; else nothing."""
    if int(mask.sum()) > MOST_DOTS * pixel:
        return []
    pieces, _ = ndimage.label(mask.cpu().numpy(), np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())[1:]
    if not 2 <= len(sizes) <= MOST_DOTS or sizes.max() > pixel or 2 * sizes.min() < sizes.max():
        return []
    return [torch.from_numpy(pieces == number + 1).to(mask.device) for number in range(len(sizes))]


LEAST_LINE = 20
"""Pixels of the shortest line; structures of fewer are not told from the last pixels of an organ."""
CROSSED = 0.5
"""Share of a line's pixels that lie in squares of two by two, where it turns or crosses itself, at most. Of structures
of 20 pixels or more on a slice, in dense labels of hearts, abdomens and tumours, it is 0.68 or more."""


def _is_line(mask: Tensor) -> bool:
    """Tell whether a mask [H, W] is one pixel wide, but for a few places."""
    pairs = mask[1:] & mask[:-1]
    squares = pairs[:, 1:] & pairs[:, :-1]
    held = torch.zeros_like(mask)
    for part in (held[1:, 1:], held[1:, :-1], held[:-1, 1:], held[:-1, :-1]):
        part |= squares
    return int(held.sum()) <= CROSSED * int(mask.sum())


def _count_values(plane: Tensor) -> dict[int, int]:
    lowest = int(plane.min())
    counts = torch.bincount((plane - lowest).flatten().long()).tolist()
    return {lowest + number: count for number, count in enumerate(counts) if count}


def _with_small(
    plane: Tensor,
    nearest: Tensor,
    counts: dict[int, int],
    small: set[int],
    dots: Mapping[int, Sequence[Tensor]],
    lines: set[int],
) -> Tensor:
    """Draw the small structures of a plane [H, W] by area on what nearest neighbours made of it, [h, w].

    Small structures keep off each other's pixels; one that is left without any takes the free one nearest to it.
    A structure that lost its last pixel to them counts as small, too.
    """
    size = (nearest.shape[0], nearest.shape[1])
    shares = {value: _covered_shares(plane == value, size) for value in counts}
    others = [value for value in counts if value not in small]
    drawn, taken = nearest.clone(), torch.zeros(nearest.shape, dtype=torch.bool)
    freed = torch.isin(nearest, torch.tensor(sorted(small), dtype=nearest.dtype))
    if others:
        largest = torch.stack([shares[value] for value in others]).argmax(dim=0)
        drawn = torch.where(freed, torch.tensor(others, dtype=drawn.dtype)[largest], drawn)
    for value in sorted(small, key=lambda value: (-counts[value], value)):
        chosen = (shares[value] > ROUNDING) & ~taken if value in lines else torch.zeros_like(taken)
        if not bool(chosen.any()):
            for piece in [_covered_shares(dot, size) for dot in dots.get(value, ())] or [shares[value]]:
                chosen |= _largest_shares(piece, taken)
        drawn[chosen] = value
        taken |= chosen
    lost = {value for value in others if value and not bool((drawn == value).any())}
    return _with_small(plane, nearest, counts, small | lost, dots, lines) if lost else drawn


def _largest_shares(shares: Tensor, taken: Tensor) -> Tensor:
    """Pixels [h, w] that are free and have at least half of the largest share; else the free one nearest to that."""
    free = shares.masked_fill(taken, 0)
    if bool(free.any()):
        return (free > 0) & (2 * free >= free.max() * (1 - ROUNDING))
    row, column = divmod(int(shares.argmax()), shares.shape[1])
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in shares.shape), indexing="ij")
    away = ((rows - row) ** 2 + (columns - column) ** 2).masked_fill(taken, sum(shares.shape) ** 2)
    chosen = torch.zeros_like(taken)
    chosen.view(-1)[away.argmin()] = not bool(taken.all())
    return chosen


def _covered_shares(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each new pixel that a mask [H, W] covers, [*size] float64."""
    rows, columns = (_overlaps(old, new) for old, new in zip(mask.shape, size, strict=True))
    held_rows, held_columns = mask.any(dim=1), mask.any(dim=0)  # a dot covers few of them
    return rows[:, held_rows] @ mask[held_rows][:, held_columns].double() @ columns[:, held_columns].T


def _overlaps(old: int, new: int) -> Tensor:
    """Share of each new pixel that lies in each old one, [new, old] float64, along one axis."""
    step = old / new
    low, at = torch.arange(new, dtype=torch.float64)[:, None] * step, torch.arange(old, dtype=torch.float64)
    return ((at + 1).minimum(low + step) - at.maximum(low)).clamp(min=0) / step


def _scale_index(old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """Matrix 4x4 that takes an index on the resampled planes to the index before, by field of view."""
    matrix = np.eye(4)
    for axis in range(2):
        step = old[axis] / new[axis]
        matrix[axis, axis] = step
        matrix[axis, 3] = 0.5 * step - 0.5
    return matrix


class SamInputd(MapTransform, InvertibleTransform):
    """Bring images (and labels) to the input frame ``[C, H, W, D]`` of the promptable network; invertible.

    Volumes are turned to the closest canonical orientation and cut into upright slices (:func:`find_layout`),
    so that the same anatomy stored in two orientations gives the same array; the planes are then resampled to
    pixels that are square in mm (bilinear, with antialiasing where pixels get larger), the longer side
    ``image_size``. Frames have square pixels. Nothing is padded: the network pads.

    A patient's images get one scale: where the item :data:`FRAME_EXTENT` names more mm than the volume's slices
    cover, the frame covers these, and the slices are the upper left part of it
    (:class:`monai_ext.transforms.frame_extent.FrameExtentd`, :func:`frame_size`).

    A label (mode "nearest") keeps every structure that a slice holds: one that covers no more than a pixel of the
    input frame, or that nearest neighbours would miss, is taken by area (:func:`resize_labels`). The lines of a
    scribble (mode "scribble") are not broken (:func:`monai_ext.prompts.scribble_grid.resize_scribble`).

    Physical positions are maintained: ``affine`` of the result takes [h, w, d] to RAS mm. ``meta`` also gets
    ``plane_size`` = (h0, w0), the pixels of a slice before resampling, and ``slice_axis`` ("R", "A", "S"; ""
    for a frame), ``frame_size``, and of a volume ``plane_extent`` and ``frame_extent`` in mm.

    The inverse, through :class:`monai.transforms.Invertd`, takes any channel count: logits [L, H, W, D] are
    sampled at the stored pixel centres (bilinear without antialiasing, as segment_anything's
    ``postprocess_masks`` does; nearest for mode "nearest" or ``nearest_interp=True``) and turned back to [L,
    X, Y, Z] or [L, W, H], so that a mask thresholded afterwards lies on the grid of the file. ``Invertd``
    needs the prediction as a MetaTensor.

    Args:
        keys: items to transform, each [C, X, Y, Z] or [C, W, H] with its affine in RAS mm.
        image_size: pixels of the longer side of a slice.
        mode: "bilinear" for images (float32 result), "nearest" for labels or "scribble" (dtype kept), one for all
            or one a key.
        slice_axis: "R", "A" or "S" to cut slices orthogonal to it; None: :func:`choose_slice_axis`.
        allow_missing_keys: do not raise for a key that is absent.
        unlabelled: value of a scribble where nothing is drawn; mode "scribble" needs it.

    Raises:
        UserError: an unknown option; an image with a broken affine (names the file).

    Example:
        >>> to_frame = SamInputd(["image", "label"], image_size=512, mode=["bilinear", "nearest"])
        >>> to_frame({"image": image, "label": label})["image"].shape  # of [1, 320, 260, 24] voxels
        torch.Size([1, 512, 416, 24])
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_size: int,
        mode: str | Sequence[str] = "bilinear",
        slice_axis: str | None = None,
        allow_missing_keys: bool = False,
        unlabelled: int | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_size, self.unlabelled = int(image_size), unlabelled
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.slice_axis = slice_axis
        if self.image_size < 1:
            raise UserError(f"image_size is {image_size}; give the pixels of the longer side, 1 or more")
        if unknown := set(self.mode) - {"bilinear", "nearest", "scribble"}:
            raise UserError(
                f"SamInputd mode {sorted(unknown)[0]!r} is unknown; choose 'bilinear', 'nearest' or 'scribble'"
            )
        if "scribble" in self.mode and unlabelled is None:
            raise UserError("SamInputd mode 'scribble' needs 'unlabelled', the value of pixels without a scribble")
        if slice_axis is not None and slice_axis not in DISPLAY_DIRECTIONS:
            raise UserError(f"slice_axis {slice_axis!r} is unknown; choose 'R', 'A', 'S' or null")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self._to_input_frame(d[key], mode, d.get(FRAME_EXTENT))
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._to_stored_grid(d[key])
        return d

    def _to_input_frame(self, image: Tensor, mode: str, wanted: Extent | None) -> MetaTensor:
        image = image if isinstance(image, MetaTensor) else MetaTensor(image)
        if image.ndim not in (3, 4):
            raise UserError(f"{_file(image)}: expected [C, X, Y, Z] or [C, W, H], got shape {tuple(image.shape)}")
        stored_affine = image.affine.numpy()
        affine = to_affine_nd(3, stored_affine)
        is_frame = image.ndim == 3
        volume = image.as_tensor()[..., None] if is_frame else image.as_tensor()
        shape = tuple(volume.shape[1:])
        layout = FRAME_LAYOUT if is_frame else self._volume_layout(image, affine)

        upright = volume.permute(0, *(axis + 1 for axis in layout.order))
        upright = upright.flip([axis + 1 for axis in range(3) if layout.flips[axis]])
        old_size = (upright.shape[1], upright.shape[2])
        spacing = np.ones(3) if is_frame else nib.affines.voxel_sizes(affine)[list(layout.order)]
        own = (old_size[0] * spacing[0], old_size[1] * spacing[1])
        extent = choose_extent(own, None if is_frame else wanted)
        new_size = input_plane_size(old_size, spacing[:2].tolist(), self.image_size, max(extent))
        if mode == "nearest":
            planes = resize_labels(upright, new_size)
        elif mode == "scribble" and self.unlabelled is not None:
            planes = resize_scribble(upright.permute(0, 3, 1, 2), new_size, self.unlabelled).permute(0, 2, 3, 1)
        else:
            planes = resize_planes(upright, new_size, mode, antialias=True)

        out = MetaTensor(planes, meta=deepcopy(image.meta), applied_operations=deepcopy(image.applied_operations))
        out.affine = torch.as_tensor(affine @ layout.to_stored_index(shape) @ _scale_index(old_size, new_size))
        out.meta["plane_size"] = old_size
        out.meta["slice_axis"] = layout.slice_axis
        out.meta["frame_size"] = input_plane_size((1, 1), extent, self.image_size)
        if not is_frame:
            out.meta["plane_extent"], out.meta[FRAME_EXTENT] = choose_extent(own, None), extent
        return self.push_transform(
            out,
            orig_size=tuple(image.shape[1:]),
            extra_info={
                "mode": "nearest" if mode == "scribble" else mode,
                "order": layout.order,
                "flips": tuple(int(flip) for flip in layout.flips),
                "plane_size": old_size,
                "is_frame": int(is_frame),
                "stored_affine": torch.as_tensor(stored_affine.copy()),
            },
        )

    def _volume_layout(self, image: MetaTensor, affine: np.ndarray) -> Layout:
        try:
            return find_layout(image.shape[1:], affine, self.slice_axis)
        except UserError as error:
            raise UserError(f"{_file(image)}: {error}") from None

    def _to_stored_grid(self, image: MetaTensor) -> MetaTensor:
        applied = self.pop_transform(image)[TraceKeys.EXTRA_INFO]
        order = [int(axis) for axis in applied["order"]]
        flips = [axis + 1 for axis in range(3) if int(applied["flips"][axis])]
        height, width = (int(side) for side in applied["plane_size"])
        upright = resize_planes(image.as_tensor(), (height, width), applied["mode"], antialias=False)
        volume = upright.flip(flips).permute(0, *(order.index(axis) + 1 for axis in range(3)))
        if int(applied["is_frame"]):
            volume = volume[..., 0]

        meta = {name: value for name, value in image.meta.items() if name not in ("affine", *_OF_THE_FRAME)}
        out = MetaTensor(
            volume.contiguous(),
            affine=torch.as_tensor(applied["stored_affine"]),
            meta=deepcopy(meta),
            applied_operations=image.applied_operations,
        )
        return out


def _file(image: MetaTensor) -> str:
    return str(image.meta.get("filename_or_obj", "image"))
