"""Masks back to DICOM, as SEG or RTSTRUCT in the patient's frame of reference.

    python -m monai_ext.data.dicom.export --mask MASK.nii.gz --series FOLDER --labels tumour=1 \\
        --format rtstruct --output OUT.dcm
    python -m monai_ext.data.dicom.export --masks OUT/masks --datalist LIST.json --format rtstruct --output OUT/dicom

A mask lies on the grid of the series that it was predicted on, in any order and direction of the axes. SEG holds it
voxel by voxel, RTSTRUCT as outlines between voxel centres, so that a reader that asks which centres lie inside gets
the very mask back. What is written is read back and compared before the file gets its name. Neither kind of file
has a use for a structure that is nowhere: empty ones are left out, and an empty mask is not exported; a file that an
earlier call has made of the case goes. With --measures OUT/volumes.csv, volumes and diameters become a structured
report beside each file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.contours import contour_mask
from monai_ext.data.dicom.reading import quiet_lengths
from monai_ext.data.dicom.rtstruct_reader import read_structures
from monai_ext.data.dicom.rtstruct_writer import build_rtstruct
from monai_ext.data.dicom.seg_writer import build_seg
from monai_ext.data.dicom.segmentation import read_segmentation, segment_mask
from monai_ext.data.dicom.source import describe_grid, load_source, place_on_series
from monai_ext.data.dicom.sr_writer import Measured, build_sr, read_sr
from monai_ext.data.dicom.structures import (
    PRODUCT,
    Code,
    Maker,
    Source,
    Structure,
    check_maker,
    check_name,
    colour_of,
    find_codes,
)
from monai_ext.data.images import is_frame, read_geometry, read_label
from monai_ext.data.manifest import Case, load_datalist
from monai_ext.data.text import read_table
from monai_ext.errors import UserError, report_user_errors
from monai_ext.files import PathLike, atomic_path

if TYPE_CHECKING:
    from pydicom import Dataset

MIN_DICE = 0.99  # of an RTSTRUCT that is read back; SEG must agree in every voxel
SERIES_KEY = "dicom_series"  # of a case in a data list: {"folder": ..., "uid": ...}

Codes: TypeAlias = Mapping[str, Code]
Build: TypeAlias = Callable[[Source, Sequence[Structure], Maker], "Dataset"]
ReadBack: TypeAlias = Callable[[Path, Source], dict[str, NDArray[np.bool_]]]


@dataclass(frozen=True)
class Exported:
    """What became of one mask.

    Args:
        path: the file; None where the mask was empty and none was written.
        voxels: number of voxels of each structure that was written.
        dice: of each of them, the mask read back against the mask given.
        notes: sentences on what was left out.
    """

    path: Path | None
    voxels: dict[str, int]
    dice: dict[str, float]
    notes: tuple[str, ...]


def export_mask(
    mask: PathLike,
    source: Source,
    labels: Mapping[str, int],
    output: PathLike,
    kind: str,
    *,
    algorithm: str = PRODUCT,
    categories: Codes | None = None,
    types: Codes | None = None,
) -> Exported:
    """Write one mask as DICOM, read it back and compare.

    The same mask file (and its time of change, which becomes the date of the contents) gives the same bytes.

    Args:
        mask: NIfTI label map on the grid of the series.
        source: the series, from :func:`~monai_ext.data.dicom.source.load_source`.
        labels: value of each structure that is written.
        output: file to write; replaced where there is one.
        kind: "seg" or "rtstruct".
        algorithm: name of the method that made the mask.
        categories: coded category of structures, by name (default: by :func:`find_codes`).
        types: coded type of structures, by name.

    Raises:
        UserError: the mask does not lie on the grid of the series or cannot be read, a name cannot stand in DICOM,
            or the file cannot be written.
        RuntimeError: what was read back differs from what was to be written; nothing is left behind.
    """
    _check_output(Path(output), source)
    structures, notes = _find_structures(Path(mask), source, labels, categories or {}, types or {})
    if not structures:
        held = [note.rpartition(": ")[2] for note in notes if note.startswith(f"{mask}: no name")]
        why = "; ".join([f"{mask}: no structure has a voxel, so there is nothing to write", *held])
        return Exported(None, {}, {}, (why,))
    maker = Maker(algorithm, datetime.fromtimestamp(os.stat(mask).st_mtime).replace(microsecond=0))
    check_maker(maker)
    build, read_back, least = FORMATS[kind]
    with atomic_path(output) as temporary:
        build(source, structures, maker).save_as(temporary, enforce_file_format=True)
        dice = _compare(structures, read_back(temporary, source))
        if min(dice.values()) < least:
            raise RuntimeError(f"{output}: what was read back differs from the mask (Dice {dice}); nothing was written")
    voxels = {structure.name: int(structure.mask.sum()) for structure in structures}
    return Exported(Path(output), voxels, dice, tuple(notes))


def export_measures(
    mask: PathLike,
    source: Source,
    labels: Mapping[str, int],
    measured: Mapping[str, Measured],
    output: PathLike,
    *,
    algorithm: str = PRODUCT,
    categories: Codes | None = None,
    types: Codes | None = None,
) -> None:
    """Write measures of a mask's structures as a structured report, read it back and compare.

    Args:
        mask: NIfTI label map on the grid of the series, which says what slices a structure is on.
        source: the series.
        labels: value of each structure.
        measured: by structure; each has voxels in the mask.
        output: file to write; replaced where there is one.
        algorithm: name of the method that made the mask.
        categories: coded category of structures, by name.
        types: coded type of structures, by name.

    Raises:
        UserError: as :func:`export_mask`.
        RuntimeError: what was read back differs; nothing is left behind.
    """
    wanted = {name: value for name, value in labels.items() if name in measured}
    structures, _ = _find_structures(Path(mask), source, wanted, categories or {}, types or {})
    maker = Maker(algorithm, datetime.fromtimestamp(os.stat(mask).st_mtime).replace(microsecond=0))
    with atomic_path(output) as temporary:
        build_sr(source, structures, measured, maker).save_as(temporary, enforce_file_format=True)
        if read_sr(temporary) != dict(measured):
            raise RuntimeError(f"{output}: what was read back differs from the measures; nothing was written")


def read_measures(path: Path) -> dict[str, dict[str, Measured]]:
    """Read ``volumes.csv``: the measures of each case's structures; those without a volume in ml are left out.

    Raises:
        UserError: there is no such table.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such table; give the volumes.csv of a run with --measures")
    header, *lines = read_table(path, "run again") or [[]]
    if missing := {"case", "label", "volume_ml", "longest_mm", "perpendicular_mm"} - set(header):
        raise UserError(f"{path}: has no column {min(missing)}; give the volumes.csv of a run with --measures")
    found: dict[str, dict[str, Measured]] = {}
    for row in (dict(zip(header, line, strict=True)) for line in lines):
        if row["volume_ml"]:
            lengths = [float(row[name]) if row[name] else None for name in ("longest_mm", "perpendicular_mm")]
            found.setdefault(row["case"], {})[row["label"]] = Measured(float(row["volume_ml"]), *lengths)
    return found


