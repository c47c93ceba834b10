"""Where the slices of a series lie: their order, their affine, and what is wrong with them.

Doubtful geometry is never mended here: a volume with a hole, a shear or two slices at one place would carry masks to
the wrong millimetre.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.headers import SeriesHeaders, SliceHeader

Points = NDArray[np.float64]

SPACING_TOLERANCE = 0.01  # of the distance between slices
POSITION_NOISE = 0.02  # mm: decimal strings are often rounded to hundredths
COSINE_TOLERANCE = 1e-3  # as between slices of one series; rounding to three digits passes
SHEAR_TOLERANCE = 1e-3  # mm sideways per mm along the normal, as of all images: beyond, it is a gantry tilt
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Problem:
    """Something wrong with a series.

    Args:
        code: such as "missing_slice"; see :func:`find_problems`.
        sentence: what is wrong, with numbers, without a full stop.
        fix: what to do.
    """

    code: str
    sentence: str
    fix: str


def sorted_slices(series: SeriesHeaders) -> list[SliceHeader]:
    """Sort slices by the projection of ImagePositionPatient on the slice normal (rows x columns).

    Slices at the same place keep the order of their InstanceNumber, then of their names.

    Raises:
        ValueError: a slice has no position or orientation.
    """
    normal = slice_normal(series.slices[0])

    def place(header: SliceHeader) -> tuple[float, int, str]:
        if header.position is None:
            raise ValueError(f"{header.path}: no ImagePositionPatient")
        return float(normal @ np.array(header.position)), header.instance_number or 0, str(header.path)

    return sorted(series.slices, key=place)


def slice_normal(header: SliceHeader) -> Points:
    """Unit normal [3] of a slice in LPS+: direction of the columns x direction of the rows.

    Raises:
        ValueError: the header has no orientation.
    """
    if header.orientation is None:
        raise ValueError(f"{header.path}: no ImageOrientationPatient")
    normal = np.cross(header.orientation[:3], header.orientation[3:])
    return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)


def series_affine(slices: Sequence[SliceHeader]) -> Points:
    """Affine [4, 4] from voxel indices (column, row, slice) to RAS+ mm.

    Args:
        slices: sorted, evenly spaced; of a single one, the third axis is as long as SliceThickness (1 mm without).
            The third axis follows the positions, or the slice normal where they differ by rounding only.

    Raises:
        ValueError: a header without position, orientation or spacing.
    """
    first, last = slices[0], slices[-1]
    if first.position is None or last.position is None or first.orientation is None or first.pixel_spacing is None:
        raise ValueError(f"{first.path}: no position, orientation or spacing")
    between_rows, between_columns = first.pixel_spacing
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * between_columns
    affine[:3, 1] = np.array(first.orientation[3:]) * between_rows
    normal = slice_normal(first)
    if len(slices) > 1:
        way = np.array(last.position) - np.array(first.position)
        upright = (normal @ way) * normal
        way = upright if np.linalg.norm(way - upright) <= POSITION_NOISE else way
        affine[:3, 2] = way / (len(slices) - 1)
    else:
        affine[:3, 2] = normal * (first.slice_thickness or 1.0)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def find_problems(series: SeriesHeaders) -> list[Problem]:
    """Say what keeps a series from being one volume.

    Codes: ``multi_frame``, ``mixed_patient``, ``no_geometry``, ``bad_geometry``, ``mixed_size``,
    ``mixed_spacing``, ``mixed_orientation``, ``mixed_frame_of_reference``, ``duplicate_position``,
    ``missing_slice``, ``uneven_spacing``, ``gantry_tilt``. Distances between slices may differ by 1 % (or 0.02 mm).

    Args:
        series: of images; what is no image (RTSTRUCT, SEG) has no geometry to judge.

    Returns:
        The problems, the most basic first; none where :func:`~monai_ext.data.dicom.series.read_volume` can read it
        (pixels aside).
    """
    if not series.is_image:
        return []
    basic = [*_multi_frame(series), *_mixed_patient(series), *_no_geometry(series)]
    if any(problem.code in ("no_geometry", "bad_geometry", "multi_frame") for problem in basic):
        return basic
    mixed = [*basic, *_mixed_planes(series)]
    if any(problem.code == "mixed_orientation" for problem in mixed):
        return mixed  # there is no common normal to measure along
    return [*mixed, *_distances(sorted_slices(series))]


def _multi_frame(series: SeriesHeaders) -> Iterator[Problem]:
    several = [header for header in series.slices if header.frames > 1]
    if several:
        yield Problem(
            "multi_frame",
            f"{several[0].path.name} holds {several[0].frames} frames in one file",
            "convert enhanced or multi-frame DICOM to NIfTI (dcm2niix reads it) or to single-frame files",
        )


def _mixed_patient(series: SeriesHeaders) -> Iterator[Problem]:
    patients = Counter(header.patient_id for header in series.slices)
    if len(patients) > 1:
        names = " and ".join(map(repr, list(patients)[:2]))
        yield Problem(
            "mixed_patient",
            f"slices of one SeriesInstanceUID belong to the patients {names}",
            "give each patient's files their own UIDs, or keep them in folders of their own",
        )


def _no_geometry(series: SeriesHeaders) -> Iterator[Problem]:
    for header in series.slices:
        absent = [
            keyword
            for keyword, value in (
                ("ImagePositionPatient", header.position),
                ("ImageOrientationPatient", header.orientation),
                ("PixelSpacing", header.pixel_spacing),
            )
            if value is None
        ]
        if absent:
            number = sum(h.position is None or h.orientation is None or h.pixel_spacing is None for h in series.slices)
            yield Problem(
                "no_geometry",
                f"{number} of {len(series.slices)} files have no usable {' and '.join(absent)} ({header.path.name} "
                "for one)",
                "leave these files out (screenshots, scouts), or export the series again with its geometry",
            )
            return
    for header in series.slices:
        if not _is_plane(header):
            yield Problem(
                "bad_geometry",
                f"{header.path.name} has impossible directions {header.orientation} or spacing {header.pixel_spacing}",
                "export the series again from its source",
            )
            return


def _is_plane(header: SliceHeader) -> bool:
    """Whether directions are of unit length and perpendicular, and spacings positive."""
    cosines = np.array(header.orientation).reshape(2, 3)
    return bool(
        np.allclose(cosines @ cosines.T, np.eye(2), atol=2 * COSINE_TOLERANCE) and min(header.pixel_spacing or (0,)) > 0
    )


def _mixed_planes(series: SeriesHeaders) -> Iterator[Problem]:
    slices = series.slices
    yield from _mixed(
        "mixed_size",
        "sizes",
        [f"{header.columns} x {header.rows}" for header in slices],
        "leave the odd ones out (localisers), or split the series",
    )
    yield from _mixed(
        "mixed_spacing",
        "pixel spacings",
        _grouped([header.pixel_spacing for header in slices], 1e-3),
        "leave the odd ones out, or split the series",
    )
    yield from _mixed(
        "mixed_orientation",
        "orientations",
        _grouped([header.orientation for header in slices], COSINE_TOLERANCE),
        "leave the localisers out, or split the series by orientation",
    )
    frames = [header.frame_of_reference_uid for header in slices if header.frame_of_reference_uid]
    yield from _mixed(
        "mixed_frame_of_reference",
        "frames of reference",
        frames,
        "split the series: these slices do not belong together",
    )


def _mixed(code: str, what: str, values: Sequence[str], fix: str) -> Iterator[Problem]:
    counts = Counter(values).most_common()
    if len(counts) > 1:
        (common, n), (odd, m) = counts[0], counts[-1]
        yield Problem(code, f"slices of {len(counts)} {what} in one series ({n} of {common}, {m} of {odd})", fix)


def _grouped(values: Sequence[Any], tolerance: float) -> list[str]:
    """Name each vector by the first one that it equals within ``tolerance``."""
    seen: list[tuple[float, ...]] = []
    names = []
    for value in values:
        same = next((one for one in seen if np.allclose(one, value, rtol=0, atol=tolerance)), None)
        if same is None:
            seen.append(value)
            same = value
        names.append("(" + ", ".join(f"{x:g}" for x in same) + ")")
    return names


def _distances(slices: Sequence[SliceHeader]) -> Iterator[Problem]:
    """Look at the steps between sorted slices of one orientation."""
    if len(slices) < 2:
        return
    normal = slice_normal(slices[0])
    positions = np.array([header.position for header in slices])
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    same = gaps < _duplicate_below(gaps)
    if same.any():
        k = int(np.argmax(same))
        yield Problem(
            "duplicate_position",
            f"{int(same.sum())} of {len(slices)} slices lie where another one lies "
            f"({slices[k].path.name} and {slices[k + 1].path.name} share a place)",
            "split the series by acquisition (echo, phase, time), or remove the copies",
        )
    if not same.all():
        yield from _uneven(slices, gaps, same)
        yield from _tilt(slices, steps, gaps, normal)


def _duplicate_below(gaps: Points) -> float:
    positive = gaps[gaps > POSITION_NOISE]
    return max(POSITION_NOISE, 0.05 * float(np.median(positive))) if len(positive) else POSITION_NOISE


def _usual_gap(gaps: Points) -> float:
    """The smallest gap where all others are multiples of it (slices are missing), else the median."""
    smallest = float(gaps.min())
    whole = np.rint(gaps / smallest)
    if (np.abs(gaps - whole * smallest) <= whole * max(SPACING_TOLERANCE * smallest, POSITION_NOISE)).all():
        return float(np.median(gaps[whole == 1]))
    return float(np.median(gaps))


def _uneven(slices: Sequence[SliceHeader], gaps: Points, same: NDArray[np.bool_]) -> Iterator[Problem]:
    spacing = _usual_gap(gaps[~same])
    tolerance = max(SPACING_TOLERANCE * spacing, POSITION_NOISE)
    off = ~same & (np.abs(gaps - spacing) > tolerance)
    whole = np.rint(gaps / spacing)
    missing = off & (whole >= 2) & (np.abs(gaps - whole * spacing) <= whole * tolerance)
    if missing.any():
        k = int(np.argmax(missing))
        count = int((whole[missing] - 1).sum())
        yield Problem(
            "missing_slice",
            f"{count} slice{'s are' if count > 1 else ' is'} missing: {gaps[k]:.2f} mm between {slices[k].path.name} "
            f"and {slices[k + 1].path.name}, {spacing:.2f} mm elsewhere",
            "download or export the series again",
        )
    uneven = off & ~missing
    if uneven.any():
        k = int(np.argmax(uneven))
        yield Problem(
            "uneven_spacing",
            f"slices are not evenly spaced: {gaps[k]:.3f} mm between {slices[k].path.name} and "
            f"{slices[k + 1].path.name}, {spacing:.3f} mm is usual",
            "split the series into parts of even spacing, or resample it (dcm2niix does)",
        )


def _tilt(slices: Sequence[SliceHeader], steps: Points, gaps: Points, normal: Points) -> Iterator[Problem]:
    sideways = steps - gaps[:, None] * normal
    total, along = np.linalg.norm(sideways.sum(axis=0)), float(gaps.sum())
    if total > max(SHEAR_TOLERANCE * along, POSITION_NOISE):
        tilt = slices[0].gantry_tilt
        header = f", the header says {tilt:g}" if tilt else ""
        yield Problem(
            "gantry_tilt",
            f"slices are shifted against each other along their plane: gantry tilt of "
            f"{np.degrees(np.arctan2(total, along)):.1f} degrees{header}",
            "correct the tilt by resampling (dcm2niix does), or choose another series",
        )
        return
    worst = np.linalg.norm(sideways, axis=1)
    limit = max(SPACING_TOLERANCE * float(np.median(gaps)), POSITION_NOISE)
    if (worst > limit + np.abs(gaps) * SHEAR_TOLERANCE).any():
        k = int(np.argmax(worst))
        yield Problem(
            "uneven_spacing",
            f"{slices[k + 1].path.name} is shifted {worst[k]:.2f} mm sideways against {slices[k].path.name}",
            "leave the slice out, or export the series again",
        )
