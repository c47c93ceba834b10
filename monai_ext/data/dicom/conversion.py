"""Series and their contours or segments as NIfTI files, converted once.

Each file remembers in its header (``descrip``) what it was made from, so that a second run converts only what has
changed. Files appear complete or not at all.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.contours import Roi, StructureSet, contour_mask
from monai_ext.data.dicom.geometry import find_problems, series_affine, sorted_slices
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.segmentation import Segmentation, segment_mask
from monai_ext.data.dicom.series import read_volume
from monai_ext.data.images import PathLike, atomic_path
from monai_ext.errors import UserError

FORMAT = 1  # raise it when the same input gives other files
GZIP_LEVEL = 1  # noise does not compress: level 6 takes four times as long for a few percent


def write_nifti(path: PathLike, array: NDArray[Any], affine: NDArray[Any], description: str = "") -> None:
    """Write a volume [X, Y, Z] with its affine [4, 4] to RAS+ mm as sform, and as qform where that can hold it.

    The same input gives the same bytes.

    Raises:
        UserError: the file cannot be written.
    """
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = description.encode()[:79]
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if not np.allclose(image.get_qform(), affine, rtol=0, atol=1e-4):
        image.header["qform_code"] = 0
    with atomic_path(path) as temporary:
        if str(path).endswith(".gz"):
            with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as file:
                image.to_stream(file)
        else:
            nib.save(image, temporary)


def convert_series(series: SeriesHeaders, path: PathLike) -> None:
    """Write a series as NIfTI in the modality's values (int16 where they are whole numbers).

    Raises:
        UserError: the series cannot be read as one volume, or the file cannot be written.
    """
    origin = _fingerprint(header.path for header in series.slices)
    if not _is_from(path, origin):
        volume = read_volume(series)
        write_nifti(path, volume.array, volume.affine, origin)


def convert_roi(source: Path, roi: Roi, series: SeriesHeaders, path: PathLike, value: int = 1) -> list[str]:
    """Write the contours of a structure as a label map on the grid of a series.

    Args:
        source: the RTSTRUCT file, which messages name.
        roi: the structure, its contours read.
        series: the contoured series.
        path: NIfTI file to write.
        value: of the structure; background is 0.

    Returns:
        What was passed over, in sentences.

    Raises:
        UserError: contours do not fit the series, or enclose no voxel.
    """
    affine, shape = _grid(series)
    where = f"{source}: ROI {roi.name!r}"
    try:
        mask, notes = contour_mask(roi.contours or (), shape, affine)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    convert_label(lambda: _valued(mask, value, where), series, [source], path, roi.name, value)
    return [f"{where}: {note}" for note in notes]


def convert_segment(
    segmentation: Segmentation, number: int, series: SeriesHeaders, path: PathLike, value: int = 1
) -> None:
    """Write one segment of a SEG as a label map on the grid of a series.

    Raises:
        UserError: its frames do not fit the series, or hold no voxel.
    """
    where = f"{segmentation.path}: segment {segmentation.segments[number]!r}"

    def draw() -> NDArray[Any]:
        return _valued(segment_mask(segmentation, number, series), value, where)

    convert_label(draw, series, [segmentation.path], path, number, value)


@dataclass(frozen=True)
class Outlines:
    """One ROI of an RTSTRUCT, its contours read."""

    file: StructureSet
    roi: Roi

    @property
    def name(self) -> str:
        """ROIName."""
        return self.roi.name

    def draw(self, series: SeriesHeaders) -> tuple[NDArray[np.bool_], list[str]]:
        """Return the mask [X, Y, Z] on the grid of a series, and what was passed over.

        Raises:
            UserError: contours do not fit the series.
        """
        affine, shape = _grid(series)
        try:
            return contour_mask(self.roi.contours or (), shape, affine)
        except UserError as error:
            raise UserError(f"{self.file.path}: ROI {self.name!r}: {error}") from error


@dataclass(frozen=True)
class Segment:
    """One segment of a SEG."""

    file: Segmentation
    number: int

    @property
    def name(self) -> str:
        """SegmentLabel, or SegmentDescription where there is none."""
        return self.file.segments[self.number] or self.file.descriptions[self.number]

    def draw(self, series: SeriesHeaders) -> tuple[NDArray[np.bool_], list[str]]:
        """Return the mask [X, Y, Z] on the grid of a series.

        Raises:
            UserError: frames do not fit the series.
        """
        return segment_mask(self.file, self.number, series), []


def convert_structures(
    parts: Sequence[tuple[int, Outlines | Segment]], series: SeriesHeaders, path: PathLike
) -> list[str]:
    """Write several ROIs and segments as one label map on the grid of a series.

    Args:
        parts: value and ROI or segment. Those of one value are united; later values are drawn over earlier ones.
        series: the contoured series.
        path: NIfTI file to write.

    Returns:
        What was passed over, united or drawn over, in sentences.

    Raises:
        UserError: one does not fit the series, or encloses no voxel.
    """
    _, shape = _grid(series)
    label = np.zeros(shape, dtype=np.uint8 if max(value for value, _ in parts) < 256 else np.uint16, order="F")
    notes, names, covered = list[str](), dict[int, list[str]](), 0
    for value, part in parts:
        where = f"{part.file.path}: {part.name!r}"
        mask, own = part.draw(series)
        _check_not_empty(mask, where)
        covered += int(np.count_nonzero(mask & (label != 0) & (label != value)))
        label[mask] = value
        notes += [f"{where}: {note}" for note in own]
        names.setdefault(value, []).append(part.name)
    notes += [f"{', '.join(map(repr, united))} are united" for united in names.values() if len(united) > 1]
    if covered:
        notes.append(f"{covered} voxels belong to several structures; the one named last has them")
    how = [(value, part.name) for value, part in parts]
    convert_label(lambda: label, series, sorted({part.file.path for _, part in parts}), path, *how)
    return notes


def convert_label(
    draw: Callable[[], NDArray[Any]], series: SeriesHeaders, sources: Iterable[Path], path: PathLike, *how: object
) -> None:
    """Write a label map on the grid of a series, unless the file was made from just this before.

    Args:
        draw: makes the label map [X, Y, Z] on the grid of :func:`~monai_ext.data.dicom.series.read_volume`.
        series: whose geometry it has.
        sources: files that it is drawn from, besides the series.
        path: NIfTI file to write.
        how: what else the label map depends on.

    Raises:
        UserError: the series is not one volume, or the file cannot be written.
    """
    affine, _ = _grid(series)
    origin = _fingerprint([*(header.path for header in series.slices), *sources], *how)
    if not _is_from(path, origin):
        write_nifti(path, draw(), affine, origin)


def _valued(mask: NDArray[np.bool_], value: int, where: str) -> NDArray[Any]:
    _check_not_empty(mask, where)
    dtype = np.uint8 if value < 256 else np.uint16
    label = np.zeros_like(mask, dtype=dtype)
    label[mask] = value
    return label


def _check_not_empty(mask: NDArray[np.bool_], where: str) -> None:
    if not mask.any():
        raise UserError(f"{where} encloses no voxel of the series; look at it in a viewer, or leave it out")


def _grid(series: SeriesHeaders) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Affine and shape of the volume of a series, from its headers."""
    for problem in find_problems(series):
        raise UserError(f"{series.name}: {problem.sentence}; {problem.fix}")
    slices = sorted_slices(series)
    return series_affine(slices), (slices[0].columns, slices[0].rows, len(slices))


