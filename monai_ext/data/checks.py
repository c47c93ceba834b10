"""What only the pixels can tell: images and labels are read once before a run, and mistakes are named early.

Each check is a function of its own, on the few facts that are kept of a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_ext.data.images import Geometry, read_geometry, read_image, read_label
from monai_ext.errors import UserError

TOLERANCE = 1e-3  # of spacing and origin in mm, and of direction cosines


@dataclass(frozen=True)
class LabelFacts:
    """What is kept of a label map: its grid and the values in it."""

    geometry: Geometry
    values: frozenset[int]


def check_pairs(
    pairs: Sequence[Mapping[str, Any]],
    labels: Mapping[str, int],
    ignore: int | None = None,
    *,
    asked: Collection[str] | None = None,
) -> None:
    """Read every image and label of the pairs once, with a progress bar, and stop at the first mistake.

    Args:
        pairs: from :func:`monai_ext.data.pairs.pair_with_reference`; ``label`` is checked where there is one.
        labels: value of each structure that label maps may hold.
        ignore: value that they may hold besides.
        asked: names of the structures that each reference must hold (default: all).

    Raises:
        UserError: a file is not readable, an image is constant or its grid not usable, a label's grid differs
            from its image's, a label holds an unknown value, or a reference lacks a structure.
    """
    asked = list(labels) if asked is None else asked
    known = {0, *labels.values()} | ({ignore} if ignore is not None else set())
    with tqdm(total=_count_files(pairs), desc="checking images", unit="file") as bar:
        files = _CheckedFiles(known, bar)
        for pair in pairs:
            present: set[int] = set()
            for name, image, label in _references(pair):
                with _naming(name):
                    check_same_grid(image, files.image(image), label, files.label(label).geometry)
                present |= files.label(label).values
            check_reference(pair, present, {name: labels[name] for name in asked})
            with _naming(pair["case"]):
                _check_target(pair, files)


class _CheckedFiles:
    """Checks each file when it is first asked for, and remembers what it found."""

    def __init__(self, known: Collection[int], bar: tqdm) -> None:
        self._known = known
        self._bar = bar
        self._images: dict[str, Geometry] = {}
        self._labels: dict[str, LabelFacts] = {}

    def image(self, path: str) -> Geometry:
        if path not in self._images:
            self._images[path] = check_image(path)
            self._bar.update()
        return self._images[path]

    def label(self, path: str) -> LabelFacts:
        if path not in self._labels:
            self._labels[path] = check_label(path, self._known)
            self._bar.update()
        return self._labels[path]


def _check_target(pair: Mapping[str, Any], files: _CheckedFiles) -> None:
    image, label = pair["image"], pair.get("label")
    geometry = files.image(image)
    for reference in pair["reference_image"]:
        check_same_kind(image, geometry, reference, files.image(reference))
    if label is not None:
        check_same_grid(image, geometry, label, files.label(label).geometry)


def check_image(path: str) -> Geometry:
    """Check that an image can be read, is not constant and lies on a usable grid.

    Raises:
        UserError: it does not.
    """
    geometry = read_geometry(path)
    check_affine(path, geometry)
    image = read_image(path)
    if image.min() == image.max():
        raise UserError(f"{path}: the image is constant (every value is {image.min():g}); export it again")
    return geometry


def check_label(path: str, known: Collection[int]) -> LabelFacts:
    """Check that a label map can be read and holds known values only.

    Raises:
        UserError: it does not.
    """
    values = frozenset(np.unique(read_label(path)).tolist())
    unknown = sorted(values - set(known))
    if unknown:
        raise UserError(
            f"{path}: the label holds {_enumerate(unknown)}, but the data list knows only "
            f"{_enumerate(sorted(known))}; name the value in 'labels' or 'ignore', or correct the file"
        )
    return LabelFacts(read_geometry(path), values)


def check_affine(path: str, geometry: Geometry) -> None:
    """Check that a volume's axes have a length and stand upright on each other.

    Raises:
        UserError: a spacing is 0, or the affine is sheared.
    """
    if geometry.affine is None or geometry.spacing is None:
        return
    spacing = np.array(geometry.spacing)
    if (spacing <= 0).any():
        raise UserError(f"{path}: the affine gives a spacing of {_grid(spacing)} mm; correct the file's sform")
    directions = geometry.affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > TOLERANCE:
        raise UserError(
            f"{path}: the affine is sheared, its axes are not at right angles; "
            "correct the sform (or set its code to 0, so that the qform counts) or resample the image"
        )


def check_same_grid(image: str, image_geometry: Geometry, label: str, label_geometry: Geometry) -> None:
    """Check that a label lies voxel by voxel on its image.

    Raises:
        UserError: shape, spacing, origin or direction differ, the last three by more than 1e-3.
    """
    difference = _grid_difference(image_geometry, label_geometry)
    if difference is not None:
        name, of_image, of_label = difference
        raise UserError(
            f"{label}: label grid differs from image grid: {name} {of_label}, but {of_image} in {image}; "
            "resample the label onto the image"
        )


def check_same_kind(image: str, image_geometry: Geometry, reference: str, reference_geometry: Geometry) -> None:
    """Check that a frame is served by a frame, and a volume by a volume.

    Raises:
        UserError: they are not.
    """
    if image_geometry.is_frame != reference_geometry.is_frame:
        raise UserError(
            f"{image} is a {_kind(image_geometry)}, but its reference {reference} a "
            f"{_kind(reference_geometry)}; give two of a kind"
        )


def check_reference(pair: Mapping[str, Any], present: Collection[int], asked: Mapping[str, int]) -> None:
    """Check that each structure stands in at least one of the references.

    Args:
        pair: a target and its references.
        present: values in the references' label maps.
        asked: value of each structure that is to be segmented.

    Raises:
        UserError: one is in none of them.
    """
    for name, value in asked.items():
        if value not in present:
            files = ", ".join(pair["reference_label"])
            raise UserError(
                f"the reference of case {pair['case']!r} has no {name} (value {value}): {files}; "
                "annotate it there, choose another reference, or leave it out of the labels"
            )


def _references(pair: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return list(zip(pair["reference"], pair["reference_image"], pair["reference_label"], strict=True))


def _count_files(pairs: Sequence[Mapping[str, Any]]) -> int:
    images = {file for pair in pairs for file in (pair["image"], *pair["reference_image"])}
    labels = {file for pair in pairs for file in (pair.get("label"), *pair["reference_label"])} - {None}
    return len(images) + len(labels)


def _grid_difference(one: Geometry, other: Geometry) -> tuple[str, str, str] | None:
    """Name the first property in which two grids differ, and what it is in both."""
    if one.shape != other.shape:
        return "shape", _grid(one.shape), _grid(other.shape)
    if one.affine is None or other.affine is None or one.spacing is None or other.spacing is None:
        return None if one.is_frame == other.is_frame else ("kind", _kind(one), _kind(other))
    properties = {
        "spacing": (np.array(one.spacing), np.array(other.spacing)),
        "origin": (one.affine[:3, 3], other.affine[:3, 3]),
        "direction": (
            (one.affine[:3, :3] / one.spacing).ravel(),
            (other.affine[:3, :3] / other.spacing).ravel(),
        ),
    }
    for name, (a, b) in properties.items():
        if not np.abs(a - b).max() <= TOLERANCE:
            return name, _vector(a), _vector(b)
    return None


def _kind(geometry: Geometry) -> str:
    return "frame" if geometry.is_frame else "volume"


def _grid(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _vector(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _enumerate(values: Sequence[int]) -> str:
    """List at most ten values."""
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")


@contextmanager
def _naming(case: str) -> Iterator[None]:
    """Put the case in front of what is wrong with one of its files."""
    try:
        yield
    except UserError as error:
        raise UserError(f"case {case!r}: {error}") from error
