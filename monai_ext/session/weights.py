"""Which weights a run has, and whether they saw its patients."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_ext import processes
from monai_ext.data.manifest import DataList
from monai_ext.data.provenance import as_trained, check_overlap, read_record, refuse_dense_labels, verify_sha256
from monai_ext.data.studies import served_folder
from monai_ext.errors import UserError, answer_user_errors
from monai_ext.networks.sam import CHECKPOINTS, VARIANTS, fetch_checkpoint
from monai_ext.session.default_weights import choose_weights


def find_checkpoint(
    checkpoint: str | None,
    variant: str | None,
    bundle_root: str | os.PathLike,
    cases: DataList | None = None,
) -> Path:
    """Return the weights' file: a path, the name of shipped weights, or for None those that serve the data list.

    Args:
        checkpoint: a path, or the name of a file in the bundle's ``models`` ("compact_chaos"), or None: SAM's official
            checkpoint, fetched once, for SAM's variants; in a MONAI Label server the bundle's ``model.pt``, which the
            server reads; else see :func:`choose_weights`.
        variant: of the network; None: that of the weights.
        bundle_root: the bundle's folder.
        cases: of the run; needed where ``checkpoint`` is None.

    Raises:
        UserError: for a missing file, one whose sha256 is not that of its record, or no weights that serve the cases.
    """

    answer_user_errors()  # the first of this package that runs in a MONAI Label server and in ckpt_export

    def find() -> Path:
        return _find_checkpoint(checkpoint, variant, Path(bundle_root) / "models", cases)

    if processes.count() > 1:
        processes.from_first(lambda: str(find()))  # so that it is fetched once
    return find()


def check_checkpoint(checkpoint: str | None, variant: str | None, bundle_root: str | os.PathLike) -> None:
    """Refuse weights that are not there, before anything is fetched or read; see :func:`find_checkpoint`."""
    models = Path(bundle_root) / "models"
    if _locate(checkpoint, variant, models) is None and variant not in CHECKPOINTS and not any(models.glob("*.pt")):
        raise UserError(f"there are no weights in {models}: is --bundle_root right?")


def _find_checkpoint(checkpoint: str | None, variant: str | None, models: Path, cases: DataList | None) -> Path:
    path = _locate(checkpoint, variant, models)
    if path is None and variant in CHECKPOINTS:
        return fetch_checkpoint(variant)
    if path is None:
        if cases is None:
            raise UserError("no weights are named: give a path or a name with --checkpoint.")
        path = choose_weights(models, cases, variant)
    record = read_record(path)
    if record is not None and record.sha256:
        verify_sha256(path, record.sha256)
    return path


def _locate(checkpoint: str | None, variant: str | None, models: Path) -> Path | None:
    """Return where the weights are; None where they are SAM's own, or the data list decides."""
    if variant is not None and variant not in VARIANTS:
        raise UserError(f"sam_variant {variant!r} is unknown: choose one of {', '.join(VARIANTS)}.")
    if checkpoint is not None:
        path = Path(str(checkpoint))
        if not path.is_file() and (models / f"{checkpoint}.pt").is_file():
            path = models / f"{checkpoint}.pt"
    elif variant not in CHECKPOINTS and served_folder() is not None:
        path = (models / "model.pt").resolve()
    else:
        return None
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in models.glob("*.pt"))) or "none"
        raise UserError(
            f"checkpoint {checkpoint or path} does not exist: give a path, or one of the weights in {models} "
            f"({there}); is --bundle_root right?"
        )
    return path


def find_variant(weights: str | os.PathLike, variant: str | None) -> str:
    """Return the network's variant: the one given, or that of the weights' record, ``compact`` where there is none."""
    return str(as_trained(weights, "architecture", variant, "compact"))


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

    A case without a patient is a patient of its own, as it is in a training.

    Raises:
        UserError: names patients that are in both.
    """
    record = read_record(checkpoint)
    if record is not None:
        patients = sorted({str(p.get("patient") or p["case"]) for p in pairs})
        check_overlap(record, dataset, patients, allow_overlap=allow)


def refuse_dense(checkpoint: str | os.PathLike, dataset: str, allow: bool = False) -> None:
    """Refuse to let something learn online beside weights that saw dense labels of the same data set.

    Raises:
        UserError: they did, and ``allow`` does not say so.
    """
    refuse_dense_labels(read_record(checkpoint), dataset, allow)
