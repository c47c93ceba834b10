"""People's own DICOM: any tree of CT or MR series with RTSTRUCT and SEG, several patients and visits."""

from __future__ import annotations

import datetime
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from tqdm import tqdm

from monai_ext.data.dicom.assignment import NOT_HERE, NotAssignedError, SeriesFinder
from monai_ext.data.dicom.conversion import convert_series, convert_structures
from monai_ext.data.dicom.drawing import Drawing, drawings_of, is_called
from monai_ext.data.dicom.geometry import find_problems
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.rtstruct_reader import StructureSet, read_structures
from monai_ext.data.dicom.segmentation import Segmentation, read_segmentation
from monai_ext.data.dicom.series import NOT_DICOM, SeriesList, group_headers
from monai_ext.data.images import ensure_writable_folder
from monai_ext.data.indexing.frame import Index, Options, natural
from monai_ext.data.indexing.structures import expressions_of, patterns_of
from monai_ext.errors import UserError

USUAL = ("CT", "MR")

Patterns: TypeAlias = dict[str, tuple[int, str]]  # value and expression of each structure


@dataclass(frozen=True)
class _Assigned:
    """A ROI or segment, and the series it was drawn on."""

    drawing: Drawing
    series: SeriesHeaders


@dataclass(frozen=True)
class _Unassigned:
    """A ROI or segment whose series is not clear."""

    drawing: Drawing
    error: NotAssignedError


@dataclass(frozen=True)
class _Chosen:
    """A series that becomes a case, and what is drawn on it: (value, ROI or segment)."""

    series: SeriesHeaders
    drawings: tuple[tuple[int, Drawing], ...]


def index_dicom(root: Path, files: Path, options: Options) -> Index:
    """Index a tree of DICOM files, however it is sorted.

    A patient is a PatientID and a visit a StudyDate. Each ROI or segment goes to the series that its contours or frames
    name, wherever the files lie. Of a visit, each annotated series is a case; where there is none, it is the one
    series whose SeriesDescription an annotated series of the data has, else the axial one with most slices.

    Args:
        root: folder.
        files: takes the converted volumes.
        options: ``roi`` (NAME=REGEX, in the order in which later ones are drawn over earlier ones; all ROIs that
            one expression finds are united), ``labels``, ``modality``, and ``image_pattern`` for SeriesDescription.

    Returns:
        A case for each chosen series, with or without label; ``dicom_series`` names it.

    Raises:
        UserError: there are no images, it is not clear which ROIs or which modality to take, none of what is drawn can
            be used, or the converted files cannot be written.
    """
    found = group_headers(root)
    index = Index({"dataset": root.name, "modality": None, "labels": {}, "cases": []})
    index.skipped += [(str(path), why) for path, why in found.skipped if why != NOT_DICOM]
    index.notes += found.notes
    images = [series for series in found if series.is_image]
    if not images:
        raise UserError(
            f"{root}: holds no DICOM images; give the folder of the series, or use folder or bids for files"
        )
    structures = _read_files(found, index)
    assigned, unassigned = _assign(structures, SeriesFinder(images))
    images = _of_one_modality(images, _asked_for(assigned, options), root, options, index)
    if not images:
        raise UserError(f"{root}: no series is left ({index.skipped[-1][0]}: {index.skipped[-1][1]}); choose others")
    here = _drawn_on(images, assigned) + [one.drawing for one in unassigned]
    _check_asked_for(here, assigned, structures, root, options)
    descriptions = [name for drawing in here for name in drawing.names[1:] if name]
    patterns = patterns_of(options, [drawing.name for drawing in here], descriptions)
    index.datalist["labels"] = {name: value for name, (value, _) in patterns.items()}
    drawn = _match(images, assigned, patterns)
    doubtful = _name_unassigned(unassigned, patterns, index)
    if doubtful and not drawn:
        raise UserError(f"{next(iter(doubtful.values()))}")
    _name_files_without_match(here, patterns, index)
    chosen = _choose(images, drawn, index)
    ensure_writable_folder(files)
    counts = Counter(_name(one.series) for one in chosen)
    numbers: Counter[str] = Counter()
    labelled = set[str]()
    for one in tqdm(chosen, desc="converting DICOM", unit="series"):
        name = _name(one.series)
        numbers[name] += 1
        case = f"{name}_{numbers[name]}" if counts[name] > 1 else name
        if one.drawings:
            labelled.add(case)
        if one.drawings and one.series.key in doubtful:
            index.skipped.append((case, f"{doubtful[one.series.key]}; here it would be background"))
        else:
            _add_case(one, case, files, patterns, index)
    if drawn and not any(entry["label"] for entry in index.datalist["cases"]):
        what, why = next(pair for pair in index.skipped if pair[0] in labelled)
        raise UserError(f"{root}: none of the annotated series can be used ({what}: {why})")
    _add_notes(images, drawn, index)
    return index


# Structures


