"""4D-Lung: CT of breathing gates with contours of the tumour, several visits of a patient."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from monai_ext.data.cards import Card
from monai_ext.data.dicom.assignment import NOT_HERE, NotAssignedError, SeriesFinder
from monai_ext.data.dicom.conversion import convert_series, convert_structures
from monai_ext.data.dicom.drawing import Outlines
from monai_ext.data.dicom.headers import SeriesHeaders, SliceHeader
from monai_ext.data.dicom.rtstruct_reader import Roi, StructureSet, read_structures
from monai_ext.data.dicom.series import NOT_DICOM, group_headers
from monai_ext.data.folders import natural
from monai_ext.data.indexing.index import Index, Options, nothing_found, start_list
from monai_ext.data.indexing.structures import structure_to_find
from monai_ext.errors import UserError
from monai_ext.files import ensure_writable_folder

GATES = (0,)  # P2SAM uses the first of the ten
LEFT_OUT = "118_HM10395"

_GATE_IN_DESCRIPTION = re.compile(r"gated\W*(\d+)(?:\.\d+)?", re.IGNORECASE)
_GATE_IN_ROI = re.compile(r"_c(\d+)$", re.IGNORECASE)
_DATE_IN_FOLDER = re.compile(r"(\d{2})-(\d{2})-(\d{4})")


@dataclass(frozen=True)
class _Contoured:
    """A CT series with the contours of its tumour."""

    series: SeriesHeaders
    outlines: tuple[Outlines, ...]  # one an RTSTRUCT
    gate: int
    date: datetime.date

    @property
    def key(self) -> tuple[str, datetime.date, int]:
        return self.series.patient_id, self.date, self.gate


def index_four_d_lung(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index ``<patient>/<MM-DD-YYYY>-.../<series>/*.dcm``: each RTSTRUCT with the CT series that it refers to.

    Visits are ordered by their parsed date. Folder names play no role, so that any sorting of the files will do.

    Args:
        root: folder of the download.
        files: takes the converted volumes.
        card: of 4D-Lung.
        options: ``gates`` (default: gate 0) and ``roi`` (REGEX or NAME=REGEX), which finds the tumour's ROI
            by its name. Where it finds several in one file, the first is taken, as P2SAM does.

    Returns:
        A case for each visit and gate; ``dicom_series`` names its CT series.

    Raises:
        UserError: nothing looks like CT with contours, ``roi`` is no regular expression, or the converted files
            cannot be written.
    """
    gates = GATES if options.gates is None else options.gates
    index = Index(start_list(card))
    value, pattern = structure_to_find(card, options, index)

    def matters(header: SliceHeader) -> bool:
        return header.modality == "RTSTRUCT" or gate_of(header.series_description) in (*gates, None)

    found = group_headers(root, keep=matters)
    index.skipped += [(str(path), why) for path, why in found.skipped if why != NOT_DICOM]
    index.notes += found.notes
    contours = [header.path for series in found if series.modality == "RTSTRUCT" for header in series.slices]
    images = [series for series in found if series.is_image]
    if not contours or not images:
        raise nothing_found(root, card)
    contoured = _match(contours, images, pattern, gates, index)
    if len(gates) > 1:
        index.notes.append("gates of a visit are images of one visit, which P2SAM takes as one reference")
    ensure_writable_folder(files)
    for one in tqdm(contoured, desc="converting DICOM", unit="series"):
        _add_case(one, contoured, files, value, index)
    _add_notes(contoured, index)
    return index


def gate_of(description: str) -> int | None:
    """Read the breathing phase in percent from a SeriesDescription ("P4^P107^S300^I00003, Gated, 0.0%A")."""
    match = _GATE_IN_DESCRIPTION.search(description)
    return int(match[1]) if match else None


def _match(
    contours: Iterable[Path], images: list[SeriesHeaders], pattern: str, gates: tuple[int, ...], index: Index
) -> list[_Contoured]:
    """Bring RTSTRUCT files and CT series together, sorted by patient, date and gate."""
    finder = SeriesFinder(images)
    matched: dict[Path, _Contoured] = {}
    others: Counter[int] = Counter()
    referenced: set[str] = set()
    for path in tqdm(list(contours), desc="reading contours", unit="file", delay=1, leave=False):
        try:
            structures = read_structures(path, pattern)
            referenced.update(structures.referenced_series)
            one = _contoured(structures, finder, pattern, gates)
        except UserError as error:
            index.skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
            continue
        if isinstance(one, int):
            others[one] += 1
        elif (key := one.series.key) in matched:
            matched[key] = replace(matched[key], outlines=(*matched[key].outlines, *one.outlines))
        else:
            matched[key] = one
    if others:
        listed = " ".join(map(str, sorted(others)))
        index.notes.append(f"{others.total()} RTSTRUCT files are of other gates; --gates {listed} would take them")
    index.skipped += [
        (str(series.slices[0].path.parent), "CT of a gate that no RTSTRUCT here contours; download its RTSTRUCT too")
        for series in images
        if series.series_uid not in referenced
        and series.key not in matched
        and gate_of(series.slices[0].series_description) in gates
    ]
    return sorted(matched.values(), key=lambda one: (natural(one.key[0]), *one.key[1:], str(one.outlines[0].file.path)))


