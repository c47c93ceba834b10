"""Scribbles drawn by a program from dense labels, for data sets that nobody has scribbled on.

Two kinds, both kept inside the structure: ``skeleton`` runs along its middle (a part of the longest path of the medial
axis), ``stroke`` wanders from one inner place to another, which is nearer to what people draw. Both leave most of the
structure unlabelled. A background scribble is a loop, or a part of one, around all structures of the slice. How they
differ from scribbles drawn by hand is measured in ``benchmarks/scribbles.py``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from skimage.graph import route_through_array
from skimage.morphology import skeletonize

Mask = NDArray[np.bool_]
Range = tuple[float, float]

KINDS = ("skeleton", "stroke")
_EIGHT = np.ones((3, 3), dtype=bool)
_STEPS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 2**0.5), (1, -1, 2**0.5))


def skeleton_scribble(mask: Mask, rng: np.random.Generator, share: Range = (0.6, 1.0)) -> Mask:
    """Draw a one-pixel line along the middle of every piece of a mask.

    Rings are cut open at a random angle first, so that the line may run nearly around.

    Args:
        mask: [H, W].
        rng: source of randomness.
        share: the part of the longest path of the medial axis that is kept is drawn from this range.

    Returns:
        [H, W], inside the mask, at least one pixel for each piece.
    """
    return _on_pieces(mask, lambda piece: _skeleton_line(piece, rng, share))


def stroke_scribble(mask: Mask, rng: np.random.Generator, waypoints: int = 7, depth: float = 1.0) -> Mask:
    """Draw a one-pixel line through random inner places of every piece of a mask.

    Args:
        mask: [H, W].
        rng: source of randomness.
        waypoints: places that the line visits, drawn with a probability that grows with the distance to the border.
        depth: how much the line keeps away from the border: a step at relative depth r costs r^-depth.

    Returns:
        [H, W], inside the mask, at least one pixel for each piece.
    """
    return _on_pieces(mask, lambda piece: _stroke_line(piece, rng, waypoints, depth))


def background_scribble(
    foreground: Mask, rng: np.random.Generator, margin: Range = (0.3, 0.8), share: Range = (0.8, 1.0)
) -> Mask:
    """Draw a one-pixel loop, or a part of one, around all structures.

    Args:
        foreground: [H, W], the union of the structures, not empty.
        rng: source of randomness.
        margin: distance to the structures as a share of the square root of their area; it varies along the loop between
            two draws from this range.
        share: the part of the loop that is kept is drawn from this range.

    Returns:
        [H, W], outside the structures; cut off where it would leave the image.
    """
    distance = ndimage.distance_transform_edt(~foreground)
    rows, columns = np.mgrid[: foreground.shape[0], : foreground.shape[1]]
    centre = [float(np.mean(index[foreground])) for index in (rows, columns)]
    angle = np.arctan2(rows - centre[0], columns - centre[1])
    phase = rng.uniform(-np.pi, np.pi)
    low, high = np.sort(rng.uniform(*margin, 2)) * np.sqrt(foreground.sum())
    wanted = np.maximum(low + (high - low) * (0.5 + 0.5 * np.cos(angle - phase)), 1.5)
    inside = ndimage.binary_fill_holes(distance < wanted)
    loop = inside & ~ndimage.binary_erosion(inside, _EIGHT, border_value=1)
    start, width = rng.uniform(-np.pi, np.pi), rng.uniform(*share) * 2 * np.pi
    return loop & ((angle - start) % (2 * np.pi) < width) & ~foreground


def simulate_scribble(
    label: NDArray[np.integer],
    values: Sequence[int],
    unlabelled: int,
    rng: np.random.Generator,
    kind: str = "stroke",
    width: int = 1,
    background: bool = True,
) -> NDArray[np.integer]:
    """Turn the dense label of one slice into a scribble.

    Args:
        label: [H, W], 0 background.
        values: of the structures that are scribbled on.
        unlabelled: value of all pixels without scribble; must be neither 0 nor a structure's.
        rng: source of randomness.
        kind: "skeleton" or "stroke".
        width: of the lines in pixels; a line never leaves its structure.
        background: draw a background scribble (value 0) where the slice holds a structure.

    Returns:
        [H, W] of the label's type: the structures' values, 0 for background scribbles, ``unlabelled``.
    """
    _check_settings(kind, unlabelled, values)
    draw = skeleton_scribble if kind == "skeleton" else stroke_scribble
    result = np.full_like(label, unlabelled)
    foreground = np.isin(label, values)
    if background and foreground.any():
        line = _widen(background_scribble(foreground, rng), width)
        result[line & (label == 0)] = 0
    for value in values:
        mask = label == value
        if mask.any():
            result[_widen(draw(mask, rng), width) & mask] = value
    return result


class SimulateScribblesd(MapTransform):
    """Draw a scribble from the dense label of a case, slice by slice; see :func:`simulate_scribble`.

    The scribble of a case depends on the seed and the case's name alone, not on the order of the cases.

    Args:
        keys: dense labels, [1, X, Y, Z] or [1, W, H] as stored.
        labels: value in the dense label of each structure.
        unlabelled: value of what has no scribble, the ``ignore`` value of the data list.
        output_keys: where the scribbles go, one a key; by default they replace the labels.
        kind: "skeleton" or "stroke".
        width: of the lines in pixels.
        background: draw background scribbles.
        slice_axis: axis of a volume, 0 to 2, that counts slices.
        seed: seeds every case together with its name (key ``case``).
        allow_missing_keys: let items without a key pass.

    Raises:
        ValueError: ``kind`` is unknown, or ``unlabelled`` is the value of background or a structure; when called,
            labels are of a type that cannot hold ``unlabelled``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Mapping[str, int],
        unlabelled: int,
        output_keys: KeysCollection | None = None,
        kind: str = "stroke",
        width: int = 1,
        background: bool = True,
        slice_axis: int = 2,
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys = self.keys if output_keys is None else ensure_tuple(output_keys)
        if len(self.output_keys) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys but {len(self.output_keys)} output keys")
        self.values = list(labels.values())
        _check_settings(kind, unlabelled, self.values)
        self.unlabelled, self.kind, self.width, self.background = unlabelled, kind, width, background
        self.slice_axis, self.seed = slice_axis, seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its scribbles, of the labels' type, shape and geometry."""
        item = dict(data)
        name = zlib.crc32(str(item.get("case", "")).encode())
        for key, output in self.key_iterator(item, self.output_keys):
            rng = np.random.default_rng([self.seed, name])
            tensor = torch.as_tensor(item[key])
            if torch.tensor(self.unlabelled).to(tensor.dtype).item() != self.unlabelled:
                raise ValueError(
                    f"{key!r} is {tensor.dtype}, which cannot hold {self.unlabelled}: choose another value"
                )
            scribble = torch.from_numpy(self._draw(tensor.numpy(force=True)[0], rng))[None].to(tensor)
            is_meta = isinstance(item[key], MetaTensor)
            item[output] = MetaTensor(scribble, meta=dict(item[key].meta)) if is_meta else scribble
        return item

    def _draw(self, label: NDArray[Any], rng: np.random.Generator) -> NDArray[np.integer]:
        whole = np.rint(label).astype(np.int64)
        axis = self.slice_axis if whole.ndim == 3 else None
        slices = [whole] if axis is None else np.moveaxis(whole, axis, 0)
        drawn = [
            simulate_scribble(plane, self.values, self.unlabelled, rng, self.kind, self.width, self.background)
            for plane in slices
        ]
        return drawn[0] if axis is None else np.ascontiguousarray(np.moveaxis(np.stack(drawn), 0, axis))


