"""Series: headers grouped by SeriesInstanceUID, slices sorted by where they lie, volumes with exact affines.

UIDs are checked and not trusted: files of other studies, dates or modalities are other series though they share a
SeriesInstanceUID, and of two copies of a file one is taken.

Slices are ordered by the projection of ImagePositionPatient on the slice normal, which is what names and
InstanceNumber only pretend to be. Values are those of the modality: RescaleSlope and RescaleIntercept are applied.
"""

from __future__ import annotations

import datetime
import filecmp
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from monai_ext.data.dicom.geometry import find_problems, series_affine, sorted_slices
from monai_ext.data.dicom.headers import SeriesHeaders, SliceHeader
from monai_ext.data.dicom.reading import NOT_DICOM, looks_like_dicom, naming_damage, read_dataset, require_extra
from monai_ext.data.folders import walk
from monai_ext.data.images import MAX_VOXELS
from monai_ext.errors import UserError
from monai_ext.files import PathLike

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "NOT_DICOM",
    "SeriesHeaders",
    "SeriesList",
    "SliceHeader",
    "Volume",
    "group_headers",
    "parse_date",
    "read_header",
    "read_volume",
]

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR: an index of other files
PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"

_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate"),
    *("SeriesDate", "AcquisitionDate", "Modality", "SeriesDescription", "SeriesNumber", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns"),
    *("InstanceNumber", "NumberOfFrames", "GantryDetectorTilt", "EchoTime", "ImageType"),
)


class SeriesList(list[SeriesHeaders]):
    """The series of a folder, sorted by patient, study and series.

    ``skipped`` holds (file, why) of other files, ``copies`` (copy, file that is taken).
    """

    def __init__(
        self,
        series: Iterable[SeriesHeaders],
        skipped: Iterable[tuple[Path, str]] = (),
        copies: Iterable[tuple[Path, Path]] = (),
    ) -> None:
        super().__init__(series)
        self.skipped, self.copies = list(skipped), list(copies)

    @property
    def notes(self) -> list[str]:
        """Say of copies and of UIDs that several series share, in sentences."""
        notes = []
        if self.copies:
            (copy, original), number = self.copies[0], len(self.copies)
            copied = "1 file is a copy" if number == 1 else f"{number} files are copies"
            notes.append(f"{copied} and passed over (such as {copy} of {original})")
        for uid, several in self.sharing_uids().items():
            dates = ", ".join(sorted(str(series.slices[0].study_date or series.study_uid) for series in several))
            shared = f"{len(several)} image series share the SeriesInstanceUID {uid} ({dates})"
            notes.append(f"{shared}; they are told apart by study, date and modality")
        return notes

    def sharing_uids(self) -> dict[str, list[SeriesHeaders]]:
        """Return the image series that share a SeriesInstanceUID with other ones, by that UID."""
        by_uid: dict[str, list[SeriesHeaders]] = {}
        for series in self:
            if series.is_image and series.series_uid:
                by_uid.setdefault(series.series_uid, []).append(series)
        return {uid: several for uid, several in by_uid.items() if len(several) > 1}