def _contoured(
    structures: StructureSet, finder: SeriesFinder, pattern: str, gates: tuple[int, ...]
) -> _Contoured | int:
    """Find the series and the tumour of one RTSTRUCT; another gate's number where it is not asked for."""
    rois = structures.find(pattern)
    series, why = _find_series(structures, rois, finder)
    descriptions = [structures.series_description] if series is None else [series.slices[0].series_description]
    named = [int(match[1]) for roi in structures.rois if (match := _GATE_IN_ROI.search(roi.name))]
    gate = next((g for g in map(gate_of, descriptions) if g is not None), named[0] if named else None)
    if gate is not None and gate not in gates:
        return gate
    if series is None:
        raise UserError(why)
    if gate is None:
        raise UserError(f"neither its CT series ({descriptions[0]!r}) nor its ROIs name a breathing gate; rename it")
    if not rois:
        names = ", ".join(repr(roi.name) for roi in structures.rois) or "none"
        raise UserError(f"no ROI with contours is called {pattern!r} (there are: {names}); choose one with --roi")
    date = series.slices[0].study_date or structures.study_date or _date_of_folder(series.slices[0].path)
    if date is None:
        raise UserError("neither the files nor their folders say the date of the visit; it orders the visits")
    return _Contoured(series, (Outlines(structures, rois[0]),), gate, date)


def _find_series(
    structures: StructureSet, rois: Sequence[Roi], finder: SeriesFinder
) -> tuple[SeriesHeaders | None, str]:
    """Return the series of the first ROI (of the file, where it has none), or None and why."""
    why = "refers to a CT series that is not here; download it too"
    if not rois:
        named = (series for series in finder.images if series.series_uid in structures.references)
        return next(named, None), why
    try:
        return finder.find(Outlines(structures, rois[0])), ""
    except NotAssignedError as error:
        return None, why if str(error) == NOT_HERE else f"ROI {rois[0].name!r} {error}"


def _date_of_folder(path: Path) -> datetime.date | None:
    """Read MM-DD-YYYY from the innermost folder whose name holds it."""
    for folder in path.parents:
        match = _DATE_IN_FOLDER.match(folder.name)
        if match:
            month, day, year = map(int, match.groups())
            try:
                return datetime.date(year, month, day)
            except ValueError:
                return None
    return None


def _add_case(one: _Contoured, contoured: list[_Contoured], files: Path, value: int, index: Index) -> None:
    patient, date, gate = one.key
    same = [other for other in contoured if other.key == one.key]
    study = f"_{same.index(one) + 1}" if len(same) > 1 else ""
    case = re.sub(r"[^\w.+-]", "_", f"{patient}_{date}{study}_gate{gate:02d}")
    image, label = files / f"{case}_image.nii.gz", files / f"{case}_label.nii.gz"
    try:
        index.notes += convert_structures([(value, outlines) for outlines in one.outlines], one.series, label)
        convert_series(one.series, image)
    except UserError as error:
        if str(error).startswith("cannot write"):
            raise
        index.skipped.append((case, str(error)))
        return
    taken = one.outlines[0]
    others = [roi.name for roi in taken.file.rois if roi.contours and roi is not taken.roi]
    if others:
        index.notes.append(f"{case}: took ROI {taken.name!r}, not {', '.join(map(repr, others))}; see --roi")
    entry = {"case": case, "patient": patient, "visit": date.isoformat(), "gate": gate}
    source = {"roi": taken.name, "dicom_series": one.series.origin}
    index.datalist["cases"].append({**entry, "image": str(image), "label": str(label), **source})


def _add_notes(contoured: list[_Contoured], index: Index) -> None:
    dates = {patient: set() for patient, _, _ in (one.key for one in contoured)}  # type: dict[str, set[datetime.date]]
    for one in contoured:
        dates[one.key[0]].add(one.date)
    single = sorted(patient for patient, days in dates.items() if len(days) == 1)
    if single:
        index.notes.append(f"only one visit, so nothing to follow up, of {', '.join(single)}")
    for (patient, date, _), count in Counter(one.key for one in contoured).items():
        if count > 1:
            index.notes.append(
                f"{patient} has {count} studies on {date}; they are numbered in the order of their folders"
            )
    if LEFT_OUT in dates:
        index.notes.append(f"{LEFT_OUT}: P2SAM's authors leave this patient out (12 patients in their table)")