def _check_settings(kind: str, unlabelled: int, values: Sequence[int]) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    if unlabelled == 0 or unlabelled in values:
        raise ValueError(f"unlabelled is {unlabelled}, which is background or a structure: choose another value")


def _on_pieces(mask: Mask, draw: Callable[[Mask], Mask]) -> Mask:
    """Draw on each 8-connected piece of a mask, cropped for speed."""
    result = np.zeros_like(mask)
    pieces, _ = ndimage.label(mask, _EIGHT)
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        piece = np.pad(pieces[box] == number, 1)
        result[box] |= draw(piece)[1:-1, 1:-1]
    return result


def _skeleton_line(piece: Mask, rng: np.random.Generator, share: Range) -> Mask:
    path = _longest_path(skeletonize(_cut_open(piece, rng)))
    count = max(1, round(rng.uniform(*share) * len(path)))
    start = int(rng.integers(0, len(path) - count + 1))
    line = np.zeros_like(piece)
    line[tuple(path[start : start + count].T)] = True
    return line


def _cut_open(piece: Mask, rng: np.random.Generator) -> Mask:
    """Cut a piece with holes along a ray from each hole outwards, so that its medial axis has no loop."""
    holes, count = ndimage.label(ndimage.binary_fill_holes(piece) & ~piece)
    cut = piece.copy()
    for number in range(1, count + 1):
        centre = np.argwhere(holes == number).mean(axis=0)
        angle = rng.uniform(-np.pi, np.pi)
        steps = np.arange(0, sum(piece.shape), 0.5)[:, None]
        ray = np.rint(centre + steps * np.array([np.sin(angle), np.cos(angle)])).astype(int)
        ray = ray[(ray >= 0).all(axis=1) & (ray < piece.shape).all(axis=1)]
        line = np.zeros_like(piece)
        line[tuple(ray.T)] = True
        cut &= ~ndimage.binary_dilation(line)
    return cut if cut.any() else piece


