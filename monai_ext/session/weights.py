"""Which weights a run has, and whether they saw its patients."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_ext import processes
from monai_ext.data.provenance import check_overlap, read_record, verify_sha256
from monai_ext.errors import UserError, answer_user_errors
from monai_ext.networks.sam import CHECKPOINTS, VARIANTS, fetch_checkpoint


def find_checkpoint(
    checkpoint: str | None,
    variant: str,
    bundle_root: str | os.PathLike,
    datalist: str | os.PathLike | None = "given",
) -> Path:
    """Return the weights' file: a path, the name of shipped weights, or the variant's own for None.

    Args:
        checkpoint: a path, or the name of a file in the bundle's ``models`` ("compact_chaos"), or None: the bundle's
            ``compact_acdc`` for the compact variant and SAM's official checkpoint, fetched once, for the others.
        variant: of the network.
        bundle_root: the bundle's folder.
        datalist: of the run; None, the phantom patient, is served by ``compact_chaos``, which has learned from other
            phantom patients.

    Raises:
        UserError: for a missing file, or one whose sha256 is not that of its record.
    """

    answer_user_errors()  # the first of this package that runs in a MONAI Label server and in ckpt_export

    def find() -> Path:
        return _find_checkpoint(checkpoint, variant, Path(bundle_root), datalist)

    if processes.count() > 1:
        processes.from_first(lambda: str(find()))  # so that it is fetched once
    return find()


def check_checkpoint(checkpoint: str | None, variant: str, bundle_root: str | os.PathLike) -> None:
    """Refuse weights that are not there, before anything is fetched or read; see :func:`find_checkpoint`."""
    _locate(checkpoint, variant, Path(bundle_root))


def _find_checkpoint(
    checkpoint: str | None, variant: str, bundle_root: Path, datalist: str | os.PathLike | None
) -> Path:
    path = _locate(checkpoint, variant, bundle_root, datalist)
    if path is None:
        return fetch_checkpoint(variant)
    record = read_record(path)
    if record is not None and record.sha256:
        verify_sha256(path, record.sha256)
    return path


def _locate(
    checkpoint: str | None, variant: str, bundle_root: Path, datalist: str | os.PathLike | None = "given"
) -> Path | None:
    """Return where the weights are; None where they are SAM's own."""
    models = bundle_root / "models"
    if variant not in VARIANTS:
        raise UserError(f"sam_variant {variant!r} is unknown: choose one of {', '.join(VARIANTS)}.")
    if checkpoint is None and variant in CHECKPOINTS:
        return None
    name = str(checkpoint or ("compact_chaos" if datalist is None else "compact_acdc"))
    path = Path(name)
    if not path.is_file() and (models / f"{name}.pt").is_file():
        path = models / f"{name}.pt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in models.glob("*.pt"))) or "none"
        raise UserError(
            f"checkpoint {name} does not exist: give a path, or one of the weights in {models} ({there}); is "
            "--bundle_root right?"
        )
    return path


def find_segmentor(checkpoint: str | None, bundle_root: str | os.PathLike, train: str) -> Path:
    """Return the file of a segmentor's weights.

    Args:
        checkpoint: a path, or the name of a file in the bundle's ``models``; None: ``models/model.pt``.
        bundle_root: the bundle's folder.
        train: command that makes weights, for the sentence of an error.

    Raises:
        UserError: for a missing file, or one whose sha256 is not that of its record.
    """
    answer_user_errors()  # the first of this package that runs in a MONAI Label server and in ckpt_export
    models = Path(bundle_root) / "models"
    path = Path(str(checkpoint or "model"))
    if not path.is_file():
        path = models / f"{path}.pt"
    if not path.is_file() and checkpoint is None:
        raise UserError(
            f"there are no weights in {models}: train a segmentor ({train}) and give its weights, --checkpoint "
            "OUT/model.pt; is --bundle_root right?"
        )
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in models.glob("*.pt"))) or "none"
        raise UserError(
            f"checkpoint {checkpoint} does not exist: give a path, or the name of weights in {models} ({there})."
        )
    record = read_record(path)
    if record is not None and record.sha256:
        verify_sha256(path, record.sha256)
    return path


def refuse_overlap(
    checkpoint: str | os.PathLike, dataset: str, pairs: Sequence[Mapping[str, Any]], allow: bool = False
) -> None:
    """Refuse to evaluate weights on patients they were trained on, unless ``allow`` says so.

    Raises:
        UserError: names patients that are in both.
    """
    record = read_record(checkpoint)
    if record is not None:
        patients = sorted({str(p["patient"]) for p in pairs})
        check_overlap(record, dataset, patients, allow_overlap=allow)
