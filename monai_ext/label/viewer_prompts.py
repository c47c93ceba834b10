"""Reads the ``roi`` and the points of a viewer's request as prompts, by structure and slice.

Indices are those of the image's file, as viewers send them. They are carried to the input frame through scanner
coordinates, as the clicks of every other bundle are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.prompts.prompt import Prompt
from monai_ext.transforms.sam_input import input_box, input_points

Place = tuple[str, int]
"""A structure and a slice of the input frame."""


def read_prompts(params: Mapping[str, Any], image: MetaTensor, labels: Iterable[str]) -> dict[Place, Prompt]:
    """Read the prompts of a request: one for each structure and slice, points and box of the same place together.

    Args:
        params: ``roi``: [i0, i1, j0, j1, k0, k1], of a frame [i0, i1, j0, j1], the ends in any order, a box on each of
            its slices; ``foreground`` and ``background``: voxel indices, one list each; a structure's name: more
            foreground, for this one; ``structure`` or ``label``: whose ``roi`` and ``foreground`` are; without it the
            first structure's.
        image: [C, H, W, D] in the input frame.
        labels: names of the structures.

    Raises:
        UserError: there is no prompt, it lies outside of the image, or is something else.
    """
    names = list(labels)
    structure = _structure(params, names)
    positive: dict[Place, list[Tensor]] = {}
    for name in names:
        clicks = _clicks(params, name) + (_clicks(params, "foreground") if name == structure else [])
        _sort(positive, name, clicks, image)
    negative: dict[Place, list[Tensor]] = {}
    asked = {name for name, _ in positive} | {structure}
    for name in names:
        _sort(negative, name, _clicks(params, "background") if name in asked else [], image)
    boxes = _boxes(params.get("roi"), structure, image)
    places = sorted({*positive, *boxes}, key=lambda place: (names.index(place[0]), place[1]))
    if not places:
        raise UserError("there is no prompt: draw a box (roi) or click into the structure (foreground).")
    return {
        place: Prompt.from_points(_points(positive.get(place)), _points(negative.get(place)), boxes.get(place))
        for place in places
    }


def _structure(params: Mapping[str, Any], names: Sequence[str]) -> str:
    asked = params.get("structure") or None
    if asked is None and params.get("label") in names:
        asked = params["label"]
    if asked is not None and asked not in names:
        raise UserError(f"structure {asked!r} is unknown: these are {', '.join(names)}.")
    return names[0] if asked is None else str(asked)


def _clicks(params: Mapping[str, Any], name: str) -> list[list[float]]:
    given = params.get(name) or []
    fits = isinstance(given, (list, tuple)) and all(isinstance(one, (list, tuple)) and _numbers(one) for one in given)
    if not fits:
        raise UserError(f"{name} is {given!r}: give voxel indices, [[i, j, k], ...].")
    return [list(one) for one in given]


def _numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _sort(found: dict[Place, list[Tensor]], name: str, clicks: list[list[float]], image: MetaTensor) -> None:
    if not clicks:
        return
    points, slices = input_points(image, clicks)
    for point, k in zip(torch.as_tensor(points).float(), slices.tolist(), strict=True):
        found.setdefault((name, int(k)), []).append(point)


def _boxes(roi: Any, structure: str, image: MetaTensor) -> dict[Place, Tensor]:
    """Carry the corners of a roi, cut off at the image's border, to a box on each of its slices."""
    if not isinstance(roi, (list, tuple)) or not roi:
        if roi:
            raise UserError(f"roi is {roi!r}: give numbers, [i0, i1, j0, j1, k0, k1].")
        return {}
    shape = [int(side) for side in image.meta["spatial_shape"]][: 3 if image.meta.get("slice_axis") else 2]
    if len(roi) < 2 * len(shape) or not _numbers(roi):
        raise UserError(f"roi is {list(roi)}: give two numbers for each of the image's {len(shape)} axes.")
    ends = [sorted(float(end) for end in roi[2 * axis : 2 * axis + 2]) for axis in range(len(shape))]
    if any(high < 0 or low > side - 1 for (low, high), side in zip(ends, shape, strict=True)):
        raise UserError(f"roi {list(roi)} lies outside of the image: give voxel indices of this image.")
    cut = [(max(low, 0.0), min(high, side - 1.0)) for (low, high), side in zip(ends, shape, strict=True)]
    box, (first, last) = input_box(image, *zip(*cut, strict=True))
    return {(structure, k): torch.tensor(box) for k in range(first, last + 1)}


def _points(found: list[Tensor] | None) -> Tensor:
    return torch.stack(found) if found else torch.zeros(0, 2)