@dataclass(frozen=True)
class Volume:
    """The voxels of a series.

    Args:
        array: [X, Y, Z], columns along X, rows along Y, slices along Z in the direction of the slice normal; int16
            where the modality's values are whole numbers that fit, else float32.
        affine: [4, 4], voxel indices to RAS+ mm.
        files: the file of each slice k.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    files: tuple[Path, ...]


def read_header(path: PathLike) -> SliceHeader:
    """Read what is needed of one file's header; no pixels.

    Raises:
        UserError: it is no DICOM file, or damaged.
    """
    path = Path(path)
    dataset = read_dataset(path, pixels=False, tags=_TAGS)
    with naming_damage(path):
        return _header(path, dataset)


def group_headers(folder: PathLike, keep: Callable[[SliceHeader], bool] | None = None) -> SeriesList:
    """Read the headers of all DICOM files below a folder and group them by SeriesInstanceUID.

    One SeriesInstanceUID makes several series where StudyInstanceUID, date or modality differ: two visits may share
    it, and so may a CT and its RTSTRUCT. Of files that are the same, SOPInstanceUID included, the first is taken.
    Nothing is judged: see :func:`~monai_ext.data.dicom.geometry.find_problems`. Hidden files and folders are
    passed over, and so is a DICOMDIR. A localizer (by its ImageType) among other slices of one series is skipped.

    Args:
        folder: searched with all its subfolders, or one file.
        keep: whether a file matters, by its header. Where the names in a folder say that it holds one series
            (``1-01.dcm``, ``1-02.dcm``, ... as TCIA numbers them), only the first file is asked.

    Returns:
        The series; ``.skipped`` names the files that are no DICOM (:data:`NOT_DICOM`) or damaged, and why;
        ``.copies`` those that are there twice.

    Raises:
        UserError: there is no such folder, or the extra is not installed.
    """
    require_extra()
    groups: dict[tuple[object, ...], list[SliceHeader]] = {}
    skipped: list[tuple[Path, str]] = []
    folders = list(_folders(Path(folder)))
    with tqdm(total=sum(map(len, folders)), desc="reading DICOM headers", unit="file", delay=1, leave=False) as bar:
        for paths in folders:
            for header in _kept(paths, keep, skipped, bar):
                uid = header.series_uid or f"no SeriesInstanceUID: {header.path.parent}"
                key = (uid, header.study_uid, header.visit_date, header.modality)
                groups.setdefault(key, []).append(header)
    copies: list[tuple[Path, Path]] = []
    series = [
        SeriesHeaders.of(_without_copies(_without_localizers(headers, skipped), copies)) for headers in groups.values()
    ]
    series.sort(key=lambda s: (s.patient_id, s.study_uid, str(s.slices[0].path)))
    return SeriesList(series, skipped, copies)


def read_volume(series: SeriesHeaders) -> Volume:
    """Read a series as one volume in the modality's values.

    The affine holds the positions as the files state them: columns step PixelSpacing[1] along the row cosines, rows
    PixelSpacing[0] along the column cosines, slices the mean distance of neighbours. Grey values of MONOCHROME1
    (white is low) are inverted within their stored bits, so that white is high, except for CT, whose HU have a
    meaning of their own. Padding outside the field of view stays as it is.

    Returns:
        The volume; a single slice becomes [X, Y, 1] with SliceThickness as its third spacing.

    Raises:
        UserError: the first of the problems of its geometry, pixels that cannot be decoded, or colour.
    """
    if not series.is_image:
        raise UserError(f"{series.name}: holds {series.modality or 'files'} and no image slices; name an image series")
    for problem in find_problems(series):
        raise UserError(f"{series.name}: {problem.sentence}; {problem.fix}")
    slices = sorted_slices(series)
    first = slices[0]
    if first.columns * first.rows * len(slices) > MAX_VOXELS:
        raise UserError(f"{series.name}: {first.columns} x {first.rows} x {len(slices)} voxels are too many; split it")
    planes = []
    for header in slices:
        with naming_damage(header.path):
            planes.append(_read_plane(header))
    return Volume(
        _stack(planes, (first.columns, first.rows)), series_affine(slices), tuple(header.path for header in slices)
    )


# Headers


def _header(path: Path, dataset: Dataset) -> SliceHeader:
    numbers = _NumberReader(dataset)
    spacing = numbers.vector("PixelSpacing", 2)
    return SliceHeader(
        path=path,
        series_uid=_text(dataset, "SeriesInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        patient_id=_text(dataset, "PatientID"),
        modality=_text(dataset, "Modality"),
        study_date=_date(dataset, "StudyDate", "SeriesDate", "AcquisitionDate"),
        visit_date=_date(dataset, "StudyDate", "SeriesDate"),
        series_description=_text(dataset, "SeriesDescription"),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        position=numbers.vector("ImagePositionPatient", 3),
        orientation=numbers.vector("ImageOrientationPatient", 6),
        pixel_spacing=spacing,
        slice_thickness=numbers.scalar("SliceThickness"),
        rows=int(numbers.scalar("Rows") or 0),
        columns=int(numbers.scalar("Columns") or 0),
        instance_number=None if (number := numbers.scalar("InstanceNumber")) is None else int(number),
        frames=int(numbers.scalar("NumberOfFrames") or 1),
        gantry_tilt=numbers.scalar("GantryDetectorTilt"),
        sop_instance_uid=_text(dataset, "SOPInstanceUID"),
        sop_class_uid=_text(dataset, "SOPClassUID"),
        echo_time=numbers.scalar("EchoTime"),
        is_localizer="LOCALIZER" in _text(dataset, "ImageType").upper(),
    )


def _folders(root: Path) -> Iterator[list[Path]]:
    """The files of each folder below, sorted by name."""
    if root.is_file():
        yield [root]
        return
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give the folder of the DICOM files")
    yield from (files for _, files in walk(root, once=True))


def _kept(
    paths: list[Path], keep: Callable[[SliceHeader], bool] | None, skipped: list[tuple[Path, str]], bar: tqdm
) -> Iterator[SliceHeader]:
    """The headers of one folder that matter."""
    one_series = keep is not None and _is_numbered(paths)
    wanted = keep is None
    for position, path in enumerate(paths, start=1):
        bar.update()
        header = _try_header(path, skipped)
        if header is None or header.sop_class_uid == MEDIA_DIRECTORY:
            continue
        if keep is not None and not (one_series and wanted):
            wanted = keep(header)
        if wanted:
            yield header
        elif one_series:
            bar.update(len(paths) - position)
            return


def _is_numbered(paths: list[Path]) -> bool:
    """Whether names count the files of one series, without a hole: 1-01.dcm, 1-02.dcm, ..."""
    matches = [re.fullmatch(r"(\d+)-(\d+)\.dcm", path.name) for path in paths]
    numbers = sorted(int(match[2]) for match in matches if match)
    return len({match[1] for match in matches if match}) == 1 and numbers == list(range(1, len(paths) + 1))


def _try_header(path: Path, skipped: list[tuple[Path, str]]) -> SliceHeader | None:
    try:
        if looks_like_dicom(path):
            return read_header(path)
        skipped.append((path, NOT_DICOM))
    except (UserError, OSError) as error:
        why = str(error).removeprefix(f"{path}: ")
        skipped.append((path, NOT_DICOM if NOT_DICOM in why else why))
    return None


def _without_localizers(headers: list[SliceHeader], skipped: list[tuple[Path, str]]) -> list[SliceHeader]:
    """Drop localizers that share their series with other slices, and add them to ``skipped``."""
    kept = [header for header in headers if not header.is_localizer]
    if not kept or len(kept) == len(headers):
        return headers
    why = "a localizer (ImageType) among the slices of a series"
    skipped += [(header.path, why) for header in headers if header.is_localizer]
    return kept


def _without_copies(headers: list[SliceHeader], copies: list[tuple[Path, Path]]) -> list[SliceHeader]:
    """Drop files that are the same as an earlier one, and add them to ``copies``.

    A SOPInstanceUID that stands in files of other contents stays in all of them: they are no copies.
    """
    kept: list[SliceHeader] = []
    earlier: dict[str, list[SliceHeader]] = {}
    for header in headers:
        same_uid = earlier.setdefault(header.sop_instance_uid, []) if header.sop_instance_uid else []
        alike = (other for other in same_uid if replace(header, path=other.path) == other)
        original = next((other for other in alike if _is_same_file(other.path, header.path)), None)
        if original is None:
            kept.append(header)
            same_uid.append(header)
        else:
            copies.append((header.path, original.path))
    return kept


def _is_same_file(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes, or the same elements (what wrote them may differ)."""
    if filecmp.cmp(one, other, shallow=False):
        return True
    try:
        return bool(read_dataset(one) == read_dataset(other))
    except UserError:
        return False


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip("\0 ")


