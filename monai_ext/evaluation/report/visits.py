"""Reads what a follow-up run has left: volumes, review scores, masks, and the references they are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from monai_ext.data.images import Geometry, read_geometry, read_image, read_label
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.pairs import pair_with_reference
from monai_ext.data.text import read_table
from monai_ext.errors import UserError
from monai_ext.evaluation.record import REPOSITORY, RUN_FILE, read_record
from monai_ext.metrics.diameters import longest_diameters
from monai_ext.metrics.parts import PartChange, match_parts, number_parts
from monai_ext.metrics.volume import volume_ml
from monai_ext.transforms.sam_input import display_spacing, to_display

LEAST_PART_ML = 0.05
"""Parts below it, and below :data:`LEAST_PART_PIXELS` of a picture, are specks and not followed."""

LEAST_PART_PIXELS = 20
REACH_MM = 5.0
"""How far a part may have moved in scanner coordinates and still count as the same one."""


@dataclass(frozen=True)
class Measures:
    """What is known of a structure in one image.

    Attributes:
        volume: in ml; of a picture without mm the area in pixels.
        change: in percent of the reference; None: there is none to compare with.
        diameters: longest in a slice and the width across it, in mm; None of a picture.
        parts: connected parts.
        slices: that hold it.
        score: of the review; None: it was not reviewed.
        flagged: whether the review asks to look at it.
        reason: of the review.
    """

    volume: float
    change: float | None
    diameters: tuple[float, float] | None
    parts: int
    slices: int
    score: float | None = None
    flagged: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Visit:
    """One image with masks: a reference with its annotation, or a later image with the run's.

    Attributes:
        case: name.
        visit: number, date or "".
        image: file.
        mask: file.
        modality: of the image, "" where it is not known.
        is_reference: whether the mask was given.
        measures: by structure.
        slice_axis: "R", "A" or "S" where the run cut slices orthogonal to it.
        references: that served it, the latest last; of a reference none.
        reference_slices: slice -> number of the reference that served it, and its slice.
        scores: (structure, slice) -> (score, whether it is flagged).
    """

    case: str
    visit: str
    image: Path
    mask: Path
    modality: str
    is_reference: bool
    measures: dict[str, Measures]
    slice_axis: str | None = None
    references: tuple[Visit, ...] = ()
    reference_slices: dict[int, tuple[int, int]] = field(default_factory=dict)
    scores: dict[tuple[str, int], tuple[float, bool]] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """Days of a date, or the number; NaN where it is neither."""
        try:
            return float(date.fromisoformat(self.visit).toordinal())
        except ValueError:
            return float(self.visit) if self.visit.replace(".", "", 1).lstrip("-").isdecimal() else math.nan

    @cached_property
    def geometry(self) -> Geometry:
        """Where the pixels of the image lie."""
        return read_geometry(self.image)

    @cached_property
    def values(self) -> np.ndarray:
        """The mask, upright [H, W, D]."""
        return np.ascontiguousarray(to_display(read_label(self.mask), self.geometry.affine, self.slice_axis))

    @cached_property
    def grey(self) -> np.ndarray:
        """The image, upright [H, W, D], or [H, W, 1, 3] of a picture in colour."""
        image = read_image(self.image)
        if image.ndim == 3 and self.geometry.is_frame:
            return image.transpose(1, 0, 2)[:, :, None]
        return to_display(image, self.geometry.affine, self.slice_axis)

    @property
    def spacing(self) -> np.ndarray:
        """Of H, W and D in mm; ones of a picture."""
        return display_spacing(self.geometry.shape, self.geometry.affine, self.slice_axis)


@dataclass(frozen=True)
class Patient:
    """A patient's references and later images, in time order; ``drawn`` are further annotated visits, as annotated.

    An annotated image can be both, where ``reference_visit`` is ``all`` or ``nearest``: it serves images after its own.
    """

    name: str
    references: tuple[Visit, ...]
    later: tuple[Visit, ...]
    drawn: tuple[Visit, ...] = ()

    @property
    def visits(self) -> tuple[Visit, ...]:
        """All of them, in time order; an annotation before the run's mask of the same image."""
        return _in_time([*self.references, *self.drawn, *self.later])


@dataclass(frozen=True)
class FollowUps:
    """All of a run.

    Attributes:
        dataset: its name.
        labels: name -> value.
        patients: in the order of the list.
        record: ``run.json``.
        calibrated: whether the review's scores are calibrated; None: nothing was reviewed.
    """

    dataset: str
    labels: dict[str, int]
    patients: tuple[Patient, ...]
    record: dict[str, Any]
    calibrated: bool | None = None


