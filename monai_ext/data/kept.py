"""Masks of structures that no prediction may paint over, such as a corrected liver."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.data.images import read_geometry, read_label
from monai_ext.errors import UserError

SAME_PLACE = 1e-3
"""mm by which the affines of a mask and its image may differ."""


def with_kept(
    targets: Sequence[Mapping[str, Any]], keep: Mapping[str, str | os.PathLike] | None
) -> list[dict[str, Any]]:
    """Give each target the masks that are to be kept: ``kept`` (names) and ``kept_mask`` (their files).

    Args:
        targets: with ``case`` and ``image``.
        keep: name of a structure -> its mask (not 0 inside), of the only target; or a folder that holds
            ``<case>.nii.gz`` or ``<case>.png``, from which targets without a file take nothing; at least one target has
            one. None: nothing is kept.

    Returns:
        Copies of the targets; without ``keep`` they are as they were.

    Raises:
        UserError: a file or folder is not there or holds no mask of a target, one file is given for several targets, or
            a mask lies on another grid than its image or cannot be read.
    """
    if not keep:
        return [dict(target) for target in targets]
    if not isinstance(keep, Mapping):
        raise UserError(f"--keep {keep}: give names and masks, \"{{'liver': 'mask.nii.gz'}}\".")
    kept = []
    for target in targets:
        found = {name: _file(name, Path(path).expanduser(), target, len(targets)) for name, path in keep.items()}
        files = {name: str(file) for name, file in found.items() if file is not None}
        kept.append({**target, "kept": list(files), "kept_mask": list(files.values())})
    for name, path in keep.items():
        if targets and not any(name in target["kept"] for target in kept):
            raise UserError(
                f"--keep {name}: {path} holds no mask of a case of this run, such as {targets[0]['case']}.nii.gz."
            )
    return kept


def _file(name: str, path: Path, target: Mapping[str, Any], count: int) -> Path | None:
    if path.is_dir():
        inside = [path / f"{target['case']}{suffix}" for suffix in (".nii.gz", ".png")]
        file = next((one for one in inside if one.is_file()), None)
        if file is None:
            return None
    elif not path.is_file():
        raise UserError(f"--keep {name}: there is no {path}; name a mask, or a folder with <case>.nii.gz.")
    elif count > 1:
        raise UserError(
            f"--keep {name}: {path} is one mask, but {count} images are segmented; name a folder with <case>.nii.gz."
        )
    else:
        file = path
    mask, image = read_geometry(file), read_geometry(str(target["image"]))
    same = mask.shape == image.shape and (
        mask.affine is None or image.affine is None or bool(np.abs(mask.affine - image.affine).max() < SAME_PLACE)
    )
    if not same:
        raise UserError(f"--keep {name}: {file} has another grid than the image {target['image']}; resample the mask.")
    read_label(file)  # what is no mask is said before the first case is run
    return file.absolute()
