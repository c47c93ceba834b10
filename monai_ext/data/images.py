"""Reading images and labels, and writing masks, so that every part of the package sees the same voxels.

Volumes are NIfTI files (`.nii`, `.nii.gz`), frames are pictures (`.png`, `.jpg`, `.tif`, `.bmp`). Arrays keep
the order of the file: [X, Y, Z] as nibabel gives it (affine to RAS+, in mm whatever unit the header states),
[W, H] or [W, H, 3] for frames (the picture transposed, as MONAI's ``PILReader`` gives it). Whatever is wrong with a
file is a :class:`~monai_ext.errors.UserError` of one sentence. :class:`~monai_ext.data.case_reader.CaseReader` brings
the same functions to MONAI.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from PIL import Image, ImageOps

from monai_ext.data.file_error import FileError
from monai_ext.data.picture_header import PictureHeader, picture_header
from monai_ext.errors import UserError
from monai_ext.files import FileMemory, PathLike, atomic_path, file_state, note_sha256

VOLUME_SUFFIXES = (".nii", ".nii.gz")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_VOXELS = 2**31  # 8 GB as float32: a header that claims more is taken for damaged
MAX_GZIP_RATIO = 1032  # deflate cannot compress better (https://zlib.net/zlib_tech.html)
FIRST_VALUES = 2**18
"""Values of the first slices that :func:`read_first_range` looks at: a slice of 512 x 512."""
MILLIMETRES = {"mm": 1.0, "m": 1000.0, "micrometre": 0.001, "unknown": 1.0}
"""Length in mm of the units that a NIfTI header can state; where it states none, mm are assumed."""

_UNIT_CODES = {1: "m", 2: "mm", 3: "micrometre"}  # of the lowest three bits of xyzt_units
_GEOMETRY_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a file lie.

    Args:
        shape: spatial shape, (X, Y, Z) of a volume or (W, H) of a frame.
        affine: [4, 4], voxel indices to RAS+ millimetres; None for frames.
        spacing: voxel size in mm along the array axes; None for frames.
        is_frame: whether the file is a picture and not a volume.
        unit: of lengths in the file, a key of :data:`MILLIMETRES`; ``affine`` and ``spacing`` are in mm already.
    """

    shape: tuple[int, ...]
    affine: np.ndarray | None
    spacing: tuple[float, ...] | None
    is_frame: bool
    unit: str = "mm"

    def read_in(self, unit: str) -> Geometry:
        """Return the geometry that the file's numbers give in another unit."""
        if self.affine is None or self.spacing is None:
            return self
        factor = MILLIMETRES[unit] / MILLIMETRES[self.unit]
        return Geometry(
            self.shape, in_millimetres(self.affine, factor), tuple(s * factor for s in self.spacing), False, unit
        )


@dataclass(frozen=True)
class _Header:
    """What is remembered of a file's header.

    Args:
        geometry: where its pixels lie.
        stored: of a volume: the header as it stands.
        placed: of a volume: an empty header with the fields that say where the voxels lie, as nibabel repairs them.
        picture: of a frame.
    """

    geometry: Geometry
    stored: nib.Nifti1Header | None = None
    placed: nib.Nifti1Header | None = None
    picture: PictureHeader | None = None


_HEADERS: FileMemory[_Header] = FileMemory()
_FIRST_RANGES: FileMemory[tuple[float, float]] = FileMemory()


def is_frame(path: PathLike) -> bool:
    """Tell by its suffix whether a file is a frame (True) or a volume (False).

    Raises:
        UserError: the suffix is neither.
    """
    name = Path(path).name.lower()
    if name.endswith(FRAME_SUFFIXES):
        return True
    if name.endswith(VOLUME_SUFFIXES):
        return False
    readable = ", ".join(VOLUME_SUFFIXES + FRAME_SUFFIXES)
    raise FileError(path, "unknown_kind", "this kind of file cannot be read", f"convert it to one of {readable}")


def read_geometry(path: PathLike) -> Geometry:
    """Read shape, affine and spacing of an image or label from its header.

    A file that this module has read before and that has not changed is not opened again. Only of pictures with an EXIF
    orientation are pixels read: formats disagree on which side is the width.

    Raises:
        UserError: the file is missing, is no image, or its header is not usable.
    """
    geometry = _find_header(path).geometry
    return geometry if geometry.affine is None else replace(geometry, affine=geometry.affine.copy())


