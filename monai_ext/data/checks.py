"""What only the pixels can tell: images and labels are read once before a run, and mistakes are named early.

Each check is a function of its own, on the few facts that are kept of a file. :mod:`monai_ext.data.doctor` asks the
same functions, and goes on where a run stops.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_ext.data.file_error import FileError
from monai_ext.data.images import Geometry, read_geometry, read_image, read_label
from monai_ext.errors import UserError

TOLERANCE = 1e-3  # of spacing and origin in mm, and of direction cosines
PART_OF_A_VOXEL = 0.05  # spacing and origin of voxels below 20 micrometres may not differ by more


@dataclass(frozen=True)
class GridDifference:
    """The first property in which a label's grid differs from its image's.

    Args:
        name: "kind" (a frame and a volume), "shape", "unit" (the numbers agree, the units that the headers state do
            not), "spacing", "origin" or "direction".
        of_image: the image's, in words.
        of_label: the label's.
    """

    name: str
    of_image: str
    of_label: str


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

    A line on stderr names the references that hold the value to be ignored: methods take it for background there.

    Args:
        pairs: from :func:`monai_ext.data.pairs.pair_with_reference` or
            :func:`~monai_ext.data.pairs.single_images`; ``label`` is checked where there is one.
        labels: value of each structure that label maps may hold.
        ignore: value that they may hold besides.
        asked: names of the structures that each reference must hold (default: all).

    Raises:
        UserError: a file is not readable, an image is constant or its grid not usable, a label's grid differs
            from its image's, a label holds an unknown value, or a reference lacks a structure.
    """
    asked = list(labels) if asked is None else asked
    known = {0, *labels.values()} | ({ignore} if ignore is not None else set())
    undecided: dict[str, str] = {}
    with tqdm(total=_count_files(pairs), desc="checking images", unit="file") as bar:
        files = _CheckedFiles(known, bar)
        for pair in pairs:
            present: set[int] = set()
            for name, image, label in _references(pair):
                with _naming(name):
                    check_same_grid(image, files.image(image), label, files.label(label).geometry)
                present |= files.label(label).values
                if ignore in files.label(label).values:
                    undecided.setdefault(label, name)
            if pair.get("reference_image"):
                check_reference(pair, present, {name: labels[name] for name in asked})
            with _naming(pair["case"]):
                _check_target(pair, files)
    if undecided:
        (label, name), *others = undecided.items()
        more = f" (and {len(others)} more)" if others else ""
        print(
            f"warning: {label}: reference {name!r} holds {ignore}, the data list's 'ignore' value{more}; it counts as "
            "background in a reference: give one whose slices are annotated whole",
            file=sys.stderr,
        )


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
    for reference in pair.get("reference_image", ()):
        check_same_kind(image, geometry, reference, files.image(reference))
    if label is not None:
        check_same_grid(image, geometry, label, files.label(label).geometry)


def check_image(path: str) -> Geometry:
    """Check that an image can be read, is not constant and lies on a usable grid.

    Raises:
        UserError: it does not.
    """
    image = read_image(path, with_sha256=True)
    geometry = read_geometry(path)
    check_affine(path, geometry)
    if image.min() == image.max():
        raise FileError(
            path, "constant_image", f"the image is constant (every value is {image.min():g})", "export it again"
        )
    return geometry


def check_label(path: str, known: Collection[int]) -> LabelFacts:
    """Check that a label map can be read and holds known values only.

    Raises:
        UserError: it does not.
    """
    values = frozenset(count_values(read_label(path, with_sha256=True)))
    check_values(path, values, known)
    return LabelFacts(read_geometry(path), values)


