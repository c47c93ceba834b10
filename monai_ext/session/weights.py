"""Which weights a run has, and whether they saw its patients."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from monai_ext import processes
from monai_ext.data.manifest import DataList
from monai_ext.data.provenance import as_trained, check_overlap, read_record, refuse_dense_labels, verify_weights
from monai_ext.data.studies import served_folder
from monai_ext.errors import UserError, answer_user_errors
from monai_ext.networks.sam import CHECKPOINTS, VARIANTS, fetch_checkpoint
from monai_ext.session.default_weights import SUFFIXES, choose_weights, weight_files


def find_weights(
    checkpoint: str | None,
    bundle_root: str | os.PathLike,
    variant: str | None = None,
    cases: DataList | None = None,
    default: str | None = None,
    needed: bool = True,
) -> Path | None:
    """Return the file of a run's weights; its bytes are those that the record beside it tells.

    Args:
        checkpoint: a path, or the name of a file in the bundle's ``models`` ("compact_chaos"). None: ``default``; where
            there is no default, SAM's official file for SAM's own variants, fetched once; in a MONAI Label server the
            bundle's ``model.pt``, which the server reads; else the weights whose record says that they serve the
            cases (:func:`choose_weights`).
        bundle_root: the bundle's folder.
        variant: of SAM; None: that of the weights.
        cases: of the run; needed where their records decide.
        default: name of a file in ``models``.
        needed: False: the run has no use for any; return None.

    Raises:
        UserError: for a missing file, one whose sha256 is not that of its record, or no weights that serve the cases.

    Example:
        >>> find_weights("compact_chaos", "bundles/p2sam").name
        'compact_chaos.pt'
    """
    answer_user_errors()  # the first of this package that runs in a MONAI Label server and in ckpt_export
    if not needed:
        return None

    def find() -> Path:
        path = _locate(checkpoint or default, variant, Path(bundle_root))
        if path is None and variant in CHECKPOINTS:
            return fetch_checkpoint(variant)
        if path is None:
            if cases is None:
                _refuse_unnamed(bundle_root)
            path = choose_weights(Path(bundle_root) / "models", cases, variant)
        record = read_record(path)
        if record is not None and record.sha256:
            verify_weights(path, record)
        return path

    if processes.count() > 1:
        processes.from_first(lambda: str(find()))  # so that it is fetched once
    return find()


def find_initial_weights(checkpoint: str | None, bundle_root: str | os.PathLike, variant: str) -> Path | None:
    """Return the weights that a training of SAM starts from; None for a compact model with random ones.

    Args:
        checkpoint: see :func:`find_weights`; None: SAM's official file for SAM's own variants, else None.
        bundle_root: see :func:`find_weights`.
        variant: of SAM.

    Raises:
        UserError: see :func:`find_weights`.
    """
    if checkpoint is None and variant not in CHECKPOINTS:
        return None
    return find_weights(checkpoint, bundle_root, variant)


def check_weights(
    checkpoint: str | None,
    bundle_root: str | os.PathLike,
    variant: str | None = None,
    needed: bool = True,
    by_cases: bool = False,
) -> None:
    """Refuse weights that are not there, before anything is fetched or read; see :func:`find_weights`.

    Args:
        checkpoint: see :func:`find_weights`, as the next three.
        bundle_root: likewise.
        variant: likewise.
        needed: likewise.
        by_cases: where no weights are named, the cases decide.

    Raises:
        UserError: there are none, or none are named.
    """
    if not needed or _locate(checkpoint, variant, Path(bundle_root)) is not None or variant in CHECKPOINTS:
        return
    _refuse_none(bundle_root)
    if not by_cases:
        _refuse_unnamed(bundle_root)


def locate_weights(name: str, bundle_root: str | os.PathLike, option: str = "checkpoint") -> Path:
    """Return the file of weights that are named by its path or, without suffix, by its name in ``models``.

    Args:
        name: of the weights.
        bundle_root: the bundle's folder.
        option: that the user gave, for the sentence of an error.

    Raises:
        UserError: there is no such file.
    """
    models = Path(bundle_root) / "models"
    named = (Path(name), *(models / f"{name}{suffix}" for suffix in SUFFIXES))
    found = [path for path in named if path.is_file()]
    if not found:
        _refuse_none(bundle_root)
        raise UserError(
            f"{option} {name} does not exist: give a path, or one of the weights in {models} ({_there(bundle_root)}); "
            "is --bundle_root right?"
        )
    return found[0]


def _locate(checkpoint: str | None, variant: str | None, bundle_root: Path) -> Path | None:
    """Return where the weights are; None where they are SAM's own, or the data list decides."""
    if variant is not None and variant not in VARIANTS:
        raise UserError(f"sam_variant {variant!r} is unknown: choose one of {', '.join(VARIANTS)}.")
    if checkpoint is not None:
        return locate_weights(str(checkpoint), bundle_root)
    if variant not in CHECKPOINTS and served_folder() is not None:
        return locate_weights("model", bundle_root).resolve()
    return None


def _there(bundle_root: str | os.PathLike) -> str:
    files = weight_files(Path(bundle_root) / "models")
    return ", ".join(path.stem for path in files if not path.is_symlink()) or "none"


def _refuse_unnamed(bundle_root: str | os.PathLike) -> NoReturn:
    models = Path(bundle_root) / "models"
    raise UserError(
        f"no weights are named: give --checkpoint, a path or one of the weights in {models} ({_there(bundle_root)})."
    )


def _refuse_none(bundle_root: str | os.PathLike) -> None:
    models = Path(bundle_root) / "models"
    if not weight_files(models):
        raise UserError(
            f"there are no weights in {models}: is --bundle_root right? If so, train some with configs/train.yaml and "
            "give them with --checkpoint."
        )


def find_variant(weights: str | os.PathLike, variant: str | None) -> str:
    """Return the network's variant: the one given, or that of the weights' record, ``compact`` where there is none."""
    return str(variant or as_trained(weights, "architecture", "compact"))


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
