"""The one door to DICOM files: a data set read, or one sentence why not."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from monai_ext.errors import UserError
from monai_ext.files import PathLike

if TYPE_CHECKING:
    from pydicom import Dataset

INSTALL = "pip install 'monai-ext[dicom]'"
NOT_DICOM = "no DICOM file"
_MAGIC_OFFSET = 128
_SIZES = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames")
_BARE_SUFFIXES = ("", ".dcm", ".ima", ".dicom")  # files of these may be DICOM without the usual first 132 bytes


def require_extra() -> None:
    """Check that pydicom and highdicom are installed.

    Raises:
        UserError: they are not.
    """
    missing = [name for name in ("pydicom", "highdicom") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"DICOM needs {' and '.join(missing)}, which is not installed; {INSTALL}")


def has_preamble(path: PathLike) -> bool:
    """Tell whether a file begins as DICOM files do."""
    with open(path, "rb") as file:
        return file.read(_MAGIC_OFFSET + 4)[_MAGIC_OFFSET:] == b"DICM"


def looks_like_dicom(path: PathLike) -> bool:
    """Tell by its first bytes whether a file is DICOM, or by its name whether it may be DICOM without preamble."""
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(_MAGIC_OFFSET + 4)
    return start[_MAGIC_OFFSET:] == b"DICM" or (path.suffix.lower() in _BARE_SUFFIXES and len(start) > _MAGIC_OFFSET)


def read_dataset(path: PathLike, *, pixels: bool = True, tags: Sequence[str] | None = None) -> Dataset:
    """Read a DICOM file.

    Args:
        path: the file.
        pixels: read the pixels too; without them a header is read in about a millisecond.
        tags: keywords of the elements to read (default: all).

    Raises:
        UserError: there is no such file, it is no DICOM file or it is truncated, or the extra is not installed.
    """
    require_extra()
    import pydicom

    try:
        with naming_damage(path):
            dataset = _parse(path, pixels, tags)
            kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check its path") from error
    if not kind and getattr(dataset, "preamble", None):
        raise UserError(f"{path}: damaged DICOM file (no SOPClassUID); copy or download it again")
    if not kind:
        raise UserError(f"{path}: {NOT_DICOM}, whatever its name says; remove it")
    if "TransferSyntaxUID" not in dataset.file_meta:  # pixels cannot be read without
        implicit, _ = dataset.original_encoding
        syntax = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def missing_pixel_bytes(path: PathLike) -> int:
    """Return by how many bytes an uncompressed file is too short for its pixels, without reading them.

    Returns:
        0 for a whole file, and for what is compressed or no image.

    Raises:
        UserError: the header is damaged, or the extra is not installed.
    """
    require_extra()
    import pydicom

    with naming_damage(path), open(path, "rb") as file:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_SIZES))
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if not dataset.get("Rows") or (syntax is not None and (syntax.is_compressed or syntax.is_deflated)):
            return 0
        pixels = int(dataset.Rows) * int(dataset.get("Columns") or 0) * int(dataset.get("NumberOfFrames") or 1)
        bits = pixels * int(dataset.get("SamplesPerPixel") or 1) * int(dataset.get("BitsAllocated") or 0)
        is_implicit, _ = dataset.original_encoding
        there = Path(path).stat().st_size - file.tell() - (8 if is_implicit else 12)  # tag, type and length
        return max(0, (bits + 7) // 8 - max(0, there))


@contextmanager
def naming_damage(path: PathLike) -> Iterator[None]:
    """Turn whatever goes wrong in the block into a sentence about the file.

    pydicom parses an element when it is first looked at, so damaged bytes fail late, and in more ways than it has
    exceptions for.

    Raises:
        UserError: in place of any other exception but FileNotFoundError.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        raise UserError(f"{path}: damaged DICOM file ({_first_line(error)}); copy or download it again") from error


@contextmanager
def quiet_lengths() -> Iterator[None]:
    """Keep pydicom from telling, slice by slice, of values that are too long for their kind; they are kept."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The value length")
            yield
    finally:
        logger.setLevel(level)


def _parse(path: PathLike, pixels: bool, tags: Sequence[str] | None) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=list(tags) if tags else None)
    except InvalidDicomError:  # no preamble
        pass
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
    except Exception as error:  # arbitrary bytes taken for elements
        raise UserError(f"{path}: {NOT_DICOM}, whatever its name says; remove it") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