def count_values(label: np.ndarray) -> dict[int, int]:
    """Count how often each value stands in a label map of whole numbers, plane by plane to save memory."""
    counts: Counter[int] = Counter()
    for plane in np.moveaxis(label, -1, 0) if label.ndim > 2 else [label]:
        if plane.size and plane.min() >= 0 and plane.max() < 2**16:  # several times faster than a sort
            found = np.bincount(plane.ravel())
            values, numbers = np.flatnonzero(found), found[found > 0]
        else:
            values, numbers = np.unique(plane, return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return dict(sorted(counts.items()))


def check_values(path: str, values: Collection[int], known: Collection[int]) -> None:
    """Check that a label map holds known values only.

    Raises:
        UserError: it does not.
    """
    unknown = sorted(set(values) - set(known))
    if unknown:
        what = f"the label holds {_enumerate(unknown)}, but the data list knows only {_enumerate(sorted(known))}"
        raise FileError(
            path, "unknown_label_value", what, "name the value in 'labels' or 'ignore', or correct the file"
        )


def check_affine(path: str, geometry: Geometry) -> None:
    """Check that a volume's axes have a length and stand upright on each other.

    Raises:
        UserError: a spacing is 0, or the affine is sheared.
    """
    if geometry.affine is None or geometry.spacing is None:
        return
    spacing = np.array(geometry.spacing)
    if (spacing <= 0).any():
        what = f"the affine gives a spacing of {_grid(spacing)} mm"
        raise FileError(path, "zero_spacing", what, "correct the file's sform")
    directions = geometry.affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > TOLERANCE:
        fix = "correct the sform (or set its code to 0, so that the qform counts) or resample the image"
        raise FileError(path, "sheared", "the affine is sheared, its axes are not at right angles", fix)


def check_same_grid(image: str, image_geometry: Geometry, label: str, label_geometry: Geometry) -> None:
    """Check that a label lies voxel by voxel on its image.

    Raises:
        UserError: shape, spacing, origin or direction differ, the last three by more than 1e-3.
    """
    difference = grid_difference(image_geometry, label_geometry)
    if difference is not None:
        fix = "correct the header that is wrong" if difference.name == "unit" else "resample the label onto the image"
        raise UserError(
            f"{label}: label grid differs from image grid: {difference.name} {difference.of_label}, "
            f"but {difference.of_image} in {image}; {fix}"
        )


def grid_difference(image: Geometry, label: Geometry) -> GridDifference | None:
    """Compare two grids: shapes exactly, spacing and origin to 1e-3 mm, directions to 1e-3 of a cosine.

    A label whose header states no unit is read in its image's: see :func:`on_image`.
    """
    label = on_image(image, label)
    difference = _first_difference(image, label)
    if (
        difference is not None
        and image.unit != label.unit
        and _first_difference(image, label.read_in(image.unit)) is None
    ):
        return GridDifference("unit", image.unit, label.unit)
    return difference


def on_image(image: Geometry, label: Geometry) -> Geometry:
    """Return a label's geometry in the unit of its image where its own header states none, as many tools write it."""
    return label.read_in(image.unit) if label.unit == "unknown" and image.unit != "unknown" else label


def _first_difference(image: Geometry, label: Geometry) -> GridDifference | None:
    if image.is_frame != label.is_frame:
        return GridDifference("kind", _kind(image), _kind(label))
    if image.shape != label.shape:
        return GridDifference("shape", _grid(image.shape), _grid(label.shape))
    of_lengths = min(TOLERANCE, PART_OF_A_VOXEL * min(image.spacing or (1.0,)))
    for name, a, b in zip(("spacing", "origin", "direction"), _properties(image), _properties(label), strict=False):
        if not np.abs(a - b).max() <= (TOLERANCE if name == "direction" else of_lengths):
            return GridDifference(name, _vector(a), _vector(b))
    return None


def _properties(grid: Geometry) -> list[np.ndarray]:
    """Spacing, origin and direction cosines of a volume; nothing of a frame."""
    if grid.affine is None or grid.spacing is None:
        return []
    spacing = np.array(grid.spacing)
    return [spacing, grid.affine[:3, 3], (grid.affine[:3, :3] / spacing).ravel()]


def grids_overlap(one: Geometry, other: Geometry) -> bool:
    """Tell whether the other volume's field of view, as a box in the first one's axes, meets the first one's.

    Frames lie nowhere and are never apart.
    """
    if one.affine is None or other.affine is None:
        return True
    return boxes_overlap(one.shape, one.affine, other.shape, other.affine)


def boxes_overlap(
    shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray
) -> bool:
    """Do the same for grids given as the shape [X, Y, Z] and the affine to RAS+ mm."""
    corners = np.array(np.meshgrid(*[[-0.5, n - 0.5] for n in other_shape], indexing="ij")).reshape(3, -1)
    to_first = np.linalg.inv(affine) @ other_affine
    box = to_first[:3, :3] @ corners + to_first[:3, 3:]
    return bool(np.all(box.max(axis=1) > -0.5) and np.all(box.min(axis=1) < np.array(shape) - 0.5))


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
    keys = ("reference", "reference_image", "reference_label")
    return list(zip(*(pair.get(key, ()) for key in keys), strict=True))


def _count_files(pairs: Sequence[Mapping[str, Any]]) -> int:
    images = {file for pair in pairs for file in (pair["image"], *pair.get("reference_image", ()))}
    labels = {file for pair in pairs for file in (pair.get("label"), *pair.get("reference_label", ()))} - {None}
    return len(images) + len(labels)


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