def _fingerprint(files: Iterable[Path], *parts: object) -> str:
    """What a converted file was made from: names, sizes and times of change of the files, and how."""
    digest = hashlib.sha256(repr((FORMAT, *parts)).encode())
    for file in sorted(files):
        status = file.stat()
        digest.update(repr((str(file), status.st_size, status.st_mtime_ns)).encode())
    return f"monai_ext {digest.hexdigest()[:32]}"


def _is_from(path: PathLike, origin: str) -> bool:
    """Whether a file is there and was made from just this."""
    try:
        return bytes(nib.Nifti1Image.from_filename(path).header["descrip"]).rstrip(b"\0").decode("latin-1") == origin
    except (OSError, EOFError, ValueError, KeyError, nib.filebasedimages.ImageFileError):
        return False


def find_contoured(
    images: Iterable[SeriesHeaders], uids: Iterable[str], slice_uids: Iterable[str]
) -> SeriesHeaders | None:
    """Return the image series that an RTSTRUCT or SEG belongs to.

    Args:
        images: the series there are.
        uids: SeriesInstanceUIDs that it refers to.
        slice_uids: SOPInstanceUIDs that its contours or frames refer to, for files that name no series.

    Returns:
        The series; None where it is not among them.
    """
    images, named, slices = list(images), set(uids), set(slice_uids)
    for series in images:
        if series.series_uid in named:
            return series
    for series in images:
        if slices and any(header.sop_instance_uid in slices for header in series.slices):
            return series
    return None