class _NumberReader:
    """Numbers of a data set; what is absent, empty or no number becomes None."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def _values(self, keyword: str) -> list[float]:
        try:
            value = self.dataset.get(keyword)
            several = [] if value is None else [value] if isinstance(value, (str, int, float)) else list(value)
            values = [float(item) for item in several]
        except (TypeError, ValueError, ArithmeticError):
            return []
        return values if all(np.isfinite(values)) else []

    def scalar(self, keyword: str) -> float | None:
        values = self._values(keyword)
        return values[0] if values else None

    def vector(self, keyword: str, length: int) -> Any:
        values = self._values(keyword)
        return tuple(values) if len(values) == length else None


def _date(dataset: Dataset, *keywords: str) -> datetime.date | None:
    """The first usable one of several dates."""
    dates = (parse_date(_text(dataset, keyword)) for keyword in keywords)
    return next((date for date in dates if date is not None), None)


def parse_date(text: str) -> datetime.date | None:
    """Read a DICOM date, ``20001127`` or the older ``2000.11.27``; None for anything else."""
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", text)
    try:
        return datetime.date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


# Pixels


def _read_plane(header: SliceHeader) -> NDArray[Any]:
    """Read one slice [rows, columns] in the modality's values: int16 where nothing is lost, else float32."""
    dataset = read_dataset(header.path)
    if dataset.get("SamplesPerPixel", 1) != 1 or not str(dataset.get("PhotometricInterpretation", "")).startswith(
        "MONO"
    ):
        kind = dataset.get("PhotometricInterpretation", "no PhotometricInterpretation")
        raise UserError(f"{header.path}: holds {kind} pixels, and a volume holds grey values; leave the file out")
    stored = _decode(dataset, header.path)
    if stored.shape != (header.rows, header.columns):
        raise UserError(f"{header.path}: {stored.shape} pixels do not fit the header; copy or download it again")
    if dataset.PhotometricInterpretation == "MONOCHROME1" and header.modality != "CT":
        highest = -1 if dataset.PixelRepresentation else 2 ** int(dataset.BitsStored) - 1
        stored = highest - stored.astype(np.int64)
    values = _rescale(dataset, stored)
    limits = np.iinfo(np.int16)
    if values.dtype.kind in "iu" and values.min() >= limits.min and values.max() <= limits.max:
        return values.astype(np.int16)
    return values.astype(np.float32)


