"""CHAOS: abdominal MR, DICOM with one grey PNG a slice as ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from monai_ext.data.cards import Card
from monai_ext.data.dicom.conversion import convert_label, convert_series
from monai_ext.data.dicom.geometry import find_problems, sorted_slices
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.reading import looks_like_dicom, require_extra
from monai_ext.data.dicom.series import read_header
from monai_ext.data.folders import folders_below, natural
from monai_ext.data.images import read_label
from monai_ext.data.indexing.index import Index, Options, nothing_found, start_list
from monai_ext.errors import UserError
from monai_ext.files import ensure_writable_folder

SEQUENCES = {"chaos_t1": ("T1DUAL", "DICOM_anon/InPhase"), "chaos_t2": ("T2SPIR", "DICOM_anon")}


def index_chaos(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index ``MR/<id>/T1DUAL`` (in-phase) or ``MR/<id>/T2SPIR``: ``DICOM_anon/*.dcm`` with ``Ground/*.png``.

    A picture belongs to the DICOM file of the same name; where names differ, pictures and files are paired in the
    order of their names, which has to follow the slices through the body. Grey values become labels by the card's
    ranges. UIDs are not looked at: anonymisation gave each file its own.

    Args:
        root: folder of the download.
        files: takes the converted volumes.
        card: ``chaos_t1`` or ``chaos_t2``.
        options: not used.

    Returns:
        A case a patient, with its fold.

    Raises:
        UserError: nothing looks like CHAOS, or the converted files cannot be written.
    """
    require_extra()
    sequence, below = SEQUENCES[card.name]
    folders = folders_below(root, sequence) if root.is_dir() else []
    if not folders:
        raise nothing_found(root, card)
    index = Index(start_list(card))
    folds = card.assign("fold", [folder.parent.name for folder in folders])
    ensure_writable_folder(files)
    for folder in tqdm(folders, desc="converting DICOM", unit="patient"):
        number = folder.parent.name
        name = f"chaos{int(number):02d}" if number.isdecimal() else number
        entry: dict[str, Any] = {"case": f"{name}_{sequence}", "patient": name, "fold": folds.get(number)}
        image, label = files / f"{entry['case']}_image.nii.gz", files / f"{entry['case']}_label.nii.gz"
        try:
            series = _series(folder / below)
            _convert_ground(folder / "Ground", series, label, card)
            convert_series(series, image)
        except UserError as error:
            if str(error).startswith("cannot write"):
                raise
            index.skipped.append((str(folder), str(error).removeprefix(f"{folder}: ")))
            continue
        named = {"image": str(image), "label": str(label), "dicom_series": {"folder": str(folder / below)}}
        index.datalist["cases"].append({**entry, **named})
    return index


def _series(folder: Path) -> SeriesHeaders:
    """Take all DICOM files of a folder for one series, whatever their UIDs."""
    paths = [path for path in sorted(folder.glob("*")) if path.is_file() and not path.name.startswith(".")]
    headers = [read_header(path) for path in paths if looks_like_dicom(path)]
    if not headers:
        raise UserError(f"{folder}: holds no DICOM files; unpack the archive again")
    return SeriesHeaders.of([replace(header, patient_id="", frame_of_reference_uid="") for header in headers])


def _convert_ground(folder: Path, series: SeriesHeaders, path: Path, card: Card) -> None:
    pictures = sorted(folder.glob("*.png"), key=lambda picture: natural(picture.stem))
    if not pictures:
        raise UserError(f"{folder}: there is no ground truth (test patients have none); leave the patient out")
    for problem in find_problems(series):
        raise UserError(f"{series.name}: {problem.sentence}; {problem.fix}")
    ordered = pair_pictures(pictures, series)
    ranges = {card.labels[name]: bounds for name, bounds in (card.grey_ranges or {}).items()}

    def draw() -> NDArray[np.uint8]:
        first = series.slices[0]
        planes = []
        for picture in ordered:
            plane = grey_to_label(read_label(picture), ranges, picture)
            if plane.shape != (first.columns, first.rows):
                size = f"{plane.shape[0]} x {plane.shape[1]}"
                raise UserError(f"{picture}: is {size} pixels, its slice {first.columns} x {first.rows}; copy it again")
            planes.append(plane)
        return np.stack(planes, axis=2)

    convert_label(draw, series, pictures, path, sorted(ranges.items()))


def pair_pictures(pictures: Sequence[Path], series: SeriesHeaders) -> list[Path]:
    """Return the picture of each slice, in the order of the volume.

    Args:
        pictures: in natural order of their names.
        series: one volume.

    Raises:
        UserError: there are not as many pictures as slices, or they cannot be told apart by names and order.
    """
    slices = sorted_slices(series)
    folder = pictures[0].parent
    if len(pictures) != len(slices):
        raise UserError(f"{folder}: holds {len(pictures)} pictures for {len(slices)} slices; unpack the archive again")
    by_stem = {picture.stem: picture for picture in pictures}
    if all(header.path.stem in by_stem for header in slices):
        return [by_stem[header.path.stem] for header in slices]
    named = sorted(slices, key=lambda header: natural(header.path.stem))
    if named == slices:
        return list(pictures)
    if named == slices[::-1]:
        return list(pictures)[::-1]
    raise UserError(
        f"{folder}: pictures are not named as the DICOM files, whose names do not follow the slices through the body; "
        "name each picture as its DICOM file"
    )


def grey_to_label(grey: NDArray[Any], ranges: Mapping[int, tuple[int, int]], path: Path) -> NDArray[np.uint8]:
    """Turn grey values into label values.

    Args:
        grey: whole numbers, [W, H].
        ranges: first and last grey value of each label value.
        path: the picture, which messages name.

    Raises:
        UserError: a value above 0 lies in no range.
    """
    label = np.zeros(grey.shape, np.uint8)
    for value, (first, last) in ranges.items():
        label[(grey >= first) & (grey <= last)] = value
    if unknown := np.unique(grey[(grey != 0) & (label == 0)]).tolist():
        raise UserError(f"{path}: holds the grey value {unknown[0]}, which stands for no organ; unpack it again")
    return label
