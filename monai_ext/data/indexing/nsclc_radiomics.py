"""NSCLC-Radiomics: one CT a patient with the primary tumour as DICOM SEG, or as RTSTRUCT where there is no SEG."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from tqdm import tqdm

from monai_ext.data.cards import Card
from monai_ext.data.dicom.assignment import NOT_HERE, NotAssignedError, SeriesFinder
from monai_ext.data.dicom.conversion import convert_series, convert_structures
from monai_ext.data.dicom.drawing import Drawing, Outlines, Segment
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.rtstruct_reader import read_structures
from monai_ext.data.dicom.segmentation import read_segmentation
from monai_ext.data.dicom.series import NOT_DICOM, SeriesList, group_headers
from monai_ext.data.folders import natural
from monai_ext.data.indexing.index import Index, Options, nothing_found, start_list
from monai_ext.data.indexing.structures import structure_to_find
from monai_ext.errors import UserError
from monai_ext.files import ensure_writable_folder


def index_nsclc_radiomics(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index ``LUNG1-*/<study>/<series>/*.dcm``: CT with SEG (preferred) or RTSTRUCT.

    Args:
        root: folder of the download.
        files: takes the converted volumes.
        card: of NSCLC-Radiomics; its split is made of the complete set only.
        options: ``roi`` (REGEX or NAME=REGEX) finds the segment (by label or description) or the ROI; what it finds
            on one CT is united.

    Returns:
        A case a patient; ``dicom_series`` names its CT series.

    Raises:
        UserError: nothing looks like CT with segmentations, ``roi`` is no regular expression, or the converted
            files cannot be written.
    """
    index = Index(start_list(card))
    value, pattern = structure_to_find(card, options, index)
    found = group_headers(root)
    index.skipped += [(str(path), why) for path, why in found.skipped if why != NOT_DICOM]
    index.notes += found.notes
    images = [series for series in found if series.is_image]
    if not images:
        raise nothing_found(root, card)
    finder = SeriesFinder(images)
    drawn = _assign(_read_segments(found, pattern, index), finder, index)
    segmented = set(drawn)
    for key, outlines in _assign(_read_outlines(found, pattern, index), finder, index).items():
        drawn.setdefault(key, outlines)
    ensure_writable_folder(files)
    for series in tqdm(sorted(images, key=lambda s: natural(s.patient_id)), desc="converting DICOM", unit="series"):
        if series.key not in drawn:
            index.skipped.append((series.name, f"no segment or ROI {pattern!r} refers to this series"))
            continue
        _add_case(series, drawn, images, files, value, index)
    _add_splits(card, index)
    if outlined := len(drawn) - len(segmented):
        index.notes.append(f"{outlined} of {len(drawn)} label maps were drawn from RTSTRUCT, the others from SEG")
    return index


def _files_of(found: SeriesList, modality: str) -> list[Path]:
    return [header.path for series in found if series.modality == modality for header in series.slices]


def _read_segments(found: SeriesList, pattern: str, index: Index) -> list[Drawing]:
    segments: list[Drawing] = []
    for path in tqdm(_files_of(found, "SEG"), desc="reading SEG headers", unit="file", delay=1, leave=False):
        try:
            file = read_segmentation(path)
        except UserError as error:
            index.skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
            continue
        numbers = file.find(pattern)
        segments += [Segment(file, number) for number in numbers]
        if not numbers:
            names = ", ".join(map(repr, file.segments.values()))
            index.skipped.append((str(path), f"no segment is called {pattern!r} (there are: {names}); see --roi"))
    return segments


def _read_outlines(found: SeriesList, pattern: str, index: Index) -> list[Drawing]:
    outlines: list[Drawing] = []
    for path in tqdm(_files_of(found, "RTSTRUCT"), desc="reading contours", unit="file", delay=1, leave=False):
        try:
            file = read_structures(path, pattern)
        except UserError as error:
            index.skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
            continue
        outlines += [Outlines(file, roi) for roi in file.find(pattern)]
    return outlines


def _assign(drawings: Iterable[Drawing], finder: SeriesFinder, index: Index) -> dict[Path, list[Drawing]]:
    """Return what is drawn on each series, by its key."""
    drawn: dict[Path, list[Drawing]] = {}
    for drawing in drawings:
        try:
            drawn.setdefault(finder.find(drawing).key, []).append(drawing)
        except NotAssignedError as error:
            why = "refers to an image series that is not here; download it too"
            sentence = why if str(error) == NOT_HERE else f"{drawing.name!r} {error}"
            index.skipped.append((str(drawing.file.path), sentence))
    return drawn


def _add_case(
    series: SeriesHeaders,
    drawn: dict[Path, list[Drawing]],
    images: Collection[SeriesHeaders],
    files: Path,
    value: int,
    index: Index,
) -> None:
    own = [other.key for other in images if other.patient_id == series.patient_id and other.key in drawn]
    number = f"_{own.index(series.key) + 1}" if len(own) > 1 else ""
    case = re.sub(r"[^\w.+-]", "_", f"{series.patient_id}{number}")
    image, label = files / f"{case}_image.nii.gz", files / f"{case}_label.nii.gz"
    try:
        structures = [(value, drawing) for drawing in drawn[series.key]]
        index.notes += convert_structures(structures, series, label)
        convert_series(series, image)
    except UserError as error:
        if str(error).startswith("cannot write"):
            raise
        index.skipped.append((case, str(error)))
        return
    date = series.slices[0].study_date
    entry = {"case": case, "patient": series.patient_id, "visit": None if date is None else date.isoformat()}
    named = {"image": str(image), "label": str(label), "dicom_series": series.origin}
    index.datalist["cases"].append({**entry, **named})


def _add_splits(card: Card, index: Index) -> None:
    cases = index.datalist["cases"]
    splits = card.assign("split", [entry["patient"] for entry in cases])
    for entry in cases:
        entry["split"] = splits.get(entry["patient"])
    if cases and not splits:
        index.notes.append(
            f"no split: the card cuts it from the sorted names of the complete set, here are {len(cases)}"
        )
