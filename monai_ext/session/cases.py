"""Which data list, structures and folder a run has."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from monai.utils import ensure_tuple

from monai_ext import processes
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.phantoms import PATIENT_LABELS, write_phantom_patient, write_phantom_stream
from monai_ext.data.phantoms.writing import write_phantom_patients
from monai_ext.data.shards import parse_shard
from monai_ext.data.studies import DATALIST, served_folder
from monai_ext.errors import UserError
from monai_ext.made import making

NO_LABELS = "--labels is empty: name the structures to segment, or leave it out for all."

PHANTOM_PATIENTS = 4

PHANTOMS: dict[str, Callable[[Path], Path]] = {
    "patient": write_phantom_patient,
    "patients": partial(write_phantom_patients, count=PHANTOM_PATIENTS, supports=True),
    "stream": write_phantom_stream,
}
"""Phantoms in place of a data list: one patient's visits, several patients who serve each other, or a stream."""


def find_datalist(datalist: str | os.PathLike | None, output_dir: str | os.PathLike, phantom: str = "patient") -> Path:
    """Return the data list, or write a phantom into ``output_dir/phantom`` where none is given.

    In a MONAI Label server: the data list beside its studies.

    Args:
        datalist: as the user gave it.
        output_dir: of the run.
        phantom: one of :data:`PHANTOMS`.

    Raises:
        UserError: it is no path, or the phantom cannot be written.
    """
    if datalist is not None:
        if not isinstance(datalist, (str, os.PathLike)):
            raise UserError(f"--datalist is {datalist}: give the path of one JSON file.")
        return Path(datalist)
    studies = served_folder()
    if studies is not None:
        beside = studies / DATALIST
        return beside if beside.is_file() else write_phantom_patient(tempfile.mkdtemp())  # requests name their labels
    folder = Path(output_dir).expanduser().absolute() / "phantom"

    def write() -> str:
        with making(folder):
            return str(PHANTOMS[phantom](folder))

    return Path(processes.from_first(write))


def bundle_beside(bundle_root: str | os.PathLike, name: str) -> Path:
    """Return the folder of another bundle, which lies beside that of this one and whose weights serve both.

    A bundle that MONAI Label serves is a copy, whose ``models`` is a link to those of the bundle itself.
    """
    return (Path(bundle_root).expanduser().absolute() / "models").resolve().parent.parent / name


def run_folder(output_dir: str | os.PathLike, shard: str | None = None) -> Path:
    """Return the folder of this run's outputs: ``output_dir``, or ``output_dir/shard-0-of-4`` for shard 0/4.

    Raises:
        UserError: for an impossible shard.
    """
    part = parse_shard(shard)
    return Path(output_dir) if part is None else Path(output_dir) / part.folder


def select_labels(
    datalist: DataList, names: Sequence[str] | str | None, default: Sequence[str] | str | None = None
) -> dict[str, int]:
    """Return name -> value of the structures asked for.

    Args:
        datalist: has the values.
        names: of the structures; None: ``default``.
        default: None: all of the data list.

    Raises:
        UserError: for a name that the data list does not have.

    Example:
        >>> select_labels(datalist, ["LV"])
        {'LV': 3}
    """
    names = default if names is None else names
    if names is None:
        return dict(datalist.labels)
    chosen = [names] if isinstance(names, str) or not isinstance(names, Sequence) else list(names)
    for name in chosen:
        if not isinstance(name, str) or name not in datalist.labels:
            raise UserError(
                f"label {name!r} is not in the data list: it has {', '.join(datalist.labels)}; name the structures "
                "there as the weights or --labels do."
            )
    if not chosen:
        raise UserError(NO_LABELS)
    return {name: datalist.labels[name] for name in chosen}


def refuse_phantom(datalist: str | os.PathLike | None, labels: Sequence[str] | str | None) -> None:
    """Refuse to segment the phantom patient with weights that know other structures.

    Args:
        datalist: as the user gave it.
        labels: what the weights segment, None where that is not known.

    Raises:
        UserError: where no list is given and the phantom, which is taken then, lacks one of the labels.
    """
    names = [] if labels is None else ensure_tuple(labels)
    if datalist is None and served_folder() is None and set(names) - set(PATIENT_LABELS):
        raise UserError(
            f"these weights segment {', '.join(names)}, which the phantom patient, taken where no data list is given, "
            "does not have: give --datalist with your images."
        )


def count_classes(
    labels: Sequence[str] | str | None,
    datalist: str | os.PathLike | None,
    data_root: str | os.PathLike | None,
    output_dir: str | os.PathLike,
) -> int:
    """Return the number of classes of a segmentor, background included.

    Args:
        labels: what it segments, None where that is not known: then all structures of the data list.
        datalist: see :func:`find_datalist`, as the others.
        data_root: folder that relative paths refer to.
        output_dir: where the phantom is written to.

    Raises:
        UserError: where ``labels`` is empty.
    """
    if labels is None:
        labels = list(load_datalist(find_datalist(datalist, output_dir), data_root).labels)
    names = ensure_tuple(labels)
    if not names:
        raise UserError(NO_LABELS)
    return len(names) + 1
