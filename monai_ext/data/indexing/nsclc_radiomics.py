"""NSCLC-Radiomics: one CT a patient with the primary tumour as DICOM SEG, or as RTSTRUCT where there is no SEG."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from monai_ext.data.cards import Card
from monai_ext.data.dicom.contours import Roi, StructureSet, read_structures
from monai_ext.data.dicom.conversion import convert_roi, convert_segment, convert_series, find_contoured
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.segmentation import Segmentation, read_segmentation
from monai_ext.data.dicom.series import NOT_DICOM, SeriesList, group_headers
from monai_ext.data.folders import natural
from monai_ext.data.images import ensure_writable_folder
from monai_ext.data.indexing.frame import Index, Options, nothing_found, start_list
from monai_ext.data.indexing.structures import structure_to_find
from monai_ext.errors import UserError


@dataclass(frozen=True)
class _Segment:
    """One segment of a SEG."""

    file: Segmentation
    number: int

    def convert(self, series: SeriesHeaders, path: Path, value: int) -> list[str]:
        convert_segment(self.file, self.number, series, path, value)
        return []


@dataclass(frozen=True)
class _Outlines:
    """One ROI of an RTSTRUCT."""

    file: StructureSet
    roi: Roi

    def convert(self, series: SeriesHeaders, path: Path, value: int) -> list[str]:
        return convert_roi(self.file.path, self.roi, series, path, value)


def index_nsclc_radiomics(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index ``LUNG1-*/<study>/<series>/*.dcm``: CT with SEG (preferred) or RTSTRUCT.

    Args:
        root: folder of the download.
        files: takes the converted volumes.
        card: of NSCLC-Radiomics; its split is made of the complete set only.
        options: ``roi`` (REGEX or NAME=REGEX) finds the segment (by label or description) or the ROI.

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
    images = [series for series in found if series.is_image]
    if not images:
        raise nothing_found(root, card)
    sources: dict[str, _Segment | _Outlines] = {}
    _add_segments(sources, found, images, pattern, index)
    segments = len(sources)
    _add_outlines(sources, found, images, pattern, index)
    ensure_writable_folder(files)
    for series in tqdm(sorted(images, key=lambda s: natural(s.patient_id)), desc="converting DICOM", unit="series"):
        if series.series_uid not in sources:
            index.skipped.append((series.name, f"no segment or ROI {pattern!r} refers to this series"))
            continue
        _add_case(series, sources, images, files, value, index)
    _add_splits(card, index)
    if outlined := len(sources) - segments:
        index.notes.append(f"{outlined} of {len(sources)} label maps were drawn from RTSTRUCT, the others from SEG")
    return index


def _files_of(found: SeriesList, modality: str) -> list[Path]:
    return [header.path for series in found if series.modality == modality for header in series.slices]


def _add_segments(
    sources: dict[str, _Segment | _Outlines],
    found: SeriesList,
    images: Collection[SeriesHeaders],
    pattern: str,
    index: Index,
) -> None:
    """Add the segment for each series (by SeriesInstanceUID) that a SEG refers to."""
    for path in tqdm(_files_of(found, "SEG"), desc="reading SEG headers", unit="file", delay=1, leave=False):
        try:
            file = read_segmentation(path)
        except UserError as error:
            index.skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
            continue
        uids = [uid for frame in file.frames for uid in frame.image_uids]
        series, numbers = find_contoured(images, file.referenced_series, uids), file.find(pattern)
        if series is None:
            index.skipped.append((str(path), "refers to an image series that is not here; download it too"))
        elif not numbers:
            names = ", ".join(map(repr, file.segments.values()))
            index.skipped.append((str(path), f"no segment is called {pattern!r} (there are: {names}); see --roi"))
        elif series.series_uid in sources:
            index.skipped.append((str(path), "segments a series that another SEG segments too"))
        else:
            sources[series.series_uid] = _Segment(file, numbers[0])


def _add_outlines(
    sources: dict[str, _Segment | _Outlines],
    found: SeriesList,
    images: Collection[SeriesHeaders],
    pattern: str,
    index: Index,
) -> None:
    """Add the ROI for each series without a segment that an RTSTRUCT refers to."""
    for path in tqdm(_files_of(found, "RTSTRUCT"), desc="reading contours", unit="file", delay=1, leave=False):
        try:
            file = read_structures(path, pattern)
        except UserError as error:
            index.skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
            continue
        rois = file.find(pattern)
        uids = [contour.image_uid for roi in rois for contour in roi.contours or ()]
        series = find_contoured(images, file.referenced_series, uids)
        if series is not None and rois:
            sources.setdefault(series.series_uid, _Outlines(file, rois[0]))


def _add_case(
    series: SeriesHeaders,
    sources: dict[str, _Segment | _Outlines],
    images: Collection[SeriesHeaders],
    files: Path,
    value: int,
    index: Index,
) -> None:
    own = [
        other.series_uid for other in images if other.patient_id == series.patient_id and other.series_uid in sources
    ]
    number = f"_{own.index(series.series_uid) + 1}" if len(own) > 1 else ""
    case = re.sub(r"[^\w.+-]", "_", f"{series.patient_id}{number}")
    image, label = files / f"{case}_image.nii.gz", files / f"{case}_label.nii.gz"
    try:
        index.notes += sources[series.series_uid].convert(series, label, value)
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
