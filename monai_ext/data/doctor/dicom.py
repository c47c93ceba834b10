"""Checks of a folder of DICOM files: whether each series can become one volume. Only headers are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from monai_ext.data.dicom.geometry import Problem as SeriesProblem
from monai_ext.data.dicom.geometry import find_problems, sorted_slices
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.reading import NOT_DICOM, missing_pixel_bytes
from monai_ext.data.dicom.series import group_headers
from monai_ext.data.doctor.findings import Check, Problem, many, some
from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES
from monai_ext.errors import UserError
from monai_ext.files import PathLike

FEW_SLICES = 9
"""A series of several orientations with at most so many slices is taken for a localiser."""


@dataclass(frozen=True)
class FolderFacts:
    """What is known of a folder of DICOM files.

    Args:
        folder: the folder.
        series: its series, images and others.
        skipped: files that are no DICOM or damaged, and why.
        problems: of each image series.
        truncated: image files that are too short, and by how many bytes.
        copies: files that are there twice, and the one that is taken.
        sharing: image series of one SeriesInstanceUID.
    """

    folder: Path
    series: Sequence[SeriesHeaders]
    skipped: Sequence[tuple[Path, str]] = ()
    problems: dict[int, list[SeriesProblem]] = field(default_factory=dict)
    truncated: Sequence[tuple[Path, int]] = ()
    copies: Sequence[tuple[Path, Path]] = ()
    sharing: Sequence[Sequence[SeriesHeaders]] = ()

    @cached_property
    def images(self) -> list[SeriesHeaders]:
        """The series that hold images."""
        return [series for series in self.series if series.is_image]

    def found(self, code: str) -> Iterator[Problem]:
        """Yield one kind of problem of every image series, localisers left out."""
        for series in self.images:
            for problem in self.problems.get(id(series), ()):
                if problem.code == code and not self.is_localiser(series):
                    name = f"{self.name(series)}: {problem.sentence}"
                    yield Problem(name, problem.fix, "", str(series.slices[0].path.parent))

    def is_localiser(self, series: SeriesHeaders) -> bool:
        """Tell whether a series is a few slices of several orientations."""
        codes = {problem.code for problem in self.problems.get(id(series), ())}
        return "mixed_orientation" in codes and len(series.slices) <= FEW_SLICES

    def name(self, series: SeriesHeaders) -> str:
        """Call a series by its folder below the given one and its description."""
        first = series.slices[0]
        place = first.path.parent.relative_to(self.folder).as_posix() if self.folder.is_dir() else first.path.name
        parts = [
            *([place] if place != "." else []),
            *([repr(first.series_description)] * bool(first.series_description)),
        ]
        return f"series {', '.join(parts) or series.series_uid}"


def read_folder(folder: PathLike) -> FolderFacts:
    """Read the headers of all DICOM files below a folder, and look at the geometry of each series.

    Raises:
        UserError: there is no such folder, or the extra ``dicom`` is not installed.
    """
    folder = Path(folder).expanduser()
    series = group_headers(folder)
    problems = {id(one): list(find_problems(one)) for one in series if one.is_image}
    files = [header.path for one in series if one.is_image for header in one.slices]
    skipped, truncated = list(series.skipped), []
    for path in files:
        try:
            if missing := missing_pixel_bytes(path):
                truncated.append((path, missing))
        except UserError as error:
            skipped.append((path, str(error).removeprefix(f"{path}: ")))
    sharing = list(series.sharing_uids().values())
    return FolderFacts(folder, series, skipped, problems, truncated, series.copies, sharing)


def no_image_series(facts: FolderFacts) -> Iterator[Problem]:
    """No file of the folder is a DICOM image."""
    if not facts.images:
        others = some(sorted({series.modality or "no modality" for series in facts.series}))
        there = f"only {others}" if facts.series else f"{many(len(facts.skipped), 'file')} of other kinds"
        fix = "give the folder that holds the image series"
        if any(path.name.lower().endswith(VOLUME_SUFFIXES + FRAME_SUFFIXES) for path, _ in facts.skipped):
            fix = "for NIfTI and pictures write a data list (python -m monai_ext.data.indexing --help) and examine that"
        yield Problem(f"{facts.folder} holds no DICOM images ({there})", fix)


def unreadable_dicom(facts: FolderFacts) -> Iterator[Problem]:
    """A file is DICOM but damaged; the series may lack its slice."""
    for path, why in facts.skipped:
        if not why.startswith(NOT_DICOM):
            what, _, fix = why.rpartition("; ")
            yield Problem(f"{path.name}: {what or fix}", fix if what else "copy or download it again", "", str(path))


def truncated_pixels(facts: FolderFacts) -> Iterator[Problem]:
    """An uncompressed file is shorter than its header says: the copy broke off within the pixels."""
    for path, missing in facts.truncated:
        sentence = f"{path.name} breaks off within its pixels ({many(missing, 'byte')} missing)"
        yield Problem(sentence, "copy or download it again", "", str(path))


def other_files(facts: FolderFacts) -> Iterator[Problem]:
    """Files that are no DICOM are passed over."""
    names = [path.name for path, why in facts.skipped if why.startswith(NOT_DICOM)]
    if names:
        sentence = f"{many(len(names), 'file')} of other kinds passed over ({some(names)})"
        yield Problem(sentence, "check that none of them belongs to a series")


def missing_slice(facts: FolderFacts) -> Iterator[Problem]:
    """Slices are missing: the distance between two is a multiple of what it is elsewhere."""
    return facts.found("missing_slice")


def uneven_spacing(facts: FolderFacts) -> Iterator[Problem]:
    """Slices are not evenly spaced, or one is shifted sideways: no volume with one affine can hold them."""
    return facts.found("uneven_spacing")


def duplicate_position(facts: FolderFacts) -> Iterator[Problem]:
    """Several slices of a series lie at one place: echoes, phases or copies in one series."""
    return facts.found("duplicate_position")


def mixed_patient(facts: FolderFacts) -> Iterator[Problem]:
    """Slices of one series belong to several patients."""
    return facts.found("mixed_patient")


def mixed_size(facts: FolderFacts) -> Iterator[Problem]:
    """Slices of one series have different numbers of rows and columns."""
    return facts.found("mixed_size")


def mixed_spacing(facts: FolderFacts) -> Iterator[Problem]:
    """Slices of one series have different pixel spacings."""
    return facts.found("mixed_spacing")


def mixed_orientation(facts: FolderFacts) -> Iterator[Problem]:
    """Slices of one series have different orientations."""
    return facts.found("mixed_orientation")


def mixed_frame_of_reference(facts: FolderFacts) -> Iterator[Problem]:
    """Slices of one series have different frames of reference: the patient was moved between them."""
    return facts.found("mixed_frame_of_reference")


def several_series(facts: FolderFacts) -> Iterator[Problem]:
    """The folder holds several image series; a case is one of them. They are kept apart by SeriesInstanceUID."""
    if len({series.series_uid for series in facts.images}) > 1:
        named = some(f"{facts.name(one)} with {many(len(one.slices), 'file')}" for one in facts.images)
        yield Problem(
            f"{len(facts.images)} image series ({named})",
            "give the folder or UID of one of them",
        )


def shared_series_uid(facts: FolderFacts) -> Iterator[Problem]:
    """Several visits or modalities have one SeriesInstanceUID; they are told apart by study, date and modality.

    Other programs make one volume of them. SEG and RTSTRUCT that name the series alone fit all of them.
    """
    for several in facts.sharing:
        named = some(
            f"{many(len(one.slices), 'file')} of {one.modality} of {one.slices[0].study_date}" for one in several
        )
        yield Problem(
            f"{len(several)} series share the SeriesInstanceUID {several[0].series_uid} ({named})",
            "give each series a UID of its own",
        )


def copied_files(facts: FolderFacts) -> Iterator[Problem]:
    """Files that are the same, SOPInstanceUID included, are there twice; one of them is taken."""
    if facts.copies:
        copy, original = facts.copies[0]
        sentence = f"{many(len(facts.copies), 'file')} of the folder also lie elsewhere in it ({copy} is {original})"
        yield Problem(sentence, "nothing; the copies are passed over", "", str(copy))


def localiser(facts: FolderFacts) -> Iterator[Problem]:
    """A series of a few slices in several orientations; it is left out."""
    for series in facts.images:
        if facts.is_localiser(series):
            sentence = f"{facts.name(series)}: {many(len(series.slices), 'slice')} of several orientations"
            yield Problem(f"{sentence}, a localiser", "leave it out", "", str(series.slices[0].path.parent))


def gantry_tilt(facts: FolderFacts) -> Iterator[Problem]:
    """Slices are shifted against each other along their plane, so that the volume is sheared."""
    return facts.found("gantry_tilt")


def multi_frame(facts: FolderFacts) -> Iterator[Problem]:
    """A file holds many frames (enhanced CT or MR)."""
    return facts.found("multi_frame")


def no_geometry(facts: FolderFacts) -> Iterator[Problem]:
    """Slices do not say where they lie, as screenshots do not."""
    return facts.found("no_geometry")


def bad_geometry(facts: FolderFacts) -> Iterator[Problem]:
    """Directions that are not perpendicular, or a spacing that is not above 0."""
    return facts.found("bad_geometry")


def order_of_numbers(facts: FolderFacts) -> Iterator[Problem]:
    """Slices are numbered in another order than they lie along their normal, which is common.

    They are sorted by where they lie; a program that trusts InstanceNumber mirrors the volume or mixes it up.
    """
    sound = [series for series in facts.images if not facts.problems.get(id(series))]
    for how, odd in (("backwards", {False}), ("in no order", {False, True})):
        names = [facts.name(series) for series in sound if _steps(series) == odd]
        if names:
            sentence = f"InstanceNumber runs {how} along the normal of the slices in {some(names)}"
            yield Problem(sentence, "nothing; here slices are sorted by where they lie")


def _steps(series: SeriesHeaders) -> set[bool]:
    """Tell whether numbers rise (True) or not (False) from slice to slice along the normal, or both."""
    numbers = [header.instance_number for header in sorted_slices(series)]
    return {a < b for a, b in pairwise(numbers) if a is not None and b is not None}


CHECKS: list[Check[FolderFacts]] = [
    Check("error", no_image_series),
    Check("warning", unreadable_dicom),
    Check("error", truncated_pixels),
    Check("note", other_files),
    Check("error", missing_slice, 29),
    Check("error", uneven_spacing, 29),
    Check("error", duplicate_position, 30),
    Check("error", mixed_patient, 31),
    Check("error", mixed_size, 31),
    Check("error", mixed_spacing, 31),
    Check("error", mixed_orientation, 31),
    Check("error", mixed_frame_of_reference, 31),
    Check("note", several_series, 31),
    Check("warning", shared_series_uid, 31),
    Check("note", copied_files, 30),
    Check("note", localiser, 31),
    Check("error", gantry_tilt, 32),
    Check("error", multi_frame, 33),
    Check("error", no_geometry),
    Check("error", bad_geometry),
    Check("note", order_of_numbers, 34),
]
