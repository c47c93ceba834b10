"""Which slice of the reference serves which slice of the target.

* ``position``: the reference slice nearest in scanner coordinates, of two equally near ones the first. Slices that the
  reference does not reach have none.
* ``relative``: the slice at the same relative height of the volume, for visits whose coordinates do not agree.
* ``oracle_centre``: the authors' rule for 4D-Lung, which aligns the centres of the two structures. It knows which
  slices of the target hold the structure: oracle knowledge, only for repeating the paper.
* ``middle``: the middle one of the annotated slices serves the whole volume. The few-shot protocol EP2: one support
  slice, and nothing is known of the target.
* ``chunks``: three annotated slices, at 1/6, 1/2 and 5/6 of the annotated ones, serve the three thirds of the slices of
  the target that hold the structure; all others have none. The few-shot protocol EP1 (SSL-ALPNet, Ouyang et al. 2020);
  oracle knowledge, only for repeating it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from monai_ext.data.checks import boxes_overlap, grids_overlap
from monai_ext.data.images import read_geometry, read_label
from monai_ext.errors import UserError
from monai_ext.prompts.ties import first_minimum
from monai_ext.transforms.sam_input import slice_positions, to_display

Range = tuple[int, int] | None
"""First and last slice; None: not known."""
Held = Sequence[int] | None
"""Slices, ascending; None: not known."""

LARGEST_TILT = 20.0
"""Degrees between the slices of two visits above which positions are no longer comparable slice by slice."""
OTHER_DIRECTION = 80.0
"""Degrees between slices above which they are no views of one kind: an axial slice serves no coronal one. Below, they
may be: public copies of short-axis hearts often have lost their tilt, of up to 70 degrees."""
SAME_DISTANCE_MM = 1e-3
"""Slices whose distances differ by no more are equally near; headers hold positions to about 1e-4 mm."""


def match_slices(
    target: MetaTensor,
    reference: MetaTensor,
    rule: str = "position",
    reference_slices: Sequence[int] | None = None,
    target_slices: tuple[int, int] | None = None,
) -> list[int | None]:
    """Give each slice of the target its slice of the reference.

    Args:
        target: [C, H, W, D] in the input frame, with its affine.
        reference: likewise; D may differ.
        rule: one of :data:`RULES`.
        reference_slices: slices of the reference that hold the structure, ascending (``oracle_centre``, ``middle``,
            ``chunks``).
        target_slices: first and last slice of the target that do (``oracle_centre``, ``chunks``).

    Returns:
        For each target slice an index along the reference's D, or None where no reference slice corresponds.

    Raises:
        UserError: for an unknown rule, volumes cut in different directions or apart in space (``position``), or
            missing oracle knowledge (``oracle_centre``).
    """
    check_rule(rule)
    tilt = _tilt(target, reference)
    if tilt > OTHER_DIRECTION:
        raise UserError(
            f"{_file(target)} is cut at {tilt:.0f} degrees to its reference {_file(reference)}, so no slice of one "
            "looks like one of the other: cut both orthogonal to one axis with --slice_axis (R, A or S), or choose "
            "another reference."
        )
    return RULES[rule](target, reference, reference_slices, target_slices)


def check_rule(rule: str) -> None:
    """Refuse a rule that is none of :data:`RULES`.

    Raises:
        UserError: names those there are.
    """
    if rule not in RULES:
        raise UserError(f"slice_match {rule!r} is unknown: choose one of {', '.join(RULES)}.")


def _tilt(target: MetaTensor, reference: MetaTensor) -> float:
    """Return the degrees between the slices of two volumes; 0 for frames."""
    if _is_frame(target) or _is_frame(reference):
        return 0.0
    normals = [slice_positions(image)[1] for image in (target, reference)]
    return float(np.degrees(np.arccos(np.clip(abs(normals[0] @ normals[1]), 0, 1))))


def _by_position(
    target: MetaTensor, reference: MetaTensor, reference_slices: Held = None, target_slices: Range = None
) -> list[int | None]:
    """Find the reference slice nearest in scanner coordinates, within half a slice's thickness; frames have none."""
    if target.shape[-1] == reference.shape[-1] == 1 and _is_frame(target):
        return _by_height(target, reference)
    centres, _ = slice_positions(target)
    reference_centres, reference_normal = slice_positions(reference)
    tilt = _tilt(target, reference)
    if tilt > LARGEST_TILT:
        raise UserError(
            f"{_file(target)} is cut at {tilt:.0f} degrees to its reference {_file(reference)}: resample one onto the "
            "other's grid, or choose --slice_match relative."
        )
    geometry = [(image.shape[-3:], np.asarray(image.affine, float)) for image in (target, reference)]
    if not boxes_overlap(*geometry[0], *geometry[1]):
        raise _apart(_file(target), _file(reference))
    heights = reference_centres @ reference_normal
    reach = max(_thickness(reference), _thickness(target)) / 2 * 1.001
    matches: list[int | None] = []
    for height in centres @ reference_normal:
        distances = np.abs(heights - height)
        nearest = int(first_minimum(torch.from_numpy(distances), tolerance=SAME_DISTANCE_MM))
        matches.append(nearest if distances[nearest] <= reach else None)
    if all(match is None for match in matches):
        raise UserError(
            f"no slice of {_file(target)} lies within the slices of its reference {_file(reference)}: match slices by "
            "relative height with --slice_match relative."
        )
    return matches


