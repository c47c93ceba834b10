"""One annotated slice of each volume as the reference for all of it: a data list and its references on disk.

``python -m monai_ext.data.middle_slice LIST.json -o FOLDER`` cuts the middle one of the slices that hold a structure
out of each labelled volume and writes ``FOLDER/LIST.json``, in which it serves the whole volume. Run it with
``--slice_match relative``. The label says which slice it is, as a user who annotates one slice does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from monai_ext.data.images import is_frame, read_geometry, read_label
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.errors import UserError, report_user_errors
from monai_ext.files import PathLike, atomic_path


def write_middle_slices(cases: DataList, folder: PathLike) -> Path:
    """Write the middle slice of each labelled volume, and the data list in which it serves the volume.

    Args:
        cases: of :func:`load_datalist`; those without a label are left out.
        folder: where to; made where it is missing.

    Returns:
        The data list, ``folder/<dataset>.json``. Written last.

    Raises:
        UserError: a case is no NIfTI volume or its label is empty; there is no labelled case.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    kept = []
    for case in cases.cases:
        if case.label is None:
            continue
        files = {f"reference_{key}": [f"{case.case}_middle_{key}.nii.gz"] for key in ("image", "label")}
        axis, index = middle_slice(case.image, case.label)
        for key, source in (("reference_image", case.image), ("reference_label", case.label)):
            _cut(source, axis, index, place / files[key][0])
        paths = {"image": str(Path(case.image).absolute()), "label": str(Path(case.label).absolute())}
        kept.append(case.model_copy(update={**paths, **files, "scribble": None}))
    if not kept:
        raise UserError(f"{cases.dataset} has no labelled case to take a slice of: check --split.")
    content = cases.model_copy(update={"cases": kept})
    path = place / f"{cases.dataset}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(content.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
    return path


def middle_slice(image: PathLike, label: PathLike) -> tuple[int, int]:
    """Find the middle one of the slices that hold a structure.

    Slices lie along the axis of the largest spacing, of several the last.

    Returns:
        The array axis of the slices, and the index along it.

    Raises:
        UserError: the image is a frame, or the label is empty.
    """
    if is_frame(image):
        raise UserError(f"{image}: a picture has no middle slice; give volumes.")
    spacing = np.asarray(read_geometry(image).spacing)
    axis = int(np.flatnonzero(spacing >= 0.999 * spacing.max())[-1])
    mask = read_label(label) > 0
    held = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    if not len(held):
        raise UserError(f"{label}: no voxel has a label; leave the case out.")
    return axis, int(held[len(held) // 2])


def _cut(source: PathLike, axis: int, index: int, target: Path) -> None:
    """Write one slice of a NIfTI volume as a volume, where it lies in space."""
    places = tuple(slice(index, index + 1) if k == axis else slice(None) for k in range(3))
    volume: nib.Nifti1Image = nib.load(source)  # type: ignore[assignment]
    with atomic_path(target) as temporary:
        nib.save(volume.slicer[places], temporary)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    report_user_errors()
    parser = argparse.ArgumentParser(prog="python -m monai_ext.data.middle_slice", description=__doc__)
    parser.add_argument("datalist", help="data list with labels")
    parser.add_argument("-o", "--output", required=True, help="folder of the slices and the new list")
    parser.add_argument("--split", help="only cases of this split")
    given = parser.parse_args(arguments)
    print(write_middle_slices(load_datalist(given.datalist, split=given.split), given.output))


if __name__ == "__main__":
    main()
