"""What is kept of each file while a data list is examined: a few numbers, never the voxels."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from PIL import Image

from monai_ext.data.checks import count_values
from monai_ext.data.doctor.findings import Problem
from monai_ext.data.file_error import FileError
from monai_ext.data.images import (
    MILLIMETRES,
    Geometry,
    in_millimetres,
    is_frame,
    read_geometry,
    read_label,
    read_nifti_header,
    read_picture_header,
    read_values,
    unit_of,
)
from monai_ext.data.manifest import FILE_KEYS, Case, DataList
from monai_ext.data.picture_header import PictureHeader
from monai_ext.grey_values import factor_to_8_bits

LABEL_KEYS = ("label", "scribble", "reference_label")


@dataclass(frozen=True)
class VolumeHeader:
    """The fields of a NIfTI header that say where the voxels lie, their lengths in mm.

    Args:
        pixdim: spacing of the three axes in mm; may be 0 or negative.
        qform: [4, 4] affine of the qform, None where its code is 0 or it is not usable.
        sform: [4, 4] affine of the sform, None where its code is 0.
        unit: of lengths in the file, "unknown" where the header states none.
    """

    pixdim: tuple[float, ...]
    qform: np.ndarray | None
    sform: np.ndarray | None
    unit: str


@dataclass(frozen=True)
class Values:
    """What is kept of the values of an image or label map.

    Args:
        size: how many there are.
        low: the lowest finite one, NaN if there is none.
        high: the highest.
        n_nan: how many are NaN.
        n_infinite: how many are infinite.
        counts: of label maps: how often each value occurs.
        digest: the same for the same array.
        n_transparent: pixels that are not opaque.
        factor: of a picture: what brings its grey values to [0, 255], None where its type and values do not say.
    """

    size: int
    low: float
    high: float
    n_nan: int
    n_infinite: int
    counts: dict[int, int] | None
    digest: str
    n_transparent: int
    factor: float | None = None


@dataclass(frozen=True)
class FileFacts:
    """What is known of one file.

    Args:
        path: the file.
        is_label: whether it is read as a label map.
        error: why it cannot be read, if so; what follows may be None then.
        grid: where its voxels lie.
        volume: the header of a volume.
        picture: the header of a picture.
        values: None if only headers are read.
    """

    path: str
    is_label: bool
    error: FileError | None = None
    grid: Geometry | None = None
    volume: VolumeHeader | None = None
    picture: PictureHeader | None = None
    values: Values | None = None


@dataclass(frozen=True)
class Use:
    """A file in its place.

    Args:
        case: which names it.
        key: under which.
        file: what is known of it.
    """

    case: Case
    key: str
    file: FileFacts

    @property
    def name(self) -> str:
        """What messages call it, such as "label p01.nii.gz"."""
        return f"{self.key.replace('_', ' ')} {Path(self.file.path).name}"

    def problem(self, sentence: str, fix: str) -> Problem:
        """Say what is wrong with the file."""
        return Problem(sentence, fix, self.case.case, self.file.path)


@dataclass(frozen=True)
class FollowUp:
    """Images and the annotated ones that serve them.

    Args:
        targets: images to be segmented.
        references: image and label map of each reference.
    """

    targets: list[Use]
    references: list[tuple[Use, Use]]


@dataclass(frozen=True)
class Mistake:
    """What is wrong with the text of a data list, and the code of the check that lists it."""

    code: str
    problem: Problem


@dataclass(frozen=True)
class ListFacts:
    """What is known of a data list.

    Args:
        datalist: what could be read of it, with the selected cases and their files as absolute paths.
        all_cases: the cases before the selection by split and fold.
        uses: each file of each selected case, in the order of the list.
        mistakes: what is wrong with its text.
        follow_up: whether later visits are to be segmented from an annotated one; None: see :meth:`is_followed_up`.
    """

    datalist: DataList
    all_cases: tuple[Case, ...]
    uses: tuple[Use, ...]
    mistakes: tuple[Mistake, ...] = ()
    follow_up: bool | None = None

    def is_followed_up(self) -> bool:
        """Tell whether later visits are to be segmented from earlier ones.

        ``follow_up`` says so; without it, cases that name patients do. Not where a case has a scribble, a split or a
        fold: such a list is for training, or tests what was trained.
        """
        if self.follow_up is not None:
            return self.follow_up
        for_training = any(case.scribble or case.split is not None or case.fold is not None for case in self.all_cases)
        return not for_training and any(case.patient or case.reference_image for case in self.all_cases)

    def modality_of(self, case: Case) -> str:
        """Return a case's modality in lower case, "" where none is stated."""
        return (case.modality or self.datalist.modality or "").strip().lower()

    def files(self) -> Iterator[Use]:
        """Yield each file once for each way that it is read."""
        seen: set[tuple[str, bool]] = set()
        for use in self.uses:
            if (use.file.path, use.file.is_label) not in seen:
                seen.add((use.file.path, use.file.is_label))
                yield use

    def images(self) -> Iterator[Use]:
        """Yield each image once."""
        return (use for use in self.files() if not use.file.is_label)

    def labels(self) -> Iterator[Use]:
        """Yield each label map and scribble once."""
        return (use for use in self.files() if use.file.is_label)

    def pairs(self) -> Iterator[tuple[Use, Use]]:
        """Yield each image with each label map or scribble that lies on it."""
        for case in self.datalist.cases:
            uses = self._by_case.get(id(case), {})
            yield from _zip(uses, "image", "label")
            yield from _zip(uses, "image", "scribble")
            yield from _zip(uses, "reference_image", "reference_label")

    def follow_ups(self) -> Iterator[FollowUp]:
        """Yield what an earlier annotated image serves, as ``pair_with_reference`` pairs it by default.

        That is a case's own references, else the earliest annotated visit of the patient, for all later ones.
        """
        for case in self.datalist.cases:
            if case.reference_image:
                uses = self._by_case.get(id(case), {})
                yield FollowUp(uses.get("image", []), list(_zip(uses, "reference_image", "reference_label")))
        for cases in self.patients().values():
            dated = [case for case in cases if case.visit is not None and not case.reference_image]
            first = min((_time(case) for case in dated if case.label), default=math.inf)
            later = [case for case in dated if _time(case) > first]
            if later:
                references = [case for case in dated if case.label and _time(case) == first]
                yield FollowUp(self._uses(later, "image"), list(self._annotated(references)))

    def patients(self) -> dict[str, list[Case]]:
        """Return the selected cases of each patient that is named."""
        patients: dict[str, list[Case]] = {}
        for case in self.datalist.cases:
            if case.patient is not None:
                patients.setdefault(case.patient, []).append(case)
        return patients

    @cached_property
    def _by_case(self) -> dict[int, dict[str, list[Use]]]:
        by_case: dict[int, dict[str, list[Use]]] = {}
        for use in self.uses:
            by_case.setdefault(id(use.case), {}).setdefault(use.key, []).append(use)
        return by_case

    def _uses(self, cases: Sequence[Case], key: str) -> list[Use]:
        return [use for case in cases for use in self._by_case.get(id(case), {}).get(key, [])]

    def _annotated(self, cases: Sequence[Case]) -> Iterator[tuple[Use, Use]]:
        for case in cases:
            yield from _zip(self._by_case.get(id(case), {}), "image", "label")


