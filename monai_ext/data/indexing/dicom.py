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

from monai_ext.data.dicom.contours import StructureSet, read_structures
from monai_ext.data.dicom.conversion import Outlines, Segment, convert_series, convert_structures, find_contoured
from monai_ext.data.dicom.geometry import find_problems
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.segmentation import Segmentation, read_segmentation
from monai_ext.data.dicom.series import NOT_DICOM, SeriesList, group_headers
from monai_ext.data.folders import natural
from monai_ext.data.images import ensure_writable_folder
from monai_ext.data.indexing.frame import Index, Options
from monai_ext.data.indexing.structures import patterns_of
from monai_ext.errors import UserError

USUAL = ("CT", "MR")

Part: TypeAlias = Outlines | Segment


@dataclass(frozen=True)
class _Drawing:
    """An RTSTRUCT or SEG with the series that it refers to."""

    file: StructureSet | Segmentation
    series: SeriesHeaders

    @property
    def parts(self) -> list[Part]:
        """The ROIs with contours, or the segments."""
        if isinstance(self.file, Segmentation):
            return [Segment(self.file, number) for number in self.file.segments]
        return [Outlines(self.file, roi) for roi in self.file.rois if roi.contours]

    @property
    def names(self) -> list[str]:
        """How the parts are called."""
        return [part.name for part in self.parts]

    @property
    def descriptions(self) -> list[str]:
        """What segments are called besides: the label may be "Neoplasm" and the description "GTV-1"."""
        return list(self.file.descriptions.values()) if isinstance(self.file, Segmentation) else []

    def find(self, pattern: str) -> list[Part]:
        """Return the parts whose name (or description) a regular expression finds, case ignored."""
        if isinstance(self.file, Segmentation):
            return [Segment(self.file, number) for number in self.file.find(pattern)]
        return [Outlines(self.file, roi) for roi in self.file.find(pattern)]


@dataclass(frozen=True)
class _Chosen:
    """A series that becomes a case, and what is drawn on it: (value, ROI or segment)."""

    series: SeriesHeaders
    parts: tuple[tuple[int, Part], ...]


def index_dicom(root: Path, files: Path, options: Options) -> Index:
    """Index a tree of DICOM files, however it is sorted.

    A patient is a PatientID and a visit a StudyDate. RTSTRUCT and SEG go to the series that they refer to, wherever
    they lie. Of a visit, each annotated series is a case; where there is none, it is the one series whose
    SeriesDescription an annotated series of the data has, else the axial one with most slices.

    Args:
        root: folder.
        files: takes the converted volumes.
        options: ``roi`` (NAME=REGEX, in the order in which later ones are drawn over earlier ones; all ROIs that
            one expression finds are united), ``labels``, ``modality``, and ``image_pattern`` for SeriesDescription.

    Returns:
        A case for each chosen series, with or without label; ``dicom_series`` names it.

    Raises:
        UserError: there are no images, it is not clear which ROIs or which modality to take, or the converted files
            cannot be written.
    """
    found = group_headers(root)
    index = Index({"dataset": root.name, "modality": None, "labels": {}, "cases": []})
    index.skipped += [(str(path), why) for path, why in found.skipped if why != NOT_DICOM]
    images = [series for series in found if series.is_image]
    if not images:
        raise UserError(
            f"{root}: holds no DICOM images; give the folder of the series, or use folder or bids for files"
        )
    drawings = _read_drawings(found, images, index)
    images = _of_one_modality(images, drawings, root, options, index)
    if not images:
        raise UserError(f"{root}: no series is left ({index.skipped[-1][0]}: {index.skipped[-1][1]}); choose others")
    kept = {series.series_uid for series in images}
    drawings = [drawing for drawing in drawings if drawing.series.series_uid in kept]
    names = [name for drawing in drawings for name in drawing.names]
    patterns = patterns_of(options, names, [text for drawing in drawings for text in drawing.descriptions if text])
    index.datalist["labels"] = {name: value for name, (value, _) in patterns.items()}
    parts = _match(drawings, patterns, index)
    chosen = _choose(images, parts, index)
    ensure_writable_folder(files)
    counts = Counter(_name(one.series) for one in chosen)
    numbers: Counter[str] = Counter()
    for one in tqdm(chosen, desc="converting DICOM", unit="series"):
        name = _name(one.series)
        numbers[name] += 1
        _add_case(one, f"{name}_{numbers[name]}" if counts[name] > 1 else name, files, patterns, index)
    _add_notes(images, parts, index)
    return index