def _read_files(found: SeriesList, index: Index) -> list[StructureSet | Segmentation]:
    """Read all SEG (first, for they are exact) and RTSTRUCT files."""
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


def _assign(
    files: Iterable[StructureSet | Segmentation], finder: SeriesFinder
) -> tuple[list[_Assigned], list[_Unassigned]]:
    """Find the series of each ROI and segment."""
    assigned, unassigned = [], []
    for drawing in (drawing for file in files for drawing in drawings_of(file)):
        try:
            assigned.append(_Assigned(drawing, finder.find(drawing)))
        except NotAssignedError as error:
            unassigned.append(_Unassigned(drawing, error))
    return assigned, unassigned


def _asked_for(assigned: Sequence[_Assigned], options: Options) -> list[_Assigned]:
    """Return what ``--roi`` or ``--labels`` finds; all where neither finds anything."""
    expressions = expressions_of(options)
    return [one for one in assigned if any(is_called(one.drawing, text) for text in expressions)] or list(assigned)


def _drawn_on(images: Iterable[SeriesHeaders], assigned: Iterable[_Assigned]) -> list[Drawing]:
    kept = {series.key for series in images}
    return [one.drawing for one in assigned if one.series.key in kept]


def _check_asked_for(
    here: Sequence[Drawing],
    assigned: Sequence[_Assigned],
    structures: Iterable[StructureSet | Segmentation],
    root: Path,
    options: Options,
) -> None:
    """Say why what ``--roi`` or ``--labels`` asks for is not among what is drawn here, where the files tell.

    Raises:
        UserError: it is drawn on series that were not chosen, or it has no contours.
    """
    if not here:  # images without structures were chosen
        return
    for text in expressions_of(options):
        if any(is_called(drawing, text) for drawing in here):
            continue
        for one in assigned:
            if is_called(one.drawing, text):
                raise UserError(
                    f"{root}: {one.drawing.name!r} is drawn on {one.series.modality} ({one.series.name}), which was "
                    "not chosen; choose it with --modality or --image_pattern"
                )
        for file in structures:
            if isinstance(file, StructureSet) and (names := file.find_empty(text)):
                raise UserError(f"{file.path}: ROI {names[0]!r} has no contours; choose another one with --roi")


def _match(
    images: Iterable[SeriesHeaders], assigned: Iterable[_Assigned], patterns: Patterns
) -> dict[Path, list[tuple[int, Drawing]]]:
    """Return what is drawn on each series (by its key), in the order of the structures."""
    kept = {series.key for series in images}
    drawn: dict[Path, list[tuple[int, Drawing]]] = defaultdict(list)
    for one in assigned:
        for value, pattern in patterns.values():
            if one.series.key in kept and is_called(one.drawing, pattern):
                drawn[one.series.key].append((value, one.drawing))
    order = [value for value, _ in patterns.values()]
    return {key: sorted(several, key=lambda pair: order.index(pair[0])) for key, several in drawn.items()}


def _name_unassigned(unassigned: Iterable[_Unassigned], patterns: Patterns, index: Index) -> dict[Path, str]:
    """Say which structures could not be assigned, and why; return what to say of each series they may be drawn on."""
    doubtful: dict[Path, str] = {}
    reasons: dict[tuple[Path, str], list[Drawing]] = defaultdict(list)
    for one in unassigned:
        if any(is_called(one.drawing, pattern) for _, pattern in patterns.values()):
            reasons[one.drawing.file.path, str(one.error)].append(one.drawing)
            for series in one.error.candidates:
                doubtful.setdefault(series.key, f"{one.drawing.where} {one.error}")
    for (path, why), drawings in reasons.items():
        names = f"{', '.join(repr(drawing.name) for drawing in drawings)} " if why != NOT_HERE else ""
        index.skipped.append((str(path), names + why))
    return doubtful


def _name_files_without_match(here: Iterable[Drawing], patterns: Patterns, index: Index) -> None:
    of_file: dict[Path, list[Drawing]] = defaultdict(list)
    for drawing in here:
        of_file[drawing.file.path].append(drawing)
    for path, drawings in of_file.items():
        if not any(is_called(drawing, pattern) for drawing in drawings for _, pattern in patterns.values()):
            there = ", ".join(repr(drawing.name) for drawing in drawings)
            index.skipped.append((str(path), f"no ROI or segment is one of {', '.join(patterns)} (there are: {there})"))


# Series