def _zip(uses: dict[str, list[Use]], image: str, label: str) -> Iterator[tuple[Use, Use]]:
    images, labels = uses.get(image, []), uses.get(label, [])
    if len(images) == len(labels):  # else a file is missing, and which belong together is unknown
        yield from zip(images, labels, strict=True)


def _time(case: Case) -> float:
    """Order the visits of a patient, which are all numbers or all dates."""
    visit = case.visit
    return visit.toordinal() if isinstance(visit, datetime.date) else -math.inf if visit is None else visit


def read_facts(path: str, is_label: bool, wants_values: Callable[[PictureHeader | None], bool]) -> FileFacts:
    """Read what is kept of a file.

    Args:
        path: the file.
        is_label: read it as a label map.
        wants_values: tells, when the header of a picture (None: a volume) is known, whether to read all values.
    """
    grid: Geometry | None = None
    volume: VolumeHeader | None = None
    picture: PictureHeader | None = None
    try:
        grid = read_geometry(path)
        if is_frame(path):
            picture = read_picture_header(path)
        else:
            volume = _read_volume(path)
        values = _read_values(path, is_label, picture) if wants_values(picture) else None
    except FileError as error:
        return FileFacts(path, is_label, error, grid, volume, picture)
    return FileFacts(path, is_label, None, grid, volume, picture, values)


def files_of(case: Case) -> Iterator[tuple[str, str]]:
    """Yield (key, path) of each file of a case."""
    for key in FILE_KEYS:
        value = getattr(case, key)
        for path in [value] if isinstance(value, str) else value or []:
            yield key, path


def _read_volume(path: str) -> VolumeHeader:
    header = read_nifti_header(path)
    unit = unit_of(header)
    sform = header.get_sform() if int(header["sform_code"]) > 0 else None
    qform, factor = _qform(header), MILLIMETRES[unit]
    return VolumeHeader(
        pixdim=tuple(float(length) * factor for length in header["pixdim"][1:4]),
        qform=None if qform is None else in_millimetres(qform, factor),
        sform=None if sform is None else in_millimetres(sform, factor),
        unit=unit,
    )


def _qform(header: Nifti1Header) -> np.ndarray | None:
    """Read the qform as nibabel does when it opens a file, spacing made positive."""
    if int(header["qform_code"]) <= 0:
        return None
    header = header.copy()
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    with suppress(HeaderDataError, ValueError):
        return np.asarray(header.get_qform())
    return None


def _read_values(path: str, is_label: bool, picture: PictureHeader | None) -> Values:
    array = read_label(path) if is_label else read_values(path)
    low, high, n_nan, n_infinite = _range(array)
    return Values(
        size=array.size,
        low=low,
        high=high,
        n_nan=n_nan,
        n_infinite=n_infinite,
        counts=count_values(array) if is_label else None,
        digest=_digest(array),
        n_transparent=_count_transparent(path) if picture is not None and picture.has_alpha else 0,
        factor=None if picture is None or is_label or n_nan or n_infinite else _factor(array),
    )


def _factor(array: np.ndarray) -> float | None:
    return factor_to_8_bits(array, array.dtype.kind == "f")


def _range(array: np.ndarray) -> tuple[float, float, int, int]:
    """Return the lowest and the highest finite value, and how many are NaN and infinite."""
    if not array.size:
        return np.nan, np.nan, 0, 0
    low, high = float(array.min()), float(array.max())
    if np.isfinite([low, high]).all():
        return low, high, 0, 0
    n_nan, n_infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    finite = array[np.isfinite(array)]
    return (
        (float(finite.min()), float(finite.max()), n_nan, n_infinite)
        if finite.size
        else (np.nan, np.nan, n_nan, n_infinite)
    )


def _digest(array: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{array.shape}".encode(), digest_size=16)
    for plane in np.moveaxis(array, -1, 0) if array.ndim > 2 else [array]:  # less memory than a copy of all
        digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()


def _count_transparent(path: str) -> int:
    with Image.open(path) as picture:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    return int((alpha < 255).sum())