def _by_height(
    target: MetaTensor, reference: MetaTensor, reference_slices: Held = None, target_slices: Range = None
) -> list[int | None]:
    """Find the slice at the same relative height."""
    depth, reference_depth = target.shape[-1], reference.shape[-1]
    return [int((2 * k + 1) * reference_depth / (2 * depth)) for k in range(depth)]


def _by_centre(
    target: MetaTensor, reference: MetaTensor, reference_slices: Held = None, target_slices: Range = None
) -> list[int | None]:
    """Align the centres of the slices that hold the structure."""
    if reference_slices is None or target_slices is None:
        raise UserError(
            f"{_file(target)}: slice_match oracle_centre needs to know which slices of the target hold the structure: "
            "overlay configs/oracle_centre.yaml on evaluate.yaml, or choose --slice_match position."
        )
    first, last = reference_slices[0], reference_slices[-1]
    target_first, target_last = target_slices
    n_reference, n_target = last - first + 1, target_last - target_first + 1
    matches: list[int | None] = [None] * target.shape[-1]
    for k in range(n_target):
        aligned = n_reference // 2 - (n_target // 2 - k)
        matches[target_first + k] = first + min(max(aligned, 0), n_reference - 1)
    return matches


def _by_middle(
    target: MetaTensor, reference: MetaTensor, reference_slices: Held = None, target_slices: Range = None
) -> list[int | None]:
    """Take the middle annotated slice for all; a reference without any serves none."""
    return [middle_slice(reference_slices)] * target.shape[-1]


