"""People's own DICOM: any tree of CT or MR series with RTSTRUCT and SEG, several patients and visits."""

from __future__ import annotations

import datetime
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from monai_ext.data.dicom.conversion import convert_series, convert_structures
from monai_ext.data.dicom.drawing import Drawing
from monai_ext.data.dicom.geometry import find_problems
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.series import NOT_DICOM, group_headers
from monai_ext.data.folders import natural
from monai_ext.data.indexing.drawn import Assigned, OnSeries, Patterns, read_drawn
from monai_ext.data.indexing.index import Index, Options
from monai_ext.errors import UserError
from monai_ext.files import ensure_writable_folder

USUAL = ("CT", "MR")


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
    drawn = read_drawn(found, images, index)
    images = _of_one_modality(images, drawn.asked_for(options), root, options, index)
    if not images:
        raise UserError(f"{root}: no series is left ({index.skipped[-1][0]}: {index.skipped[-1][1]}); choose others")
    patterns, on_series, doubtful = drawn.match(images, root, options, index)
    index.datalist["labels"] = {name: value for name, (value, _) in patterns.items()}
    chosen = _choose(images, on_series, index)
    ensure_writable_folder(files)
    _convert(chosen, doubtful, files, patterns, root, index)
    _add_notes(images, on_series, index)
    return index


def _of_one_modality(
    images: list[SeriesHeaders], asked: Sequence[Assigned], root: Path, options: Options, index: Index
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
        none = f", none of {options.modality.upper()}" if options.modality else ""
        raise UserError(f"{root}: holds images of {listed}{none}; choose one of them with --modality")
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


def _choose(images: Iterable[SeriesHeaders], drawn: OnSeries, index: Index) -> list[_Chosen]:
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


def _convert(
    chosen: Sequence[_Chosen], doubtful: dict[Path, str], files: Path, patterns: Patterns, root: Path, index: Index
) -> None:
    """Convert all cases but those on which a structure may be drawn that could not be assigned.

    Raises:
        UserError: there are annotated series, and none can be used; or a file cannot be written.
    """
    counts = Counter(_name(one.series) for one in chosen)
    numbers: Counter[str] = Counter()
    failed: list[str] = []
    for one in tqdm(chosen, desc="converting DICOM", unit="series"):
        name = _name(one.series)
        numbers[name] += 1
        case, before = f"{name}_{numbers[name]}" if counts[name] > 1 else name, len(index.skipped)
        if one.drawings and one.series.key in doubtful:
            index.skipped.append((case, f"{doubtful[one.series.key]}; here it would be background"))
        else:
            _add_case(one, case, files, patterns, index)
        if one.drawings:
            failed += [f"{what}: {why}" for what, why in index.skipped[before:]]
    if failed and not any(entry["label"] for entry in index.datalist["cases"]):
        raise UserError(f"{root}: none of the annotated series can be used ({failed[0]})")


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


def _add_notes(images: Iterable[SeriesHeaders], drawn: OnSeries, index: Index) -> None:
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