def read_nifti_header(path: PathLike) -> nib.Nifti1Header:
    """Read the header of a volume as it stands, where :func:`read_geometry` says what it is taken to mean.

    nibabel's own reading repairs it: a negative spacing becomes positive, and the fields no longer say so.

    Raises:
        UserError: the file is missing, is no volume, or its header is not usable.
    """
    header = _find_header(path).stored
    if header is None:
        raise _no_nifti(path)
    return header.copy()


def read_picture_header(path: PathLike) -> PictureHeader:
    """Read what a picture says of its pixels.

    Raises:
        UserError: the file is missing or damaged, or is no picture.
    """
    header = _find_header(path).picture
    if header is None:
        raise FileError(path, "damaged", "this is a volume and no picture", "name a picture")
    return header


def read_image(path: PathLike, with_sha256: bool = False) -> np.ndarray:
    """Read the intensities of an image.

    Volumes are scaled by the header's slope and intercept. Palette pictures become RGB, transparency is shown
    over black, EXIF orientation is applied, 16-bit values are kept.

    Args:
        path: the image.
        with_sha256: hash the open file too: :func:`~monai_ext.files.sha256_of` then need not read it again.

    Returns:
        float32 [X, Y, Z] of a volume; [W, H] or [W, H, 3] in the picture's own type of a frame.

    Raises:
        UserError: the file is missing, damaged, not 3-D (or one 2-D frame), or holds NaN or Inf.
    """
    image = read_values(path, with_sha256)
    bad = image.size - np.count_nonzero(np.isfinite(image))
    if bad:
        what = f"{bad} of {image.size} values are NaN or Inf"
        raise FileError(path, "not_finite", what, "replace them before running")
    return image


def read_values(path: PathLike, with_sha256: bool = False) -> np.ndarray:
    """Read the intensities of an image as :func:`read_image` does, NaN and Inf included.

    Raises:
        UserError: the file is missing, damaged or not 3-D (or one 2-D frame).
    """
    if is_frame(path):
        return _read_frame(path, label=False, with_sha256=with_sha256)
    return _read_volume(path, scaled=True, with_sha256=with_sha256)


def read_first_values(path: PathLike, least: int) -> np.ndarray:
    """Read the first slices of a volume as the file stores them (last axis), of a compressed one nothing beyond.

    Args:
        path: the volume.
        least: values to read at least, where the file has as many.

    Returns:
        [X, Y, slices], scaled by the header's slope and intercept.

    Raises:
        UserError: the file is missing, damaged or not 3-D.
    """
    with _open_volume(path) as (volume, _, _):
        x, y, *_ = volume.shape
        slices = _count_slices(x, y, least)
        values = volume.dataobj[:, :, :slices] if len(volume.shape) > 2 else volume.dataobj[:, :]
        return np.asarray(values)


def read_first_range(path: PathLike) -> tuple[float, float]:
    """Return the lowest and the highest of the first :data:`FIRST_VALUES` values of a volume, in whole slices.

    Raises:
        UserError: see :func:`read_first_values`.
    """
    return _FIRST_RANGES.find(path, lambda path: _range(read_first_values(path, FIRST_VALUES)))


def read_label(path: PathLike, with_sha256: bool = False) -> np.ndarray:
    """Read the values of a label map, scribble or mask.

    Palette pictures give their indices, grey pictures stored as RGB give one channel, 1-bit pictures 0 and 1.

    Args:
        path: the label map.
        with_sha256: see :func:`read_image`.

    Returns:
        int32 [X, Y, Z] of a volume, [W, H] of a frame.

    Raises:
        UserError: as :func:`read_image`, and for values that are not whole numbers.
    """
    if is_frame(path):
        label = _read_frame(path, label=True, with_sha256=with_sha256)
    else:
        label = _read_volume(path, scaled=False, with_sha256=with_sha256)
    if label.ndim == 3 and is_frame(path):
        if (label != label[..., :1]).any():
            what = "a label has one channel, this is a colour picture"
            raise FileError(path, "colour_label", what, "save it as grey")
        label = label[..., 0]
    return _as_integers(label, path)


def write_mask(path: PathLike, mask: np.ndarray, like: PathLike) -> None:
    """Write a mask in the geometry of the image that it belongs to.

    Volumes keep sform, qform, their codes and the spacing bit by bit, and nothing else of the image's header
    (which may name the patient). Frames are 8-bit grey, 16-bit where a value exceeds 255.

    Args:
        path: file to write, `.nii` or `.nii.gz` for volumes, `.png` (or another lossless picture) for frames.
        mask: whole numbers >= 0 of the image's spatial shape, [X, Y, Z] or [W, H].
        like: the image.

    Raises:
        UserError: the file cannot be written.
        ValueError: the mask is not of the image's shape, or holds something else than whole numbers >= 0.
    """
    header = _find_header(like)
    geometry = header.geometry
    if mask.shape != geometry.shape:
        raise ValueError(f"{path}: the mask has shape {mask.shape}, the image {like} {geometry.shape}")
    if is_frame(path) != geometry.is_frame or Path(path).suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError(f"{path}: a mask of {like} cannot be stored in this kind of file")
    mask = _smallest_unsigned(mask)
    if header.placed is None:
        with atomic_path(path) as temporary:
            Image.fromarray(np.ascontiguousarray(mask.T)).save(temporary)
        return
    _save_volume(path, mask, header.placed)