def _check_output(output: Path, source: Source) -> None:
    if any(header.path.resolve() == output.resolve() for header in source.series.slices):
        raise UserError(f"{output}: this is a slice of the series; choose another --output")
    if output.is_dir():
        raise UserError(f"{output}: this is a folder; name the file to write with --output")


# Structures


def _find_structures(
    path: Path, source: Source, labels: Mapping[str, int], categories: Codes, types: Codes
) -> tuple[list[Structure], list[str]]:
    """Return the structures that have voxels, on the grid of the series, and what to say of the others."""
    mask = _read_mask(path, source)
    notes = []
    unnamed = sorted(set(np.unique(mask).tolist()) - {0, *labels.values()})
    if unnamed:
        values = ", ".join(map(str, unnamed[:10]))
        notes.append(f"{path}: no name is given for the value {values}; it was left out")
    structures = []
    for number, (name, value) in enumerate(labels.items()):
        check_name(name)
        inside = mask == value
        if not inside.any():
            notes.append(f"{path}: {name} (value {value}) has no voxel; it was left out")
            continue
        category, kind, side = find_codes(name)
        structure = Structure(name, inside, colour_of(number), categories.get(name, category), kind, side)
        if name in types:
            structure = replace(structure, type=types[name], side=None)
        structures.append(structure)
    return structures, notes


def _read_mask(path: Path, source: Source) -> NDArray[np.int32]:
    """Read a mask [X, Y, Z] onto the grid of the series."""
    if is_frame(path):
        raise UserError(f"{path}: a picture does not say where it lies in the patient; give the mask as NIfTI")
    mask, affine = read_label(path), np.asarray(read_geometry(path).affine)
    placed = place_on_series(mask, affine, source)
    if placed is None:
        raise UserError(
            f"{path}: the mask has {describe_grid(mask.shape, affine)}, but the series "
            f"{source.series.name} {describe_grid(source.shape, source.affine)}; "
            "give the series that the mask was made on, or resample the mask to it"
        )
    return placed


# Reading back


