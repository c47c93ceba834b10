"""What is drawn in a tree of DICOM: each ROI and segment with its series, and which of them become labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from monai_ext.data.dicom.assignment import NOT_HERE, NotAssignedError, SeriesFinder
from monai_ext.data.dicom.drawing import Drawing, drawings_of, is_called
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.rtstruct_reader import StructureSet, read_structures
from monai_ext.data.dicom.segmentation import Segmentation, read_segmentation
from monai_ext.data.dicom.series import SeriesList
from monai_ext.data.folders import natural
from monai_ext.data.indexing.index import Index, Options
from monai_ext.data.indexing.structures import expressions_of, patterns_of
from monai_ext.errors import UserError

MOST_SERIES = 3  # in a note

Patterns: TypeAlias = dict[str, tuple[int, str]]
"""Value and regular expression of each structure."""

OnSeries: TypeAlias = dict[Path, list[tuple[int, Drawing]]]
"""What is drawn on each series (by its key): value and ROI or segment, in the order of the structures."""


@dataclass(frozen=True)
class Assigned:
    """A ROI or segment, and the series it was drawn on."""

    drawing: Drawing
    series: SeriesHeaders


@dataclass(frozen=True)
class Unassigned:
    """A ROI or segment whose series is not clear."""

    drawing: Drawing
    error: NotAssignedError


@dataclass(frozen=True)
class Drawn:
    """All that is drawn.

    Args:
        files: the RTSTRUCT and SEG files that can be read.
        assigned: their ROIs and segments whose series is known.
        unassigned: the others.
    """

    files: Sequence[StructureSet | Segmentation]
    assigned: Sequence[Assigned]
    unassigned: Sequence[Unassigned]

    def asked_for(self, options: Options) -> list[Assigned]:
        """Return what ``roi`` or ``labels`` finds; all where neither finds anything."""
        expressions = expressions_of(options)
        found = [one for one in self.assigned if any(is_called(one.drawing, text) for text in expressions)]
        return found or list(self.assigned)

    def match(
        self, images: Sequence[SeriesHeaders], root: Path, options: Options, index: Index
    ) -> tuple[Patterns, OnSeries, dict[Path, str]]:
        """Say which ROIs and segments are which structure.

        Args:
            images: the series that were chosen.
            root: folder, which messages name.
            options: ``roi`` and ``labels``.
            index: takes what cannot be used, and why, and a note of what is drawn on series that were not chosen.

        Returns:
            The structures; what is drawn of them on each series; and for each series (by its key) on which a
            structure may be drawn that could not be assigned, a sentence that says so.

        Raises:
            UserError: it is not clear which ROIs to take, or nothing of what is asked for can be assigned.
        """
        kept = {series.key for series in images}
        assigned = [one for one in self.assigned if one.series.key in kept]
        elsewhere = [one for one in self.assigned if one.series.key not in kept]
        here = [one.drawing for one in assigned] + [one.drawing for one in self.unassigned]
        self._check_asked_for(here, root, options)
        descriptions = [name for drawing in here for name in drawing.names[1:] if name]
        patterns = patterns_of(options, [drawing.name for drawing in here], descriptions)
        on_series = _on_series(assigned, patterns)
        wanted = [one for one in self.unassigned if _is_one_of(one.drawing, patterns)]
        _name_unassigned(wanted, index)
        _name_files_without_match(here, patterns, index)
        _name_elsewhere([one for one in elsewhere if _is_one_of(one.drawing, patterns)], index)
        refused = [one for one in wanted if str(one.error) != NOT_HERE]
        if refused and not on_series:
            raise UserError(f"{refused[0].drawing.where} {refused[0].error}")
        doubtful = {series.key: f"{one.drawing.where} {one.error}" for one in wanted for series in one.error.candidates}
        return patterns, on_series, doubtful

    def _check_asked_for(self, here: Sequence[Drawing], root: Path, options: Options) -> None:
        """Say why what is asked for is not among what is drawn on the chosen series, where the files tell."""
        if not here:  # series without structures were chosen
            return
        for text in expressions_of(options):
            if any(is_called(drawing, text) for drawing in here):
                continue
            for one in self.assigned:
                if is_called(one.drawing, text):
                    where = f"{one.series.modality} ({one.series.name})"
                    raise UserError(
                        f"{root}: {one.drawing.name!r} is drawn on {where}, which was not chosen; "
                        "choose it with --modality or --image_pattern"
                    )
            for file in self.files:
                if isinstance(file, StructureSet) and (names := file.find_empty(text)):
                    raise UserError(f"{file.path}: ROI {names[0]!r} has no contours; choose another one with --roi")


def read_drawn(found: SeriesList, images: Iterable[SeriesHeaders], index: Index) -> Drawn:
    """Read all SEG (first, for they are exact) and RTSTRUCT files, and find the series of each ROI and segment.

    Args:
        found: all series of the tree.
        images: the image series among them.
        index: takes files that cannot be read, and notes.
    """
    files = _read_files(found, index)
    finder = SeriesFinder(images)
    assigned, unassigned = [], []
    for drawing in (drawing for file in files for drawing in drawings_of(file)):
        try:
            assigned.append(Assigned(drawing, finder.find(drawing)))
        except NotAssignedError as error:
            unassigned.append(Unassigned(drawing, error))
    return Drawn(files, assigned, unassigned)


def _read_files(found: SeriesList, index: Index) -> list[StructureSet | Segmentation]:
    headers = [header for series in found for header in series.slices if header.modality in ("SEG", "RTSTRUCT")]
    headers.sort(key=lambda header: (header.modality != "SEG", natural(str(header.path))))
    files: list[StructureSet | Segmentation] = []
    for header in tqdm(headers, desc="reading contours", unit="file", delay=1, leave=False):
        try:
            file = read_segmentation(header.path) if header.modality == "SEG" else read_structures(header.path)
        except UserError as error:
            index.skipped.append((str(header.path), str(error).removeprefix(f"{header.path}: ")))
            continue
        files.append(file)
        index.notes += [f"{file.path}: {note}" for note in file.notes]
    return files


def _is_one_of(drawing: Drawing, patterns: Patterns) -> bool:
    return any(is_called(drawing, pattern) for _, pattern in patterns.values())


def _on_series(assigned: Iterable[Assigned], patterns: Patterns) -> OnSeries:
    drawn: OnSeries = defaultdict(list)
    for value, pattern in patterns.values():
        for one in assigned:
            if is_called(one.drawing, pattern):
                drawn[one.series.key].append((value, one.drawing))
    return dict(drawn)


def _name_unassigned(wanted: Iterable[Unassigned], index: Index) -> None:
    reasons: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for one in wanted:
        reasons[one.drawing.file.path, str(one.error)].append(repr(one.drawing.name))
    for (path, why), names in reasons.items():
        index.skipped.append((str(path), why if why == NOT_HERE else f"{', '.join(names)} {why}"))


def _name_files_without_match(here: Iterable[Drawing], patterns: Patterns, index: Index) -> None:
    of_file: dict[Path, list[Drawing]] = defaultdict(list)
    for drawing in here:
        of_file[drawing.file.path].append(drawing)
    for path, drawings in of_file.items():
        if not any(_is_one_of(drawing, patterns) for drawing in drawings):
            there = ", ".join(repr(drawing.name) for drawing in drawings)
            index.skipped.append((str(path), f"no ROI or segment is one of {', '.join(patterns)} (there are: {there})"))


def _name_elsewhere(passed_over: Iterable[Assigned], index: Index) -> None:
    """Say in one note what would be one of the structures, had the series that it is drawn on been chosen."""
    on_series: dict[Path, list[Assigned]] = defaultdict(list)
    for one in passed_over:
        on_series[one.series.key].append(one)
    listed = [
        f"{', '.join(repr(one.drawing.name) for one in on_it)} on {on_it[0].series.modality} ({on_it[0].series.name})"
        for on_it in on_series.values()
    ]
    if listed:
        more = f"; {len(listed) - MOST_SERIES} more" if len(listed) > MOST_SERIES else ""
        index.notes.append(
            f"ROIs and segments of {len(listed)} series that were not chosen fit too and are left out: "
            f"{'; '.join(listed[:MOST_SERIES])}{more}; --modality or --image_pattern chooses these series"
        )
