"""Predicted masks in a folder, whoever made them: which file is of which case, and on which grid it lies.

A case's mask is ``<case>.nii.gz``, ``<case>.nii`` or a picture (``<case>.png``), its values those of the data
list. Where labels overlap there may be one file a label instead, ``<case>_<label>.nii.gz``, not 0 where the
label is, as :class:`~monai_ext.handlers.mask_writer.MaskWriter` writes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform

from monai_ext.data.checks import check_affine, grid_difference, grids_overlap, on_image
from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES, Geometry, read_geometry, read_label
from monai_ext.data.mask_names import shared_file, structure_file, structure_files
from monai_ext.errors import UserError
from monai_ext.files import PathLike

# Longest first; a mask in a lossy picture is none.
SUFFIXES = sorted({*VOLUME_SUFFIXES, *FRAME_SUFFIXES} - {".jpg", ".jpeg"}, key=lambda suffix: (-len(suffix), suffix))
RESAMPLING_RULE = (
    "nearest neighbour onto the reference's grid through world coordinates (scipy.ndimage.affine_transform, "
    "order 0); beyond the prediction's field of view is background"
)


@dataclass(frozen=True)
class PredictionFiles:
    """Files of one case.

    Args:
        whole: mask of all labels; None: there is none.
        by_label: masks of single labels, by name, where there is none of all.
    """

    whole: Path | None = None
    by_label: dict[str, Path] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """All files of the case."""
        return [self.whole] if self.whole else list(self.by_label.values())


class OtherGridError(UserError):
    """A prediction does not lie on its reference's grid."""


def find_predictions(
    folder: PathLike, cases: Sequence[str], labels: Iterable[str], known: Collection[str] | None = None
) -> tuple[dict[str, PredictionFiles], list[str]]:
    """Find each case's files.

    Args:
        folder: of the predictions; folders within it are not looked into.
        cases: names of the cases that are looked for.
        labels: names of the structures.
        known: names of all cases of the data list, where ``cases`` are but a part of them.

    Returns:
        The files of each of ``cases``, and the names of the masks in the folder that belong to no case known.

    Raises:
        UserError: where there is no such folder, it holds two masks of one case, none of any, or one whose name may
            stand for several cases or structures.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; set --predictions to the folder of the masks")
    everyone = {*(known or ()), *cases}
    masks = _masks_in(folder, everyone)
    labels = list(labels)
    by_label = structure_files(sorted(everyone), labels)
    for stem in masks.keys() & by_label.keys() - everyone:
        owners = [(case, label) for case, label in by_label[stem] if case not in masks]
        if len(owners) > 1:
            raise shared_file(stem, owners)
    found = {case: _files_of(case, masks, labels, everyone) for case in cases}
    if not any(files.paths for files in found.values()):
        there = ", ".join(sorted(masks)[:3]) + ", ..." if masks else "no mask at all"
        raise UserError(
            f"{folder}: there is no prediction of any of the {len(cases)} cases, such as {cases[0]}.nii.gz or "
            f"{cases[0]}.png, but {there}; name the masks by their case or choose another --predictions"
        )
    claimed = everyone | by_label.keys()
    return found, sorted(path.name for stem, paths in masks.items() if stem not in claimed for path in paths)


def read_prediction(path: Path, reference: PathLike, onto: Geometry, resample: bool) -> tuple[np.ndarray, bool]:
    """Read a predicted mask on its reference's grid.

    Args:
        path: of the mask.
        reference: path of the reference mask.
        onto: the reference's grid.
        resample: bring a mask of another grid onto it, by :data:`RESAMPLING_RULE`.

    Returns:
        int32 mask of the reference's shape, and whether it was resampled.

    Raises:
        OtherGridError: where the grids differ and nothing is to be resampled, or can be.
        UserError: where the file cannot be read.
    """
    geometry = on_image(onto, read_geometry(path))
    difference = grid_difference(onto, geometry)
    if difference is None:
        return read_label(path), False
    if difference.name == "unit":
        advice = f"the same numbers in {difference.of_label} and {difference.of_image}, so correct the wrong header"
    elif geometry.affine is None or onto.affine is None:
        advice = "frames have no world coordinates to resample by, so write it in the reference's size"
    elif not resample:
        advice = "write it on the reference's grid, or set --resample"
    elif not grids_overlap(onto, geometry):
        advice = "they do not overlap, so there is nothing to resample"
    else:
        check_affine(str(path), geometry)
        return resample_onto(read_label(path), geometry.affine, onto), True
    raise OtherGridError(
        f"{path}: the prediction's grid is {describe_grid(geometry)}, but that of its reference {reference} is "
        f"{describe_grid(onto)}; {advice}"
    )


def resample_onto(mask: np.ndarray, affine: np.ndarray, onto: Geometry) -> np.ndarray:
    """Bring a mask onto another grid: see :data:`RESAMPLING_RULE`.

    Args:
        mask: [X, Y, Z] of whole numbers.
        affine: [4, 4], its voxel indices -> RAS mm.
        onto: the grid of a volume.
    """
    to_mask = np.linalg.inv(affine) @ onto.affine
    return affine_transform(mask, to_mask[:3, :3], to_mask[:3, 3], onto.shape, order=0, mode="grid-constant")


def describe_grid(geometry: Geometry) -> str:
    """Say where the voxels of a file lie."""
    shape = " x ".join(map(str, geometry.shape))
    if geometry.affine is None or geometry.spacing is None:
        return f"{shape} pixels"
    spacing = np.asarray(geometry.spacing, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        direction = (geometry.affine[:3, :3] / spacing).ravel()
    origin = geometry.affine[:3, 3]
    return f"{shape} voxels, spacing {_vector(spacing)} mm, origin {_vector(origin)}, direction {_vector(direction)}"


def _vector(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values + 0.0) + ")"


def _masks_in(folder: Path, cases: Collection[str]) -> dict[str, list[Path]]:
    """Return the masks of a folder by their name without suffix; hidden files only where a case is called so."""
    hidden = tuple(case for case in cases if case.startswith("."))
    masks: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
        seen = not path.name.startswith(".") or path.name.startswith(hidden)
        if suffix and seen and path.is_file():
            masks.setdefault(path.name[: -len(suffix)], []).append(path)
    return masks


def _files_of(
    case: str, masks: dict[str, list[Path]], labels: Iterable[str], everyone: Collection[str]
) -> PredictionFiles:
    whole = _only(case, masks)
    if whole is not None:
        return PredictionFiles(whole)
    names = {label: structure_file(case, label) for label in labels}
    found = {label: _only(name, masks) for label, name in names.items() if name not in everyone}
    return PredictionFiles(None, {label: path for label, path in found.items() if path is not None})


def _only(stem: str, masks: dict[str, list[Path]]) -> Path | None:
    paths = masks.get(stem, [])
    if len(paths) > 1:
        raise UserError(f"case {stem!r} has two predictions, {paths[0]} and {paths[1]}; remove one of them")
    return paths[0] if paths else None