def read_follow_ups(folder: Path, datalist: str | Path | None = None) -> FollowUps:
    """Read the output folder of a follow-up run.

    Args:
        folder: with ``run.json``, ``volumes.csv`` and ``masks``.
        datalist: where it lies now; None: where ``run.json`` says.

    Raises:
        UserError: one of these is missing, or the cases are of no follow-up.
    """
    volumes = _rows(folder / "volumes.csv")
    if not volumes or not (folder / RUN_FILE).is_file():
        missing = "volumes.csv" if not volumes else RUN_FILE
        raise UserError(f"{folder}: there is no {missing} of a follow-up in it; name the output folder of such a run")
    record = read_record(folder)
    path, root = _datalist(folder, record, datalist)
    cases = load_datalist(path, root)
    config = record.get("config") or {}
    slice_axis = config.get("slice_axis")
    pairs = {pair["case"]: pair for pair in pair_with_reference(cases, config.get("reference_visit"))}
    reviewed = _rows(folder / "review.csv")
    slices = _reference_slices(folder)
    wanted = {row["label"] for row in volumes}
    labels = {name: value for name, value in cases.labels.items() if name in wanted}
    patients: dict[str, tuple[dict[tuple[str, str], Visit], list[Visit]]] = {}
    for name in dict.fromkeys(row["case"] for row in volumes):
        if name not in pairs:
            raise UserError(f"{folder / 'volumes.csv'}: case {name!r} is not in {path}; name its list with --datalist")
        pair, mask = pairs[name], _mask(folder, name)
        references, later = patients.setdefault(str(pair["patient"] or name), ({}, []))
        serving = []
        for known, image, label in zip(
            pair["reference"], pair["reference_image"], pair["reference_label"], strict=True
        ):
            if (image, label) not in references:
                visit = next(
                    (str(case.visit) for case in cases.cases if case.case == known and case.visit is not None), ""
                )
                given = Visit(known, visit, Path(image), Path(label), str(pair["modality"] or ""), True, {}, slice_axis)
                given.measures.update(_measure(given, labels))
                references[image, label] = given
            serving.append(references[image, label])
        own = [row for row in reviewed if row["case"] == name]
        measures = {row["label"]: _measures(row, own) for row in volumes if row["case"] == name}
        scores = {(r["label"], int(r["slice"])): (float(r["score"]), r["flag"] == "1") for r in own if r["slice"]}
        served = {k: (_number(named, pair["reference"]), own) for k, (named, own) in slices.get(name, {}).items()}
        where = str(pair["visit"]), Path(pair["image"]), mask, str(pair["modality"] or "")
        later.append(Visit(name, *where, False, measures, slice_axis, tuple(serving), served, scores))
    found = []
    for name, (known, later) in patients.items():
        annotated = _in_time(list(known.values()))
        drawn = _drawn(cases, {visit.case for visit in later}, annotated, labels, slice_axis)
        found.append(Patient(name, annotated, _in_time(later), drawn))
    calibrated = any(row["flag"] for row in reviewed) if reviewed else None
    return FollowUps(cases.dataset, labels, tuple(found), record, calibrated)


def _drawn(
    cases: DataList, later: set[str], references: Sequence[Visit], labels: Mapping[str, int], slice_axis: str | None
) -> tuple[Visit, ...]:
    """Return the annotations of a patient's later images: what was drawn where the run has a mask of its own."""
    found = []
    first, known = references[0], {visit.case for visit in references}
    for case in cases.cases:
        if case.case in later and case.case not in known and case.label is not None:
            where = "" if case.visit is None else str(case.visit), Path(str(case.image)), Path(str(case.label))
            visit = Visit(case.case, *where, str(case.modality or cases.modality or ""), True, {}, slice_axis)
            measured = _measure(visit, labels)
            visit.measures.update({name: _against(one, first.measures.get(name)) for name, one in measured.items()})
            found.append(visit)
    return _in_time(found)


def _against(measures: Measures, reference: Measures | None) -> Measures:
    """Return measures with their change against those of a reference."""
    if reference is None or not reference.volume > 0 or math.isnan(measures.volume):
        return measures
    return replace(measures, change=100 * (measures.volume / reference.volume - 1))