def write_fractions(path: PathLike, values: np.ndarray, like: PathLike) -> None:
    """Write a map of numbers in [0, 1], such as an uncertainty, in the geometry of the image that it belongs to.

    Volumes hold float32 as they are, and of the image's header what :func:`write_mask` keeps. Frames are 16-bit grey,
    65535 for 1.

    Args:
        path: file to write, `.nii` or `.nii.gz` for volumes, `.png` for frames.
        values: of the image's spatial shape, [X, Y, Z] or [W, H].
        like: the image.

    Raises:
        UserError: the file cannot be written.
        ValueError: the map is not of the image's shape, or holds other numbers.
    """
    header = _find_header(like)
    if values.shape != header.geometry.shape:
        raise ValueError(f"{path}: the map has shape {values.shape}, the image {like} {header.geometry.shape}")
    if not (values >= 0).all() or not (values <= 1).all():
        raise ValueError(f"{path}: the map holds numbers outside of 0 to 1")
    if header.placed is None:
        grey = np.ascontiguousarray(np.rint(values.T * 65535).astype(np.uint16))
        with atomic_path(path) as temporary:
            Image.fromarray(grey).save(temporary)
        return
    _save_volume(path, values.astype(np.float32), header.placed)


def _save_volume(path: PathLike, array: np.ndarray, header: nib.Nifti1Header) -> None:
    placed = header.copy()
    placed.set_data_dtype(array.dtype)
    array = array.reshape(placed.get_data_shape())  # the file may leave out or add axes of length 1
    written = _image_class(placed)(array, None, placed)
    with atomic_path(path) as temporary:
        nib.save(written, temporary)


def _find_header(path: PathLike) -> _Header:
    return _HEADERS.find(path, _read_header)


def _read_header(path: PathLike) -> _Header:
    with _open_frame(path) if is_frame(path) else _open_volume(path) as (_, header, _):
        return header


# Volumes


@contextmanager
def _open_volume(path: PathLike) -> Iterator[tuple[nib.Nifti1Image, _Header, BinaryIO]]:
    """Yield a NIfTI image, its checked header and its open file; its data can be read while the block lasts."""
    state = file_state(path)
    with _file_errors(path), open(path, "rb") as stream:
        volume, header = _parse_volume(_unpacked(stream, path), path)
        _HEADERS.note(path, state, header)
        yield volume, header, stream


@contextmanager
def _file_errors(path: PathLike) -> Iterator[None]:
    """Turn what reading a NIfTI file raises into a sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise _no_file(path) from error
    except gzip.BadGzipFile as error:
        raise FileError(path, "bad_gzip", f"not a sound gzip file ({_first_line(error)})", "copy it again") from error
    except EOFError as error:
        raise FileError(path, "truncated", "the file is truncated", "copy or download it again") from error
    except (OSError, ImageFileError, HeaderDataError, zlib.error) as error:
        raise FileError(path, "damaged", f"damaged or no NIfTI file ({_first_line(error)})", "copy it again") from error


def _unpacked(stream: io.BufferedReader, path: PathLike) -> io.BufferedIOBase:
    return gzip.GzipFile(fileobj=stream, mode="rb") if str(path).lower().endswith(".gz") else stream


def _parse_volume(stream: io.BufferedIOBase, path: PathLike) -> tuple[nib.Nifti1Image, _Header]:
    stored = _read_stored_header(stream, path)
    _check_header(stored, path)
    stream.seek(0)
    try:
        volume = _image_class(stored).from_stream(stream)
    except ValueError as error:  # a quaternion that is none
        raise FileError(path, "bad_affine", f"the header's qform is not usable ({error})", "write it again") from error
    if not np.isfinite(volume.affine).all():
        raise FileError(path, "bad_affine", "the affine holds NaN or Inf", "repair the sform and qform of the header")
    return volume, _Header(_volume_geometry(volume), stored, _geometry_fields(volume.header))


def _image_class(header: nib.Nifti1Header) -> type[nib.Nifti1Image]:
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def _read_stored_header(stream: io.BufferedIOBase, path: PathLike) -> nib.Nifti1Header:
    """Read the header as it stands: nibabel's own loading would turn a spacing of 0 into 1 silently."""
    block = stream.read(nib.Nifti2Header.sizeof_hdr)
    for header_class in (nib.Nifti1Header, nib.Nifti2Header):
        if header_class.may_contain_header(block):
            return header_class(block[: header_class.sizeof_hdr], check=False)
    raise _no_nifti(path)