def _compare(structures: Sequence[Structure], found: Mapping[str, NDArray[np.bool_]]) -> dict[str, float]:
    if list(found) != [structure.name for structure in structures]:
        return {structure.name: 0.0 for structure in structures}
    return {structure.name: _dice(structure.mask, found[structure.name]) for structure in structures}


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Dice of two masks, the first of which is not empty."""
    return 2 * int((one & other).sum()) / (int(one.sum()) + int(other.sum()))


def read_back_rtstruct(path: Path, source: Source) -> dict[str, NDArray[np.bool_]]:
    """Read every ROI of an RTSTRUCT onto the grid of the series, by name."""
    structures = read_structures(path)
    return {roi.name: contour_mask(roi.contours or (), source.shape, source.affine)[0] for roi in structures.rois}


def read_back_seg(path: Path, source: Source) -> dict[str, NDArray[np.bool_]]:
    """Read every segment of a SEG onto the grid of the series, by label.

    Raises:
        RuntimeError: highdicom, which goes by the referenced slices, and this package, which goes by positions,
            read different masks.
    """
    from highdicom.seg import segread

    segmentation, seg = read_segmentation(path), segread(path)
    pixels = seg.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in source.headers], assert_missing_frames_are_empty=True
    )
    masks = {label: segment_mask(segmentation, n, source.series) for n, label in segmentation.segments.items()}
    for plane, (label, mask) in zip(np.moveaxis(pixels, -1, 0), masks.items(), strict=True):
        if not np.array_equal(plane.transpose(2, 1, 0) != 0, mask):
            raise RuntimeError(f"{path}: highdicom reads another mask of {label!r}; nothing was written")
    return masks


FORMATS: dict[str, tuple[Build, ReadBack, float]] = {
    "seg": (build_seg, read_back_seg, 1.0),
    "rtstruct": (build_rtstruct, read_back_rtstruct, MIN_DICE),
}


# Command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parse(arguments)
    if options.measures and options.masks is None:
        raise UserError("--measures has those of all cases of a run: give --masks and --datalist with it, not --mask")
    with quiet_lengths():
        if options.masks is None:
            _export_one(options)
        else:
            _export_all(options)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m monai_ext.data.dicom.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    masks = parser.add_mutually_exclusive_group(required=True)
    masks.add_argument("--mask", help="NIfTI label map on the grid of the series")
    masks.add_argument("--masks", help="folder with <case>.nii.gz of cases of --datalist")
    parser.add_argument("--series", help="folder of the DICOM series (default: that of the case in --datalist)")
    parser.add_argument("--series_uid", help="SeriesInstanceUID, where the folder holds several series")
    parser.add_argument("--labels", nargs="+", metavar="NAME=VALUE", help="structures to write, such as tumour=1")
    parser.add_argument("--datalist", help="data list of the cases: gives labels and series")
    parser.add_argument("--data_root", help="folder that relative paths of the list refer to (default: the list's)")
    parser.add_argument("--format", choices=tuple(FORMATS), required=True)
    parser.add_argument("--output", required=True, help="file to write; with --masks the folder, <case>.dcm in it")
    parser.add_argument(
        "--measures", help="volumes.csv of the run: also writes <case>_measures.dcm, a report (TID 1500)"
    )
    parser.add_argument("--algorithm", default=PRODUCT, help=f"name of the method (default: {PRODUCT})")
    examples = {"type": "108369006:SCT:Neoplasm", "category": "49755003:SCT:Morphologically Abnormal Structure"}
    for name, example in examples.items():
        parser.add_argument(
            f"--{name}",
            nargs="+",
            default=[],
            metavar="NAME=VALUE:SCHEME:MEANING",
            help=f"its coded {name}, such as tumour={example} (default: by its name, else tissue)",
        )
    return parser.parse_args(arguments)


def _export_one(options: argparse.Namespace) -> None:
    cases, labels = _read_list(options)
    labels = _parse_labels(options.labels) if options.labels else labels
    if not labels:
        raise UserError("which value is which structure? say so with --labels NAME=VALUE, or give the --datalist")
    folder, uid = options.series, options.series_uid
    if folder is None:
        name = _case_name(Path(options.mask))
        case = next((case for case in cases if case.case == name), None)
        if case is None:
            raise UserError(f"{options.mask}: which series is it of? say so with --series FOLDER")
        folder, own = _series_of(case, _root(options))
        uid = uid or own
    exported = export_mask(
        options.mask, load_source(folder, uid), labels, options.output, options.format, **_details(options, labels)
    )
    if exported.path is None:
        raise UserError(exported.notes[0])
    _report(exported)


def _export_all(options: argparse.Namespace) -> None:
    if options.datalist is None or options.series is not None or options.series_uid is not None:
        raise UserError("--masks takes the series from the data list: give --datalist, not --series or --series_uid")
    cases, labels = _read_list(options)
    labels = _parse_labels(options.labels) if options.labels else labels
    folder = Path(options.masks)
    paths = {case.case: folder / f"{case.case}.nii.gz" for case in cases}
    present = [case for case in cases if paths[case.case].is_file()]
    if not present:
        raise UserError(f"{folder}: holds no mask of a case of {options.datalist} (<case>.nii.gz); check --masks")
    written, details = 0, _details(options, labels)
    measures = read_measures(Path(options.measures)) if options.measures else {}
    for case in present:
        with _naming(case.case):
            source = load_source(*_series_of(case, _root(options)))
            output = Path(options.output) / f"{case.case}.dcm"
            exported = export_mask(paths[case.case], source, labels, output, options.format, **details)
            known = {name: one for name, one in measures.get(case.case, {}).items() if name in exported.voxels}
            report = output.with_name(f"{case.case}_measures.dcm")
            if known:
                export_measures(paths[case.case], source, labels, known, report, **details)
            stale = [path for path, made in ((output, exported.path), (report, known)) if not made and path.is_file()]
            for path in stale:
                path.unlink()
        written += exported.path is not None
        _report(exported)
        for path in stale:
            print(f"note: {path}: made by an earlier call and by none since; it was removed", file=sys.stderr)
        if known:
            print(f"{report}: measures of {', '.join(known)}")
    print(f"{written} of {len(present)} masks written to {options.output}")


@contextmanager
def _naming(case: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"case {case!r}: {error}") from error


def _report(exported: Exported) -> None:
    for note in exported.notes:
        print(f"note: {note}", file=sys.stderr)
    if exported.path is not None:
        found = ", ".join(
            f"{name} {voxels} voxels (read back: Dice {exported.dice[name]:.4f})"
            for name, voxels in exported.voxels.items()
        )
        print(f"{exported.path}: {found}")


def _read_list(options: argparse.Namespace) -> tuple[list[Case], dict[str, int]]:
    if options.datalist is None:
        return [], {}
    datalist = load_datalist(options.datalist, options.data_root)
    return datalist.cases, datalist.labels


def _root(options: argparse.Namespace) -> Path:
    return Path(options.data_root) if options.data_root else Path(options.datalist).parent


def _case_name(mask: Path) -> str:
    return mask.name.removesuffix(".gz").removesuffix(".nii")


def _series_of(case: Case, root: Path) -> tuple[Path, str | None]:
    """Return folder and UID of the series that a case was converted from."""
    series = case.extra.get(SERIES_KEY)
    if not isinstance(series, dict) or not isinstance(series.get("folder"), str):
        raise UserError(
            f"case {case.case!r} does not say which DICOM series it comes from (key {SERIES_KEY!r}); "
            "make the list with monai_ext.data.indexing, or export the mask alone with --mask and --series"
        )
    return root / series["folder"], series.get("uid")


def _details(options: argparse.Namespace, labels: Mapping[str, int]) -> dict[str, Any]:
    return {
        "algorithm": options.algorithm,
        "categories": _parse_codes(options.category, "--category", labels),
        "types": _parse_codes(options.type, "--type", labels),
    }


def _parse_labels(given: Sequence[str]) -> dict[str, int]:
    labels: dict[str, int] = {}
    for item in given:
        name, _, value = item.rpartition("=")
        if not name or not value.isdecimal() or int(value) == 0:
            raise UserError(f"--labels {item}: write NAME=VALUE with a whole number above 0, such as tumour=1")
        if name in labels or int(value) in labels.values():
            raise UserError(f"--labels {item}: its name or value is given twice; give each structure its own")
        labels[name] = int(value)
    return labels


def _parse_codes(given: Sequence[str], option: str, labels: Mapping[str, int]) -> dict[str, Code]:
    codes: dict[str, Code] = {}
    for item in given:
        name, _, code = item.partition("=")
        parts = code.split(":", 2)
        if not name or len(parts) != 3 or not all(parts):
            raise UserError(f"{option} {item}: write NAME=VALUE:SCHEME:MEANING, such as tumour=108369006:SCT:Neoplasm")
        if name not in labels:
            raise UserError(f"{option} {item}: there is no structure {name!r}; there are {', '.join(labels)}")
        codes[name] = Code(*parts)
    return codes


if __name__ == "__main__":
    report_user_errors()
    main()