def part_changes(before: Visit, after: Visit, value: int) -> tuple[list[PartChange], list[float], list[float]] | None:
    """Match the parts of a structure in two visits by their place in scanner coordinates, without registration.

    Returns:
        The changes, and the sizes of the earlier and the later parts (ml; pixels of pictures); None where the two share
        no coordinates.
    """
    one, other = before.geometry, after.geometry
    earlier, later = read_label(before.mask) == value, read_label(after.mask) == value
    if one.affine is None or other.affine is None:
        if one.shape != other.shape:
            return None
        unit, least, spacing = (1.0, 1.0), (LEAST_PART_PIXELS, LEAST_PART_PIXELS), (1.0,) * later.ndim
        numbers, sizes = number_parts(earlier, least[0])
        reach = 0.0
    else:
        unit = (float(np.prod(one.spacing or 1)) / 1000, float(np.prod(other.spacing or 1)) / 1000)
        least = (math.ceil(LEAST_PART_ML / unit[0]), math.ceil(LEAST_PART_ML / unit[1]))
        numbers, sizes = number_parts(earlier, least[0])
        change = np.linalg.inv(one.affine) @ other.affine
        numbers = ndimage.affine_transform(numbers, change[:3, :3], change[:3, 3], later.shape, order=0, cval=0)
        spacing, reach = tuple(other.spacing or ()), REACH_MM
    found, own = number_parts(later, least[1])
    changes = match_parts(numbers, found, spacing, reach)
    return changes, [size * unit[0] for size in sizes], [size * unit[1] for size in own]


def _measure(visit: Visit, labels: Mapping[str, int]) -> dict[str, Measures]:
    """Measure the structures of an annotation as ``volumes.csv`` does those of the predictions."""
    measures = {}
    spacing = visit.geometry.spacing
    for structure, value in labels.items():
        mask = visit.values == value
        if not mask.any():
            continue
        size = float(mask.sum()) if spacing is None else volume_ml(mask, visit.spacing.tolist())
        lengths = None if spacing is None else longest_diameters(mask, visit.spacing.tolist())
        slices = int(mask.any(axis=(0, 1)).sum())
        measures[structure] = Measures(size, None, lengths, len(number_parts(mask)[1]), slices)
    return measures


def _measures(row: Mapping[str, str], reviewed: list[dict[str, str]]) -> Measures:
    own = next((one for one in reviewed if one["label"] == row["label"] and not one["slice"]), None)
    diameters = (float(row["longest_mm"]), float(row["perpendicular_mm"])) if row["longest_mm"] else None
    return Measures(
        volume=float(row["volume_ml"]) if row["volume_ml"] else math.nan,
        change=float(row["change_percent"]) if row["change_percent"] else None,
        diameters=diameters,
        parts=int(row["parts"]),
        slices=int(row["slices"]),
        score=float(own["score"]) if own else None,
        flagged=bool(own) and (own or {})["flag"] == "1",
        reason=own["reason"] if own else "",
    )


def _in_time(visits: list[Visit]) -> tuple[Visit, ...]:
    """Sort by time; what has none stays as it comes, references first."""
    if any(math.isnan(visit.time) for visit in visits):
        return tuple(sorted(visits, key=lambda visit: not visit.is_reference))
    return tuple(sorted(visits, key=lambda visit: (visit.time, not visit.is_reference, visit.case)))


def _datalist(folder: Path, record: Mapping[str, Any], given: str | Path | None) -> tuple[Path, Path | None]:
    data = record.get("data") or {}
    root = Path(data["root"]) if data.get("root") else None
    if given is not None:
        return Path(given), None
    entry = data.get("datalist") or {}
    bases: dict[Any, Path | None] = {"output_dir": folder, "repository": REPOSITORY, "data_root": root}
    base = bases.get(entry.get("in"))
    path = Path(entry.get("path", "")) if base is None else base / entry["path"]
    if not path.is_file():
        raise UserError(f"{folder}: the data list {path} of this run is not there; name it with --datalist")
    return path, root


def _mask(folder: Path, case: str) -> Path:
    found = [folder / "masks" / f"{case}{suffix}" for suffix in (".nii.gz", ".png")]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise UserError(f"{folder / 'masks'}: the mask of case {case!r} is not there; run it again")
    return path


def _reference_slices(folder: Path) -> dict[str, dict[int, tuple[str, int]]]:
    """Return case -> slice -> the names of the references that served it, and the slice of the first of them."""
    found: dict[str, dict[int, tuple[str, int]]] = {}
    for row in _rows(folder / "prompts.csv"):
        if row.get("reference_slice"):
            served = row["reference_slice"].split("+")[0].split(";")[0]
            found.setdefault(row["case"], {})[int(row["slice"])] = row.get("reference") or "", int(float(served))
    return found


def _number(named: str, references: Sequence[str]) -> int:
    """Return the number of the reference with which joined names begin; 0 where it is not said."""
    fitting = [number for number, name in enumerate(references) if f"{named}+".startswith(f"{name}+")]
    return max(fitting, key=lambda number: len(references[number]), default=0)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    header, *lines = read_table(path, "remove it and run again") or [[]]
    return [dict(zip(header, line, strict=True)) for line in lines]