def _check_header(header: nib.Nifti1Header, path: PathLike) -> None:
    """Refuse what cannot be read as one volume, before any memory is taken for it."""
    shape = header.get_data_shape()
    if any(length < 1 for length in shape) or len(shape) < 2:
        raise FileError(path, "damaged", f"the header claims the shape {_times(shape)}", "copy or convert it again")
    if len(_spatial_shape(shape)) != 3:
        what = f"has {len(shape)} axes ({_times(shape)}), but a case is one 3-D volume"
        raise FileError(path, "four_axes", what, "split it")
    if math.prod(shape) > MAX_VOXELS:
        what = f"the header claims {_times(shape)} voxels: damaged, or too large"
        raise FileError(path, "too_large", what, "copy it again, or crop it")
    try:
        dtype = header.get_data_dtype()
    except KeyError as error:
        raise FileError(path, "damaged", f"the header names no known value type ({error})", "copy it again") from error
    if dtype.kind not in "iuf":
        what = f"holds colours or complex numbers ({dtype})"
        raise FileError(path, "value_type", what, "convert it to grey values")
    size = os.path.getsize(path) * (MAX_GZIP_RATIO if str(path).lower().endswith(".gz") else 1)
    if float(header["vox_offset"]) + math.prod(shape) * dtype.itemsize > size:
        what = f"truncated: the header claims {_times(shape)} voxels, more than the file can hold"
        raise FileError(path, "truncated", what, "copy or download it again")
    spacing = header["pixdim"][1:4][: len(shape)]
    if header["sform_code"] == 0 and any(s == 0 and n > 1 for s, n in zip(spacing, shape, strict=False)):
        what = f"the header's spacing is 0 mm on an axis ({_times(spacing)})"
        raise FileError(path, "zero_spacing", what, "correct its pixdim, or give it an sform")


def _spatial_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Give a single slice its third axis, and drop trailing axes of length 1 after the third."""
    shape = tuple(shape) + (1,) * (3 - len(shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _volume_geometry(volume: nib.Nifti1Image) -> Geometry:
    unit = unit_of(volume.header)
    affine = in_millimetres(np.array(volume.affine, dtype=np.float64), MILLIMETRES[unit])
    spacing = tuple(float(s) for s in nib.affines.voxel_sizes(affine))
    return Geometry(_spatial_shape(volume.shape), affine, spacing, False, unit)


def unit_of(header: nib.Nifti1Header) -> str:
    """Return the unit of lengths that a header states, a key of :data:`MILLIMETRES`."""
    return _UNIT_CODES.get(int(header["xyzt_units"]) % 8, "unknown")


def in_millimetres(affine: np.ndarray, factor: float) -> np.ndarray:
    """Scale the lengths of an affine [4, 4] by the ``factor`` that makes them mm."""
    return np.diag([factor, factor, factor, 1.0]) @ affine if factor != 1 else affine


def _read_volume(path: PathLike, scaled: bool, with_sha256: bool) -> np.ndarray:
    """Read [X, Y, Z], as float32 when ``scaled``, else in the type that the file's values need."""
    state = file_state(path)
    with _open_volume(path) as (volume, _, stream):
        data = volume.get_fdata(dtype=np.float32) if scaled else np.asanyarray(volume.dataobj)
        _read_to_end(volume.file_map["image"].fileobj)
        data = data.reshape(_spatial_shape(volume.shape))
        if with_sha256:
            note_sha256(path, state, stream)
    if scaled:
        x, y, _ = data.shape
        _FIRST_RANGES.note(path, state, _range(data[..., : _count_slices(x, y, FIRST_VALUES)]))
    return data


def _read_to_end(stream: io.IOBase | None) -> None:
    """Read what is left, so that gzip compares its checksum."""
    while isinstance(stream, io.BufferedIOBase) and stream.read(2**20):
        pass