def _longest_path(skeleton: Mask) -> NDArray[np.intp]:
    """Return the pixels [N, 2] of the longest shortest path through the largest part of a skeleton, in order."""
    parts, count = ndimage.label(skeleton, _EIGHT)
    largest = 1 + int(np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:]))
    pixels = np.argwhere(parts == largest)
    number = np.full(skeleton.shape, -1)
    number[tuple(pixels.T)] = np.arange(len(pixels))
    sources, targets, lengths = [], [], []
    for down, right, length in _STEPS:
        there = pixels + (down, right)
        inside = ((there >= 0) & (there < skeleton.shape)).all(axis=1)
        other = np.full(len(pixels), -1)
        other[inside] = number[tuple(there[inside].T)]
        linked = np.flatnonzero(other >= 0)
        sources.append(linked)
        targets.append(other[linked])
        lengths.append(np.full(len(linked), length))
    links = (np.concatenate(sources), np.concatenate(targets))
    graph = coo_array((np.concatenate(lengths), links), shape=(len(pixels), len(pixels))).tocsr()
    end = int(np.argmax(dijkstra(graph, directed=False, indices=0)))
    reach, before = dijkstra(graph, directed=False, indices=end, return_predecessors=True)
    path = [int(np.argmax(reach))]
    while path[-1] != end:
        path.append(int(before[path[-1]]))
    return pixels[path]


def _stroke_line(piece: Mask, rng: np.random.Generator, waypoints: int, depth: float) -> Mask:
    inner = ndimage.distance_transform_edt(piece)
    relative = inner / inner.max()
    weights = (relative**depth).ravel()
    drawn = rng.choice(weights.size, size=max(2, waypoints), p=weights / weights.sum())
    places = np.stack(np.unravel_index(drawn, piece.shape), axis=1)
    cost = np.where(piece, 1 / np.maximum(relative, 0.05) ** depth, -1)  # a negative cost is no way
    line = np.zeros_like(piece)
    for start, end in pairwise(places):
        path, _ = route_through_array(cost, start, end, fully_connected=True, geometric=True)
        line[tuple(np.array(path).T)] = True
    return line


def _widen(line: Mask, width: int) -> Mask:
    return ndimage.binary_dilation(line, np.ones((width, width), dtype=bool)) if width > 1 else line
