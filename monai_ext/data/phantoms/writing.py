"""Phantoms on disk, volumes as NIfTI and videos as PNG, each with its data list."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_ext.data.phantoms.cells import CELL_LABELS, phantom_cells
from monai_ext.data.phantoms.patient import PATIENT_LABELS, PhantomVisit, phantom_patient
from monai_ext.data.phantoms.stream import STREAM_LABELS, phantom_stream
from monai_ext.data.text import read_json
from monai_ext.files import atomic_path

LICENCE = "Apache-2.0"  # the package's: nothing here comes from a real image


def _write_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write one volume, the same bytes for the same array (no time stamp in the gzip header)."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def _write_picture(path: Path, array: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary)


def _write_list(path: Path, dataset: str, modality: str, labels: dict[str, int], cases: list[dict[str, Any]]) -> Path:
    content = {"dataset": dataset, "licence": LICENCE, "modality": modality, "labels": labels, "cases": cases}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def write_phantom_patient(folder: str | os.PathLike[str], seed: int = 0) -> Path:
    """Write :func:`phantom_patient` as int16 NIfTI with uint8 labels and a data list of its three visits.

    Args:
        folder: where to; made where it is missing, files of an earlier call are replaced.
        seed: the patient; the same seed gives the same bytes.

    Returns:
        The data list, ``folder/phantom.json``, with paths relative to the folder. Written last.
    """
    return write_visits(Path(folder), "phantom", "MR", PATIENT_LABELS, phantom_patient(seed))


def write_phantom_patients(folder: str | os.PathLike[str], count: int, supports: bool = False) -> Path:
    """Write the first visits of several phantom patients, for methods that learn from some and are tested on others.

    Args:
        folder: where to; made where it is missing, files of an earlier call are replaced.
        count: patients, whose seeds are 0, 1, ...; each is a fold of its own.
        supports: each patient's case names the next patient's as its reference, the last one's the first.

    Returns:
        The data list, ``folder/phantoms.json``, with paths relative to the folder. Written last.
    """
    cases: list[dict[str, Any]] = []
    for seed in range(count):
        name, visit = f"phantom{seed}", phantom_patient(seed)[0]
        image, label = f"{name}_image.nii.gz", f"{name}_label.nii.gz"
        _write_nifti(Path(folder) / image, np.rint(visit.image).astype(np.int16), visit.affine)
        _write_nifti(Path(folder) / label, visit.label, visit.affine)
        cases.append({"case": name, "patient": name, "fold": seed, "image": image, "label": label})
    if supports:
        for case, support in zip(cases, [*cases[1:], cases[0]], strict=True):
            case |= {"reference_image": support["image"], "reference_label": support["label"]}
    return _write_list(Path(folder) / "phantoms.json", "phantoms", "MR", PATIENT_LABELS, cases)


def write_visits(
    folder: Path, name: str, modality: str, labels: dict[str, int], visits: Sequence[PhantomVisit]
) -> Path:
    """Write the visits of one patient as NIfTI and return their data list, ``folder/<name>.json``."""
    cases: list[dict[str, Any]] = []
    for number, visit in enumerate(visits):
        image, label = f"visit{number}_image.nii.gz", f"visit{number}_label.nii.gz"
        _write_nifti(folder / image, np.rint(visit.image).astype(np.int16), visit.affine)
        _write_nifti(folder / label, visit.label, visit.affine)
        case = {"case": f"{name}_visit{number}", "patient": name, "visit": number}
        cases.append({**case, "image": image, "label": label})
    return _write_list(folder / f"{name}.json", name, modality, labels, cases)


def write_phantom_cells(folder: str | os.PathLike[str], seed: int = 0, n: int = 6) -> Path:
    """Write :func:`phantom_cells` as PNG pictures of 256 x 224 pixels and a data list, visits 1 to ``n``.

    Args:
        folder: where to; made where it is missing, files of an earlier call are replaced.
        seed: the scene; the same seed gives the same pixels.
        n: number of frames, at least 1.

    Returns:
        The data list, ``folder/phantom_cells.json``, with paths relative to the folder. Written last.
    """
    frames = phantom_cells(seed, n)
    return write_video(Path(folder), "phantom_cells", "phantom_dish", "microscopy", CELL_LABELS, frames)


def write_video(
    folder: Path,
    name: str,
    patient: str,
    modality: str,
    labels: dict[str, int],
    frames: Sequence[tuple[NDArray[Any], NDArray[Any]]],
) -> Path:
    """Write pictures and their labels as PNG and return their data list, ``folder/<name>.json``."""
    cases: list[dict[str, Any]] = []
    for number, (picture, mask) in enumerate(frames, start=1):
        image, label = f"frame{number:03d}_image.png", f"frame{number:03d}_label.png"
        _write_picture(folder / image, picture)
        _write_picture(folder / label, mask)
        case = {"case": f"{name.removesuffix('s')}{number:03d}", "patient": patient, "visit": number}
        cases.append({**case, "image": image, "label": label})
    return _write_list(folder / f"{name}.json", name, modality, labels, cases)


def write_phantom_stream(folder: str | os.PathLike[str], seed: int = 0, n: int = 16) -> Path:
    """Write :func:`phantom_stream` as PNG pictures and a data list: one patient a picture, a box round each lesion.

    Args:
        folder: where to; made where it is missing, files of an earlier call are replaced.
        seed: the pictures; the same seed gives the same bytes.
        n: number of pictures, at least 1.

    Returns:
        The data list, ``folder/phantom_stream.json``, with paths relative to the folder. Written last.
    """
    cases: list[dict[str, Any]] = []
    for number, (picture, mask) in enumerate(phantom_stream(seed, n), start=1):
        image, label = f"{number:04d}_image.png", f"{number:04d}_label.png"
        _write_picture(Path(folder) / image, picture)
        _write_picture(Path(folder) / label, mask)
        rows, columns = np.nonzero(mask)
        box = [int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())]
        case = {"case": f"phantom{number:04d}", "patient": f"phantom{number:04d}", "box": box}
        cases.append({**case, "image": image, "label": label})
    return _write_list(Path(folder) / "phantom_stream.json", "phantom_stream", "MR", STREAM_LABELS, cases)


def write_phantom_cohort(
    folder: str | os.PathLike[str],
    seeds: Iterable[int],
    write: Callable[[Path, int], Path] = write_phantom_patient,
) -> Path:
    """Write several phantoms, one a seed, and one data list of all.

    Args:
        folder: where to; each phantom into ``folder/seed<seed>``.
        seeds: at least one.
        write: writes one phantom: :func:`write_phantom_patient`, :func:`write_phantom_cells`, ...

    Returns:
        The data list, named as those of the phantoms, with cases ``seed0_...`` and patients ``seed0``. Written last.

    Raises:
        ValueError: there are no seeds.
    """
    folder = Path(folder)
    cases: list[dict[str, Any]] = []
    for seed in seeds:
        name = f"seed{seed}"
        path = write(folder / name, seed)
        own = read_json(path)
        for case in own["cases"]:
            files = {key: f"{name}/{case[key]}" for key in ("image", "label")}
            cases.append({**case, **files, "case": f"{name}_{case['case']}", "patient": name})
    if not cases:
        raise ValueError("a cohort needs at least one seed")
    return _write_list(folder / path.name, own["dataset"], own["modality"], own["labels"], cases)