def _read_drawings(found: SeriesList, images: Sequence[SeriesHeaders], index: Index) -> list[_Drawing]:
    """Read all SEG (first, for they are exact) and RTSTRUCT files, and find the series of each."""
    headers = [header for series in found for header in series.slices if header.modality in ("SEG", "RTSTRUCT")]
    headers.sort(key=lambda header: (header.modality != "SEG", natural(str(header.path))))
    drawings = []
    for header in tqdm(headers, desc="reading contours", unit="file", delay=1, leave=False):
        try:
            file = read_segmentation(header.path) if header.modality == "SEG" else read_structures(header.path)
        except UserError as error:
            index.skipped.append((str(header.path), str(error).removeprefix(f"{header.path}: ")))
            continue
        series = find_contoured(images, file.referenced_series, _slices_of(file))
        if series is None:
            index.skipped.append((str(header.path), "refers to an image series that is not here; add it"))
        else:
            drawings.append(_Drawing(file, series))
    return drawings


def _slices_of(file: StructureSet | Segmentation) -> list[str]:
    if isinstance(file, Segmentation):
        return [uid for frame in file.frames for uid in frame.image_uids]
    return [contour.image_uid for roi in file.rois for contour in roi.contours or () if contour.image_uid]


def _of_one_modality(
    images: list[SeriesHeaders], drawings: Sequence[_Drawing], root: Path, options: Options, index: Index
) -> list[SeriesHeaders]:
    """Keep the series of one modality whose description ``--image_pattern`` finds."""
    if options.modality is not None:
        wanted = {options.modality.upper()}
    else:
        usual = {series.modality for series in images} & set(USUAL)
        wanted = usual & {drawing.series.modality for drawing in drawings} or usual
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


def _match(
    drawings: Iterable[_Drawing], patterns: dict[str, tuple[int, str]], index: Index
) -> dict[str, list[tuple[int, Part]]]:
    """Return what is drawn on each series (by UID); a structure is taken from the first file that has it."""
    taken: dict[tuple[str, str], Path] = {}
    parts: dict[str, list[tuple[int, Part]]] = defaultdict(list)
    for drawing in drawings:
        uid, path = drawing.series.series_uid, drawing.file.path
        matches = {name: drawing.find(pattern) for name, (_, pattern) in patterns.items()}
        if not any(matches.values()):
            there = ", ".join(map(repr, drawing.names)) or "none"
            index.skipped.append((str(path), f"no ROI or segment is one of {', '.join(patterns)} (there are: {there})"))
        for name, found in matches.items():
            first = taken.setdefault((uid, name), path) if found else path
            if first != path:
                index.skipped.append(
                    (str(path), f"{name} of the same series is taken from {first}; remove one of them")
                )
            elif found:
                parts[uid] += [(patterns[name][0], part) for part in found]
    order = [value for value, _ in patterns.values()]
    return {uid: sorted(drawn, key=lambda one: order.index(one[0])) for uid, drawn in parts.items()}


def _choose(images: Iterable[SeriesHeaders], parts: dict[str, list[tuple[int, Part]]], index: Index) -> list[_Chosen]:
    """Choose the series of each visit that become cases, sorted by patient and date."""
    visits: dict[tuple[str, str], list[SeriesHeaders]] = defaultdict(list)
    described = set()
    for series in images:
        date = _date(series)
        visits[series.patient_id, str(date or series.study_uid)].append(series)
        if series.series_uid in parts:
            described.add(series.slices[0].series_description)
    chosen = []
    for key in sorted(visits, key=lambda key: (natural(key[0]), key[1])):
        annotated = [series for series in visits[key] if series.series_uid in parts]
        others = [series for series in visits[key] if series.series_uid not in parts]
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
        chosen += [_Chosen(series, tuple(parts.get(series.series_uid, ()))) for series in annotated]
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


def _add_case(one: _Chosen, case: str, files: Path, patterns: dict[str, tuple[int, str]], index: Index) -> None:
    image, label = files / f"{case}_image.nii.gz", files / f"{case}_label.nii.gz"
    try:
        if one.parts:
            index.notes += [f"{case}: {note}" for note in convert_structures(one.parts, one.series, label)]
        convert_series(one.series, image)
    except UserError as error:
        if str(error).startswith("cannot write"):
            raise
        index.skipped.append((case, str(error)))
        return
    drawn = {value for value, _ in one.parts}
    if one.parts and (missing := [name for name, (value, _) in patterns.items() if value not in drawn]):
        index.notes.append(f"{case}: {', '.join(missing)} is not drawn and counts as background")
    date = _date(one.series)
    index.datalist["cases"].append(
        {
            "case": case,
            "patient": one.series.patient_id,
            "visit": None if date is None else date.isoformat(),
            "image": str(image),
            "label": str(label) if one.parts else None,
            "dicom_series": one.series.origin,
        }
    )


def _add_notes(images: Iterable[SeriesHeaders], parts: dict[str, list[tuple[int, Part]]], index: Index) -> None:
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
    if not parts:
        index.notes.append("nothing is annotated: cases are listed without labels")
