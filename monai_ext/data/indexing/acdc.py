"""ACDC: end-diastole and end-systole of each patient, from the official folders and, where there, the scribbles."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
from nibabel.filebasedimages import ImageFileError

from monai_ext.data.cards import Card
from monai_ext.data.folders import files_below
from monai_ext.data.indexing.index import CaseEntry, Index, Options, by_name, nothing_found, start_list
from monai_ext.errors import UserError
from monai_ext.files import atomic_path

PHASES = ("ED", "ES")  # visits 0 and 1


def index_acdc(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index patient folders (``Info.cfg``, ``patient001_frame01.nii.gz``, ``..._gt.nii.gz``) anywhere below the root.

    ``Info.cfg`` tells which frames are end-diastole (visit 0) and end-systole (visit 1), and the pathology group;
    weight and height are left where they are. A frame without a file of its own is cut from ``patient001_4d.nii.gz``.

    Raises:
        UserError: there is no patient folder.
    """
    skipped: list[tuple[str, str]] = []
    volumes = files_below(root)
    images = by_name(volumes, r"(patient[0-9]{3}_(?:frame[0-9]+|4d))", skipped)
    drawn = {
        "label": by_name(volumes, r"(patient[0-9]{3}_frame[0-9]+)_gt"),
        "scribble": by_name(volumes, r"(patient[0-9]{3}_frame[0-9]+)_scribble"),
    }
    folders = {name.split("_")[0]: path.parent for name, path in images.items()}
    if not folders:
        raise nothing_found(root, card)
    index = Index(start_list(card, ignore=bool(drawn["scribble"])), skipped)
    splits, folds = card.assign("split", folders), card.assign("fold", folders)
    for patient, folder in sorted(folders.items()):
        try:
            entries = _visits(patient, folder, images, files)
        except UserError as error:
            skipped.append((patient, str(error)))
            continue
        for entry in entries:
            entry |= {"split": splits.get(patient), "fold": folds.get(patient)}
            entry |= {key: str(found[entry["case"]]) for key, found in drawn.items() if entry["case"] in found}
        index.datalist["cases"] += entries
    return index


def _visits(patient: str, folder: Path, images: dict[str, Path], files: Path) -> list[CaseEntry]:
    info = read_info(folder / "Info.cfg")
    entries = []
    for visit, phase in enumerate(PHASES):
        frame = int(info[phase])
        name = f"{patient}_frame{frame:02d}"
        image = images.get(name)
        if image is None:
            image = cut_frame(
                images.get(f"{patient}_4d", folder / f"{patient}_4d.nii.gz"), frame, files / f"{name}.nii.gz"
            )
        entry: CaseEntry = {"case": name, "patient": patient, "visit": visit, "phase": phase, "frame": frame}
        entries.append({**entry, "group": info.get("Group"), "image": str(image)})
    return entries


def read_info(path: Path) -> dict[str, str]:
    """Read ``Info.cfg``.

    Returns:
        Its ``ED``, ``ES`` (numbers of frames, from 1) and ``Group``, as text.

    Raises:
        UserError: the file is missing, or ED or ES is no number above 0.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read, so ED and ES are not known; download it again") from error
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    for phase in PHASES:
        if not info.get(phase, "").isdecimal() or int(info[phase]) < 1:
            raise UserError(f"{path}: {phase} is {info.get(phase)!r} and no frame's number; download it again")
    return {key: info[key] for key in (*PHASES, "Group") if key in info}


def cut_frame(cine: Path, number: int, target: Path) -> Path:
    """Write one frame of a 4-D volume, with its geometry and grey values.

    Args:
        cine: the 4-D volume, [X, Y, Z, T].
        number: of the frame, from 1.
        target: file to write.

    Returns:
        The written file.

    Raises:
        UserError: the volume cannot be read, has no such frame, or the frame cannot be written.
    """
    try:
        volume = nib.Nifti1Image.from_filename(cine)
        if len(volume.shape) != 4 or number > volume.shape[3]:
            raise UserError(f"{cine}: has no frame {number} (its shape is {volume.shape}); download it again")
        with atomic_path(target) as temporary:
            nib.save(volume.slicer[..., number - 1], temporary)
    except FileNotFoundError as error:
        raise UserError(
            f"{cine}: there is neither this file nor the one of frame {number}; download it again"
        ) from error
    except (OSError, EOFError, ImageFileError, zlib.error) as error:
        raise UserError(f"{cine}: damaged or no NIfTI file; download it again") from error
    return target
