"""Several ROIs and segments on one grid: what is united, what is drawn over what, and what is refused.

Structures of one value are united: all of one file, and those of several files where they have no voxel in common
(lesions that were saved one by one). Files that draw the same place differently are two opinions, such as two
observers or a revision: nothing here can tell which one counts. Structures of a later value are drawn over those of
earlier ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.dicom.drawing import Drawing, grid_of
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.errors import UserError

Mask = NDArray[np.bool_]


def draw_label_map(
    drawings: Sequence[tuple[int, Drawing]], series: SeriesHeaders
) -> tuple[NDArray[np.uint8 | np.uint16], list[str]]:
    """Draw structures on the grid of a series.

    Args:
        drawings: value and ROI or segment, SEG before RTSTRUCT. Later values are drawn over earlier ones.
        series: whose grid it is.

    Returns:
        Label map [X, Y, Z], and what was passed over, united or drawn over, in sentences.

    Raises:
        UserError: a structure does not fit the series or encloses no voxel, or two files draw it differently.
    """
    _, shape = grid_of(series)
    label = np.zeros(shape, dtype=np.uint8 if max(value for value, _ in drawings) < 256 else np.uint16, order="F")
    notes, covered = list[str](), 0
    groups: dict[int, list[Drawing]] = {}
    for value, drawing in drawings:
        groups.setdefault(value, []).append(drawing)
    for value, group in groups.items():
        mask = _unite(group, series, notes)
        covered += int(np.count_nonzero(label[mask]))
        label[mask] = value
    if covered:
        notes.append(f"{covered} voxels belong to several structures; the one named last has them")
        notes += _hidden(label, groups)
    return label, notes


def _unite(group: Sequence[Drawing], series: SeriesHeaders, notes: list[str]) -> Mask:
    """Draw the structures of one value; in ``owner``, voxels have the number of the file that draws them, from 1."""
    of_file: dict[Path, list[Drawing]] = {}
    for drawing in group:
        of_file.setdefault(drawing.file.path, []).append(drawing)
    owner = np.zeros(grid_of(series)[1], dtype=np.uint16, order="F")
    united: list[list[Drawing]] = []
    for drawings in of_file.values():
        mask = _draw_file(drawings, series, notes)
        met = [number for number in np.unique(owner[mask]).tolist() if number]
        if not met:
            united.append(drawings)
            owner[mask] = len(united)
        else:
            earlier = [united[number - 1] for number in met]
            notes.append(_same_structure(drawings, mask, earlier, np.isin(owner, met)))
    names = [name for drawings in united for name in _call(drawings, len(united) > 1)]
    if len(names) > 1:
        notes.append(f"{', '.join(names)} are united")
    return owner > 0


def _draw_file(drawings: Sequence[Drawing], series: SeriesHeaders, notes: list[str]) -> Mask:
    masks = []
    for drawing in drawings:
        mask, own = drawing.draw(series)
        notes += [f"{drawing.where}: {note}" for note in own]
        if not mask.any():
            raise UserError(f"{drawing.where} encloses no voxel of the series; look at it in a viewer, or leave it out")
        masks.append(mask)
    united = masks[0]
    for mask in masks[1:]:
        united |= mask
    return united


def _same_structure(drawings: Sequence[Drawing], mask: Mask, earlier: Sequence[Sequence[Drawing]], there: Mask) -> str:
    """Say that a file draws what others have drawn before, in a SEG or RTSTRUCT; refuse another drawing of it."""
    path, first, name = drawings[0].file.path, earlier[0][0].file.path, drawings[0].name
    taken = f"{path}: {name} of the same series is taken from {first}"
    if np.array_equal(mask, there):
        return f"{taken}, which has the same voxels"
    if drawings[0].kind != earlier[0][0].kind and _differ_at_the_border(mask, there):
        return f"{taken}, which is a {earlier[0][0].kind}; they differ by a voxel at the border at most"
    common, only, other = (int(np.count_nonzero(part)) for part in (mask & there, mask & ~there, there & ~mask))
    files = " and ".join(str(one[0].file.path) for one in earlier)
    raise UserError(
        f"{files} and {path} draw {name!r} differently on one series ({common} voxels are in both, {other} and {only} "
        "in one): two observers, or a revision; remove the file that does not count"
    )


def _differ_at_the_border(one: Mask, other: Mask) -> bool:
    """Tell whether each of two masks [X, Y, Z] lies within the other one grown by a voxel in every direction."""
    (box,) = ndimage.find_objects((one | other).astype(np.uint8))
    one, other = np.pad(one[box], 1), np.pad(other[box], 1)
    around = np.ones((3, 3, 3), dtype=bool)
    return all(
        not (inner & ~ndimage.binary_dilation(outer, around)).any() for inner, outer in ((one, other), (other, one))
    )


def _call(drawings: Sequence[Drawing], with_file: bool) -> list[str]:
    """Name structures of one file, by number too where two have one name."""
    counts = Counter(drawing.name for drawing in drawings)
    names = []
    for drawing in drawings:
        details = [f"number {drawing.number}"] if counts[drawing.name] > 1 else []
        details += [str(drawing.file.path)] if with_file else []
        names.append(repr(drawing.name) + (f" ({', '.join(details)})" if details else ""))
    return names


def _hidden(label: NDArray[np.uint8 | np.uint16], groups: dict[int, list[Drawing]]) -> list[str]:
    there = set(np.flatnonzero(np.bincount(label.ravel(order="K"))).tolist())
    return [
        f"{', '.join(_call(group, False))} is covered to the last voxel by structures named after it; name it last"
        for value, group in groups.items()
        if value not in there
    ]
