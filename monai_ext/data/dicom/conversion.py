"""Series and their contours or segments as NIfTI files, converted once.

Each file remembers in its header (``descrip``) what it was made from, so that a second run converts only what has
changed. Files appear complete or not at all.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.drawing import Drawing, grid_of
from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.data.dicom.label_map import draw_label_map
from monai_ext.data.dicom.series import read_volume
from monai_ext.files import PathLike, atomic_path

FORMAT = 2  # raise it when the same input gives other files
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


def convert_structures(drawings: Sequence[tuple[int, Drawing]], series: SeriesHeaders, path: PathLike) -> list[str]:
    """Write ROIs and segments as one label map on the grid of a series.

    Args:
        drawings: value and ROI or segment, as :func:`~monai_ext.data.dicom.label_map.draw_label_map` takes them.
        series: the series that they were drawn on.
        path: NIfTI file to write.

    Returns:
        What was passed over, united or drawn over, in sentences.

    Raises:
        UserError: one does not fit the series or encloses no voxel, or two files draw it differently.
    """
    label, notes = draw_label_map(drawings, series)
    how = [(value, drawing.name, drawing.number) for value, drawing in drawings]
    convert_label(lambda: label, series, sorted({drawing.file.path for _, drawing in drawings}), path, *how)
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
    affine, _ = grid_of(series)
    origin = _fingerprint([*(header.path for header in series.slices), *sources], *how)
    if not _is_from(path, origin):
        write_nifti(path, draw(), affine, origin)


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
