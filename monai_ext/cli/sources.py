"""Recognises what a user's folder holds, and gives the command that makes a data list of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_ext.cli.arguments import nearest
from monai_ext.cli.steps import Step
from monai_ext.data.dicom.reading import has_preamble, looks_like_dicom, read_dataset
from monai_ext.data.folders import walk
from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES
from monai_ext.errors import UserError
from monai_ext.files import atomic_path

KINDS = ("dicom", "bids", "folder")
LOOKED_AT = 2000  # files


@dataclass(frozen=True)
class TwoImages:
    """A baseline with its mask, and a later image, in place of a folder."""

    baseline: str
    mask: str
    target: str


def recognise(folder: Path) -> str:
    """Return what a folder holds: "dicom", "bids" or "folder" (NIfTI or pictures).

    Raises:
        UserError: there is no such folder, nothing that can be read is in it, or both DICOM and NIfTI.
    """
    if folder.is_file():
        raise UserError(f"{folder}: this is a file; name the folder of the images, or a data list that ends in .json.")
    if not folder.is_dir():
        near = [one.name for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = nearest(folder.name, near, "monai-ext follow-up")
        raise UserError(f"{folder}: there is no such folder, {hint}")
    if (folder / "dataset_description.json").is_file() or any(folder.glob("sub-*/**/*.nii*")):
        return "bids"
    names = [path for _, files in walk(folder, once=True) for path in files][:LOOKED_AT]
    images = [path for path in names if path.name.lower().endswith(VOLUME_SUFFIXES + FRAME_SUFFIXES)]
    others = [path for path in names if path not in set(images)]
    dicom = next((path for path in others if has_preamble(path)), None) or next(filter(_is_bare_dicom, others), None)
    if dicom and images:
        raise UserError(
            f"{folder}: holds DICOM ({dicom.name}) and {images[0].name}: say which with --input dicom or folder."
        )
    if not dicom and not images:
        raise UserError(f"{folder}: holds neither DICOM nor NIfTI nor pictures; name the folder of the images.")
    return "dicom" if dicom else "folder"


def _is_bare_dicom(path: Path) -> bool:
    """Whether a file is DICOM without its usual first bytes, as old archives write it."""
    if not looks_like_dicom(path):
        return False
    try:
        read_dataset(path, pixels=False, tags=("SOPClassUID",))
    except UserError:
        return False
    return True


def index_step(kind: str, folder: Path, datalist: Path, options: dict[str, Any]) -> Step:
    """Return the step that writes the data list of a folder.

    Args:
        kind: of :func:`recognise`.
        folder: with the images.
        datalist: to write.
        options: of the indexing; None and empty ones are left out.

    Raises:
        UserError: ``--roi`` for what is no DICOM.
    """
    if options.get("roi") and kind != "dicom":
        raise UserError(
            "--roi finds contours by name in DICOM: for other files give --labels NAME=VALUE, such as tumour=1."
        )
    words = [kind, str(folder), "-o", str(datalist)]
    for name, value in options.items():
        if value:
            words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return Step("monai_ext.data.indexing.__main__", tuple(words))


def two_images(given: TwoImages, modality: str | None, labels: list[str]) -> dict[str, Any]:
    """Return the data list of a baseline with its mask and a later image.

    Without ``labels`` the mask's values are the structures: one is named "structure", several after their values.

    Raises:
        UserError: one of the files is not there, or no structures can be told from the mask's values.
    """
    from monai_ext.data.indexing.__main__ import parse_labels

    for option, name in vars(given).items():
        if not Path(name).expanduser().is_file():
            raise UserError(f"--{option} {name}: there is no such file; correct its name.")
    paths = {option: str(Path(name).expanduser().absolute()) for option, name in vars(given).items()}
    values = parse_labels(labels) if labels else _values(paths["mask"])
    first = {"case": "baseline", "patient": "patient", "visit": 0, "image": paths["baseline"], "label": paths["mask"]}
    later = {"case": "target", "patient": "patient", "visit": 1, "image": paths["target"]}
    return {"dataset": "follow-up", "modality": modality, "labels": values, "cases": [first, later]}


def write_list(content: dict[str, Any], path: Path) -> None:
    """Write a data list."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def writing_command(content: dict[str, Any], path: Path) -> str:
    """Return the shell command that writes a data list."""
    folder, file = shlex.quote(str(path.parent)), shlex.quote(str(path))
    return f"mkdir -p {folder} && printf '%s\\n' {shlex.quote(json.dumps(content))} > {file}"


def _values(mask: str) -> dict[str, int]:
    from monai_ext.data.indexing.folder import LOSSY, MOST_VALUES
    from monai_ext.data.indexing.index import label_values

    found = sorted(label_values(mask) - {0})
    if len(found) > MOST_VALUES or mask.lower().endswith(LOSSY) or any(value < 0 for value in found):
        raise UserError(
            f"--mask {mask}: no structures can be told from its {len(found)} values besides 0: save it as NIfTI or PNG "
            "with a whole number for each structure, or name them, --labels NAME=VALUE."
        )
    if len(found) > 1:
        return {f"label_{value}": value for value in found}
    return {"structure": found[0] if found else 1}  # an empty mask is the doctor's to refuse