def _of_one_modality(
    images: list[SeriesHeaders], asked: Sequence[_Assigned], root: Path, options: Options, index: Index
) -> list[SeriesHeaders]:
    """Keep the series of one modality whose description ``--image_pattern`` finds."""
    if options.modality is not None:
        wanted = {options.modality.upper()}
    else:
        annotated = {one.series.modality for one in asked}
        wanted = annotated & set(USUAL) or annotated or {series.modality for series in images} & set(USUAL)
    listed = ", ".join(sorted({series.modality or "no modality" for series in images}))
    of_them = [series for series in images if series.modality in wanted]
    if len(wanted) > 1 or not of_them:
        raise UserError(f"{root}: holds images of {listed}; choose one of them with --modality")
    (modality,) = wanted
    index.datalist["modality"] = modality
    pattern, kept = options.image_pattern, []
    for series in images:
        if series.modality != modality:
            why = f"{series.modality or 'no modality'} and not {modality}; --modality chooses another one"
            index.skipped.append((series.name, why))
        elif pattern is not None and not pattern.search(series.slices[0].series_description):
            index.skipped.append((series.name, "its SeriesDescription does not fit --image_pattern"))
        elif not series.patient_id:
            index.skipped.append((series.name, "has no PatientID, which says whose visit it is; set it in the files"))
        else:
            kept.append(series)
    return kept


def _choose(
    images: Iterable[SeriesHeaders], drawn: dict[Path, list[tuple[int, Drawing]]], index: Index
) -> list[_Chosen]:
    """Choose the series of each visit that become cases, sorted by patient and date."""
    visits: dict[tuple[str, str], list[SeriesHeaders]] = defaultdict(list)
    described = set()
    for series in images:
        date = _date(series)
        visits[series.patient_id, str(date or series.study_uid)].append(series)
        if series.key in drawn:
            described.add(series.slices[0].series_description)
    chosen = []
    for key in sorted(visits, key=lambda key: (natural(key[0]), key[1])):
        annotated = [series for series in visits[key] if series.key in drawn]
        others = [series for series in visits[key] if series.key not in drawn]
        if annotated:
            why = "not annotated, but another series of this visit is"
            if len(annotated) > 1:
                many = f"{len(annotated)} annotated series of {_date(annotated[0]) or 'one study'}"
                index.notes.append(f"{key[0]} has {many}, which serve together as references")
        else:
            best = max(others, key=lambda series: _rank(series, described))
            others.remove(best)
            annotated, why = [best], f"{best.name} of this visit is taken; --image_pattern chooses another one"
        index.skipped += [(series.name, why) for series in others]
        chosen += [_Chosen(series, tuple(drawn.get(series.key, ()))) for series in annotated]
    return chosen


def _rank(series: SeriesHeaders, described: set[str]) -> tuple[bool, bool, bool, int]:
    """The higher, the rather a series stands for a visit that has no annotated one."""
    description = series.slices[0].series_description
    known = bool(description) and description in described
    return not find_problems(series), known, _is_axial(series), len(series.slices)


def _is_axial(series: SeriesHeaders) -> bool:
    orientation = series.slices[0].orientation
    if orientation is None:
        return False
    return int(np.abs(np.cross(orientation[:3], orientation[3:])).argmax()) == 2


def _date(series: SeriesHeaders) -> datetime.date | None:
    return series.slices[0].study_date


def _name(series: SeriesHeaders) -> str:
    date = _date(series)
    return re.sub(r"[^\w.+-]", "_", series.patient_id + (f"_{date}" if date else ""))


def _add_case(one: _Chosen, case: str, files: Path, patterns: Patterns, index: Index) -> None:
    image, label = files / f"{case}_image.nii.gz", files / f"{case}_label.nii.gz"
    try:
        if one.drawings:
            index.notes += [f"{case}: {note}" for note in convert_structures(one.drawings, one.series, label)]
        convert_series(one.series, image)
    except UserError as error:
        if str(error).startswith("cannot write"):
            raise
        index.skipped.append((case, str(error)))
        return
    drawn = {value for value, _ in one.drawings}
    if one.drawings and (missing := [name for name, (value, _) in patterns.items() if value not in drawn]):
        index.notes.append(f"{case}: {', '.join(missing)} is not drawn and counts as background")
    date = _date(one.series)
    index.datalist["cases"].append(
        {
            "case": case,
            "patient": one.series.patient_id,
            "visit": None if date is None else date.isoformat(),
            "image": str(image),
            "label": str(label) if one.drawings else None,
            "dicom_series": one.series.origin,
        }
    )


def _add_notes(images: Iterable[SeriesHeaders], drawn: dict[Path, list[tuple[int, Drawing]]], index: Index) -> None:
    studies: dict[tuple[str, datetime.date], set[str]] = defaultdict(set)
    undated = set()
    for series in images:
        if (date := _date(series)) is None:
            undated.add(series.patient_id)
        else:
            studies[series.patient_id, date].add(series.study_uid)
    if undated:
        listed = ", ".join(sorted(undated, key=natural))
        index.notes.append(
            f"no date of study in files of {listed}; write 'visit' (1, 2, ...) into the list to order them"
        )
    for (patient, date), uids in studies.items():
        if len(uids) > 1:
            index.notes.append(f"{patient} has {len(uids)} studies on {date}, which are taken as one visit")
    if not drawn:
        index.notes.append("nothing is annotated: cases are listed without labels")
