"""Checks of where voxels lie: grids of images and their label maps, affines, and visits in space."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from monai_ext.data.checks import GridDifference, check_affine, grid_difference, grids_overlap
from monai_ext.data.doctor.facts import ListFacts, Use, VolumeHeader
from monai_ext.data.doctor.findings import Check, Problem, many, some
from monai_ext.data.file_error import FileError
from monai_ext.data.images import MILLIMETRES, Geometry
from monai_ext.data.indexing.index import lies_mirrored

FORMS_APART = 0.05  # of the smallest spacing: beyond, sform and qform disagree by more than rounding
PIXDIM_APART = 0.01  # of the spacing
SMALLEST_SPACING, LARGEST_SPACING = 0.01, 30.0  # mm
SMALLEST_STATED = 1e-4  # mm, where the header says that lengths are in micrometres
LARGEST_RATIO = 10.0


def kind_differs(facts: ListFacts) -> Iterator[Problem]:
    """A frame has a volume as its label map, or the other way round."""
    for image, label, difference in _differences(facts, "kind"):
        sentence = f"{label.name} is a {difference.of_label} but its {image.name} a {difference.of_image}"
        yield label.problem(sentence, "name the label map that belongs to the image")


def shape_differs(facts: ListFacts) -> Iterator[Problem]:
    """A label map has another shape than its image: it cannot be laid on it."""
    for image, label, difference in _differences(facts, "shape"):
        sentence = f"{label.name} has shape {difference.of_label} but its {image.name} {difference.of_image}"
        yield label.problem(sentence, "name the label map of this image, or resample it to the image")


def grid_differs(facts: ListFacts) -> Iterator[Problem]:
    """A label map has the shape of its image but another spacing, origin or direction (beyond 1e-3), or another unit.

    It may be that of another series. Nothing is resampled unless you ask for it.
    """
    for image, label, difference in _differences(facts, "unit", "spacing", "origin", "direction"):
        sentence = (
            f"{label.name} has {difference.name} {difference.of_label} but its {image.name} {difference.of_image}"
        )
        fix = "export both from the same series, or resample the label map to the image"
        if difference.name == "unit":
            fix = "correct the header that is wrong: the numbers agree"
        elif lies_mirrored(_grid(image), _grid(label)):
            sentence += ": it lies on the same voxels, only its axes are flipped or swapped"
            fix = "resample the label map to the image, which loses nothing here; do not copy the header"
        yield label.problem(sentence, fix)


def bad_affine(facts: ListFacts) -> Iterator[Problem]:
    """The affine holds NaN or Inf, or the quaternion of the qform is none."""
    return _file_errors(facts, "bad_affine")


def sheared(facts: ListFacts) -> Iterator[Problem]:
    """The axes of a volume are not at right angles; the sentence names what the affine comes from.

    Distances and most programs rest on right angles. A gantry tilt makes such an affine.
    """
    for use in _volumes(facts):
        if (error := _affine_error(use)) is not None and error.code == "sheared":
            fix = error.fix if _header(use).qform is not None else "correct the sform, or resample the image"
            yield use.problem(f"the sform of {use.name} is sheared, its axes are not at right angles", fix)


def zero_spacing(facts: ListFacts) -> Iterator[Problem]:
    """An axis has a spacing of 0 mm."""
    yield from _file_errors(facts, "zero_spacing")
    for use in _volumes(facts):
        if (error := _affine_error(use)) is not None and error.code == "zero_spacing":
            yield use.problem(f"{use.name}: {error.what}", error.fix)


def negative_spacing(facts: ListFacts) -> Iterator[Problem]:
    """The header states a negative spacing (pixdim).

    It is read as positive here, as the format has it; other programs mirror the image.
    """
    for use in _volumes(facts):
        pixdim = _header(use).pixdim
        if min(pixdim) < 0:
            sentence = f"{use.name} states a spacing of {_times(pixdim)} mm, which is read as positive"
            yield use.problem(sentence, "make pixdim positive, and put mirrored axes into the sform")


def spacing_disagrees(facts: ListFacts) -> Iterator[Problem]:
    """The header's spacing (pixdim) is not the length of the sform's axes: programs differ in which they take."""
    for use in _volumes(facts):
        header, grid = _header(use), _grid(use)
        spacing = np.array(grid.spacing)
        pixdim = np.abs(header.pixdim)
        there = np.array(grid.shape) > 1
        if (
            _affine_error(use) is None
            and (there & (np.abs(pixdim - spacing) > PIXDIM_APART * spacing)).any()
            and min(header.pixdim) >= 0
        ):
            sentence = f"{use.name} states a spacing of {_times(pixdim)} mm, but its sform gives {_times(spacing)} mm"
            yield use.problem(sentence, "find out which is right and write the other one anew; here the sform counts")


def forms_differ(facts: ListFacts) -> Iterator[Problem]:
    """Sform and qform put a volume to different places; some programs take one and some the other."""
    for use in _volumes(facts):
        header, grid = _header(use), _grid(use)
        if header.sform is None or header.qform is None or _affine_error(use) is not None:
            continue
        distance = _farthest(header.sform, header.qform, grid.shape)
        if distance > FORMS_APART * min(grid.spacing or (1.0,)):
            sentence = f"sform and qform of {use.name} disagree by up to {distance:.3g} mm; the sform is used"
            yield use.problem(sentence, "find out which is right and copy it to the other one")


def no_orientation(facts: ListFacts) -> Iterator[Problem]:
    """Neither sform nor qform is set: left and right, and the place in space, are a guess."""
    for use in _volumes(facts):
        if _header(use).sform is None and _header(use).qform is None:
            sentence = f"{use.name} has neither sform nor qform, so that left and right are guessed"
            yield use.problem(sentence, "convert it again from its source with dcm2niix")


def position_lost(facts: ListFacts) -> Iterator[Problem]:
    """Affines hold a spacing only: the origin is 0 and nothing is rotated, as after a conversion that lost the rest.

    Visits then only seem to lie at the same place.
    """
    names, images = [], [use for use in facts.images() if use.file.grid is not None and not use.file.grid.is_frame]
    for use in images:
        affine = np.array(_grid(use).affine)
        if not affine[:3, 3].any() and np.count_nonzero(affine[:3, :3]) == 3:
            names.append(use.case.case)
    if names:
        sentence = f"{len(names)} of {many(len(images), 'volume')} have the origin 0, 0, 0 and unrotated axes"
        fix = "if visits are to be matched by position, convert them again from their source with the whole affine"
        yield Problem(f"{sentence} ({some(names)}): their place in the scanner is lost", fix)


def unit_not_mm(facts: ListFacts) -> Iterator[Problem]:
    """The header says that lengths are metres or micrometres: that is how they are read.

    Some programs state a wrong unit; distances and volumes would be wrong by powers of a thousand.
    """
    for use in _volumes(facts):
        unit = _header(use).unit
        if unit not in ("mm", "unknown"):
            written = _times(np.array(_grid(use).spacing) / MILLIMETRES[unit])
            read = _times(_grid(use).spacing or ())
            sentence = f"{use.name} states lengths in {unit}: its spacing of {written} is read as {read} mm"
            yield use.problem(sentence, "correct the unit in the header if that is wrong")


def odd_spacing(facts: ListFacts) -> Iterator[Problem]:
    """A spacing is below 0.01 or above 30 mm, as when lengths are not in millimetres.

    From 0.0001 mm where the header says that lengths are in micrometres. A label map without a unit has its image's.
    """
    units = {id(label): _header(image).unit for image, label in facts.pairs() if image.file.volume is not None}
    for use in _volumes(facts):
        unit = _header(use).unit
        if unit == "unknown" and units.get(id(use), "unknown") not in ("unknown", "mm"):
            continue
        grid, smallest = _grid(use), SMALLEST_STATED if unit == "micrometre" else SMALLEST_SPACING
        there = [length for length, n in zip(grid.spacing or (), grid.shape, strict=True) if n > 1 and length > 0]
        if there and (min(there) < smallest or max(there) > LARGEST_SPACING):
            assumed = ", which is assumed because the header states no unit" if unit == "unknown" else ""
            sentence = f"{use.name} has a spacing of {_times(grid.spacing or ())} mm{assumed}"
            yield use.problem(sentence, "check the spacing, and state the right unit in the header")


def one_slice(facts: ListFacts) -> Iterator[Problem]:
    """A volume has a single slice: it is treated as one, but has no thickness to match other volumes by."""
    for use in facts.images():
        grid = use.file.grid
        if grid is not None and not grid.is_frame and 1 in grid.shape:
            yield use.problem(f"{use.name} has a single slice ({_times(grid.shape)})", "check that this is all of it")


def very_anisotropic(facts: ListFacts) -> Iterator[Problem]:
    """Voxels are more than ten times as long as wide: surface distances along that axis come in coarse steps."""
    for use in facts.images():
        grid = use.file.grid
        if grid is not None and grid.spacing is not None and min(grid.spacing) > 0 and 1 not in grid.shape:
            ratio = max(grid.spacing) / min(grid.spacing)
            if ratio > LARGEST_RATIO:
                sentence = f"voxels of {use.name} are {ratio:.0f} times as long as wide ({_times(grid.spacing)} mm)"
                yield use.problem(sentence, "read surface distances with that in mind")


def visits_apart(facts: ListFacts) -> Iterator[Problem]:
    """An image and the reference that serves it do not overlap in space: slices cannot be matched by position."""
    for target, reference in _follow_ups(facts):
        one, other = target.file.grid, reference.file.grid
        if one is None or other is None or _is_lost(target) or _is_lost(reference):
            continue
        if not grids_overlap(one, other):
            sentence = f"{target.name} and its reference {reference.name} do not overlap in space"
            fix = "check that both are of this patient, or match slices by height (--slice_match relative)"
            yield target.problem(sentence, fix)


def kind_of_reference(facts: ListFacts) -> Iterator[Problem]:
    """A volume has a frame as its reference, or the other way round."""
    for target, reference in _follow_ups(facts):
        one, other = target.file.grid, reference.file.grid
        if one is not None and other is not None and one.is_frame != other.is_frame:
            kinds = ("frame", "volume") if one.is_frame else ("volume", "frame")
            sentence = f"{target.name} is a {kinds[0]} but its reference {reference.name} a {kinds[1]}"
            yield target.problem(sentence, "give two of a kind")


def _volumes(facts: ListFacts) -> Iterator[Use]:
    return (use for use in facts.files() if use.file.grid is not None and use.file.volume is not None)


def _header(use: Use) -> VolumeHeader:
    if use.file.volume is None:
        raise ValueError(f"{use.file.path}: no volume")
    return use.file.volume


def _grid(use: Use) -> Geometry:
    if use.file.grid is None:
        raise ValueError(f"{use.file.path}: no grid")
    return use.file.grid


def _differences(facts: ListFacts, *names: str) -> Iterator[tuple[Use, Use, GridDifference]]:
    for image, label in facts.pairs():
        if image.file.grid is None or label.file.grid is None or _affine_error(image) or _affine_error(label):
            continue
        difference = grid_difference(image.file.grid, label.file.grid)
        if difference is not None and difference.name in names:
            yield image, label, difference


def _follow_ups(facts: ListFacts) -> Iterator[tuple[Use, Use]]:
    """Yield each target with each image that serves it."""
    for follow_up in facts.follow_ups():
        for target in follow_up.targets:
            for reference, _ in follow_up.references:
                yield target, reference


def _is_lost(use: Use) -> bool:
    """Tell whether a file does not say where it lies, which is a finding of its own."""
    header = use.file.volume
    return header is None or (header.sform is None and header.qform is None) or _affine_error(use) is not None


def _affine_error(use: Use) -> FileError | None:
    try:
        check_affine(use.file.path, _grid(use))
    except FileError as error:
        return error
    return None


def _file_errors(facts: ListFacts, code: str) -> Iterator[Problem]:
    for use in facts.files():
        if use.file.error is not None and use.file.error.code == code:
            yield use.problem(f"{use.name}: {use.file.error.what}", use.file.error.fix)


def _farthest(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Distance in mm between the places to which two affines put a voxel, at the worst corner."""
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in shape], [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def _times(values: tuple[float, ...] | np.ndarray) -> str:
    return " x ".join(f"{value:g}" for value in values)


CHECKS: list[Check[ListFacts]] = [
    Check("error", kind_differs, 1),
    Check("error", shape_differs, 1),
    Check("error", grid_differs, 2),
    Check("error", bad_affine, 4),
    Check("error", sheared, 4),
    Check("error", zero_spacing, 6),
    Check("warning", negative_spacing, 6),
    Check("warning", spacing_disagrees, 6),
    Check("warning", forms_differ, 5),
    Check("warning", no_orientation, 7),
    Check("note", position_lost),
    Check("warning", unit_not_mm),
    Check("warning", odd_spacing),
    Check("note", one_slice, 8),
    Check("note", very_anisotropic),
    Check("warning", visits_apart),
    Check("error", kind_of_reference),
]