def _count_slices(x: int, y: int, least: int) -> int:
    """Return how many slices of ``x`` times ``y`` values are read where ``least`` values are wanted."""
    return max(1, least // (x * y))


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _geometry_fields(source: nib.Nifti1Header) -> nib.Nifti1Header:
    """Make a new header from the fields that say where the voxels lie."""
    header = type(source)()
    header.set_data_shape(source.get_data_shape())
    for field in _GEOMETRY_FIELDS:
        header[field] = source[field]
    return header


# Frames


@contextmanager
def _open_frame(path: PathLike) -> Iterator[tuple[Image.Image, _Header, BinaryIO]]:
    """Yield a picture, its header and its open file; its pixels can be read while the block lasts."""
    state = file_state(path)
    try:
        # from a stream: Pillow maps uncompressed TIFF by name, and then misreads it if it is to be turned
        with open(path, "rb") as stream, Image.open(stream) as picture:
            if getattr(picture, "n_frames", 1) != 1:
                fix = "save each as a file and a case of its own"
                raise FileError(path, "several_pictures", "holds several pictures", fix)
            header = _frame_header(picture, stream)
            _HEADERS.note(path, state, header)
            yield picture, header, stream
    except FileNotFoundError as error:
        raise _no_file(path) from error
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        what = f"too large for a frame ({_first_line(error)})"
        raise FileError(path, "too_large", what, "make it smaller") from error
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error) as error:
        raise FileError(path, "damaged", f"damaged or no picture ({_first_line(error)})", "copy it again") from error


def _frame_header(picture: Image.Image, stream: BinaryIO) -> _Header:
    header = picture_header(picture, stream)
    shape = _upright(picture).size if header.orientation != 1 else picture.size
    return _Header(Geometry(shape, None, None, True), picture=header)


def _read_frame(path: PathLike, label: bool, with_sha256: bool) -> np.ndarray:
    """Read [W, H] or [W, H, channels], upright."""
    state = file_state(path)
    with _open_frame(path) as (picture, _, stream):
        upright = _upright(picture)
        array = np.asarray(_label_picture(upright) if label else _visible_picture(upright))
        if with_sha256:
            note_sha256(path, state, stream)
    return np.ascontiguousarray(np.swapaxes(array, 0, 1)).astype(array.dtype.newbyteorder("="))


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says (Pillow turns TIFF itself when it loads the pixels)."""
    picture.load()
    return ImageOps.exif_transpose(picture)


def _visible_picture(picture: Image.Image) -> Image.Image:
    """Show the picture as grey (8, 16, 32 bit) or RGB, transparent parts over black."""
    if picture.mode == "LA":
        return Image.composite(picture.getchannel("L"), Image.new("L", picture.size), picture.getchannel("A"))
    if picture.mode in ("RGBA", "PA") or (picture.mode == "P" and "transparency" in picture.info):
        colours = picture.convert("RGBA")
        black = Image.new("RGB", picture.size)
        return Image.composite(colours.convert("RGB"), black, colours.getchannel("A"))
    if picture.mode == "1":
        return picture.convert("L")
    return picture if picture.mode.startswith(("L", "I", "F")) else picture.convert("RGB")


def _label_picture(picture: Image.Image) -> Image.Image:
    """Leave the values as stored; only transparency is dropped."""
    if picture.mode in ("LA", "PA"):
        return picture.getchannel(0)
    return picture.convert("RGB") if picture.mode == "RGBA" else picture


# Values and words


def _as_integers(label: np.ndarray, path: PathLike) -> np.ndarray:
    """Convert to int32; a tolerance of 1e-4 allows for the rounding of scaled files."""
    if label.dtype.kind == "f":
        whole = np.rint(label)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(label - whole) <= 1e-4)  # so NaN and Inf are wrong, too
        if wrong.any():
            what = f"label values must be whole numbers, found {label[wrong].flat[0]:g}"
            raise FileError(path, "label_not_whole", what, "export the label map again, without interpolation")
        label = whole
    limits = np.iinfo(np.int32)
    if label.size and (label.min() < limits.min or label.max() > limits.max):
        what = f"label values must fit in 32 bits, found {label.min()} to {label.max()}"
        raise FileError(path, "label_not_whole", what, "number the structures from 1")
    return label.astype(np.int32)


def _smallest_unsigned(mask: np.ndarray) -> np.ndarray:
    if mask.dtype.kind not in "bui" or (mask.size and mask.min() < 0):
        raise ValueError(f"a mask holds whole numbers >= 0, not {mask.dtype} from {mask.min()}")
    return mask.astype(np.min_scalar_type(int(mask.max(initial=0))))


def _no_nifti(path: PathLike) -> FileError:
    return FileError(path, "damaged", "this is no NIfTI file, whatever its name says", "copy or convert it again")


def _no_file(path: PathLike) -> FileError:
    return FileError(path, "file_missing", "there is no such file", "check its path in the data list")


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