def _decode(dataset: Dataset, path: Path) -> NDArray[Any]:
    try:
        return np.asarray(dataset.pixel_array)
    except RuntimeError as error:
        syntax = dataset.file_meta.TransferSyntaxUID
        if "missing dependencies" in str(error):
            raise UserError(f"{path}: no decoder for its compression ({syntax.name}); {PLUGINS}") from error
        sentence = f"{path}: the decoders at hand cannot read its pixels ({syntax.name}); {PLUGINS}, or copy it again"
        raise UserError(sentence) from error
    except NotImplementedError as error:
        raise UserError(f"{path}: pydicom cannot decode its pixels; convert it with gdcmconv --raw") from error


def _rescale(dataset: Dataset, stored: NDArray[Any]) -> NDArray[Any]:
    if "ModalityLUTSequence" in dataset:
        from pydicom.pixels import apply_modality_lut

        return np.asarray(apply_modality_lut(stored, dataset))
    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    if slope.is_integer() and intercept.is_integer():
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return stored * slope + intercept


def _stack(planes: list[NDArray[Any]], shape: tuple[int, int]) -> NDArray[Any]:
    """Stack planes [rows, columns] to [X, Y, Z]."""
    volume = np.empty((*shape, len(planes)), np.result_type(*planes), order="F")
    for k, plane in enumerate(planes):
        volume[:, :, k] = plane.T
    return volume