def middle_slice(slices: Held) -> int | None:
    """Return the middle one of annotated slices, of two the later; None where there is none."""
    return slices[len(slices) // 2] if slices else None


CHUNKS = 3
"""Parts of the range that holds the structure, each with a support slice of its own (EP1)."""


def _by_chunk(
    target: MetaTensor, reference: MetaTensor, reference_slices: Held = None, target_slices: Range = None
) -> list[int | None]:
    """Divide the slices that hold the structure into chunks, and take the slice in the middle of the support's."""
    if target_slices is None:
        raise UserError(
            f"{_file(target)}: slice_match chunks needs to know which slices of the target hold the structure: overlay "
            "configs/ep1.yaml on evaluate.yaml, or choose --slice_match middle."
        )
    if not reference_slices:
        return [None] * target.shape[-1]
    count = len(reference_slices)
    supports = [reference_slices[(2 * k + 1) * count // (2 * CHUNKS)] for k in range(CHUNKS)]
    first, last = target_slices
    matches: list[int | None] = [None] * target.shape[-1]
    for k in range(first, last + 1):
        chunk = CHUNKS * (k - first) // max(last - first, 1)
        matches[k] = supports[min(chunk, CHUNKS - 1)]
    return matches


Rule = Callable[[MetaTensor, MetaTensor, Held, Range], list[int | None]]

RULES: dict[str, Rule] = {
    "position": _by_position,
    "relative": _by_height,
    "oracle_centre": _by_centre,
    "middle": _by_middle,
    "chunks": _by_chunk,
}
"""Rules by name; the arguments are those of :func:`match_slices`. A further rule is a further entry."""


def _thickness(image: MetaTensor) -> float:
    return float(nib.affines.voxel_sizes(np.asarray(image.affine, float).reshape(4, 4))[2])


def _apart(target: str, reference: str) -> UserError:
    return UserError(
        f"{target} and its reference {reference} do not overlap in space: check that both are of this patient, or "
        "match slices by relative height with --slice_match relative."
    )


def refuse_volumes_apart(pairs: Sequence[Mapping[str, Any]], rule: str) -> None:
    """Refuse, from the headers alone, targets whose references lie elsewhere in space (rule ``position``).

    Raises:
        UserError: names the case and both files.
    """
    if rule != "position":
        return
    for pair in pairs:
        target = read_geometry(pair["image"])
        for path in pair.get("reference_image", ()):
            reference = read_geometry(path)
            if target.affine is None or reference.affine is None:
                continue
            if not grids_overlap(target, reference):
                raise _apart(f"case {pair['case']}: {pair['image']}", path)


def _is_frame(image: MetaTensor) -> bool:
    return image.meta.get("slice_axis") == ""


def _file(image: MetaTensor) -> str:
    return str(image.meta.get("filename_or_obj", "the image"))


def with_oracle_slices(
    pairs: Sequence[Mapping[str, Any]], slice_axis: str | None = None, labels: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Add ``oracle_slices``, the first and last slice that hold any structure, read from each target's label.

    For evaluations that repeat the authors' 4D-Lung protocol, or the few-shot protocol EP1; needs ``label`` in each
    pair, so no inference config can call it.

    Args:
        pairs: from :func:`monai_ext.data.pairs.with_labels`.
        slice_axis: "R", "A" or "S" where slices are cut orthogonal to it, as in ``SamInputd``.
        labels: name -> value of the structures that count; None: all.

    Raises:
        UserError: for a label without these; or, with ``labels``, for several, each of which has a range of its own,
            and for a support that shows the structure on fewer than :data:`CHUNKS` slices.
    """
    if labels is not None and len(labels) > 1:
        raise UserError(
            f"the protocol EP1 is of one structure, and {len(labels)} are asked for: name one, --labels \"['NAME']\"."
        )
    if labels is not None:
        _refuse_few_slices(pairs, slice_axis, labels)
    known = []
    for pair in pairs:
        held = _held(pair["label"], slice_axis, labels)
        if not len(held):
            what = "is empty" if labels is None else f"holds no {' or '.join(labels)}"
            raise UserError(
                f"case {pair['case']}: {pair['label']} {what}, so it has no range of slices: leave the case out."
            )
        known.append({**pair, "oracle_slices": [int(held[0]), int(held[-1])]})
    return known


def _refuse_few_slices(pairs: Sequence[Mapping[str, Any]], slice_axis: str | None, labels: Mapping[str, int]) -> None:
    """Refuse supports of which one slice would serve several chunks: that is not the protocol."""
    counted: dict[str, int] = {}
    for pair in pairs:
        for path in pair.get("reference_label", ()):
            if path not in counted:
                counted[path] = len(_held(path, slice_axis, labels))
            if 0 < counted[path] < CHUNKS:
                slices = "1 slice" if counted[path] == 1 else f"{counted[path]} slices"
                raise UserError(
                    f"case {pair['case']}: its support {path} shows {' or '.join(labels)} on {slices}, and the "
                    f"protocol EP1 takes {CHUNKS}: name {CHUNKS}, --support CASE:9,14,19, or a CASE with more "
                    "annotated slices."
                )


def _held(label: str, slice_axis: str | None, labels: Mapping[str, int] | None) -> np.ndarray:
    """Return the slices of a label, as the network cuts them, that show any of the structures; None: any value."""
    upright = to_display(read_label(label), read_geometry(label).affine, slice_axis)
    shown = upright > 0 if labels is None else np.isin(upright, list(labels.values()))
    return np.flatnonzero(shown.any(axis=(0, 1)))
