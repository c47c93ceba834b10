"""What SAM-SP's training config calls: the promptable model it needs, and what is said of the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_ext.data.manifest import DataList
from monai_ext.data.provenance import TrainingData, WeightRecord, read_record, refuse_dense_labels
from monai_ext.data.scribble_slices import store_scribbles
from monai_ext.data.slice_store import StoredCase, Transform
from monai_ext.engines.training import run_command
from monai_ext.errors import UserError
from monai_ext.networks.sam import PromptableSam, build_sam


def unlabelled_value(datalist: DataList, simulated: bool) -> int:
    """Return the value of pixels without a scribble: the data list's, or one above all labels for simulated ones."""
    if not simulated and datalist.ignore is not None:
        return datalist.ignore
    return max(datalist.labels.values()) + 1


def drawn_unlabelled(unlabelled: int, simulated: bool) -> int | None:
    """Return the value of unlabelled pixels of scribbles that are read from files; None where none are."""
    return None if simulated else unlabelled


def hold_out(
    cases: Sequence[StoredCase] | Sequence[Mapping[str, Any]], patients: Sequence[str] | str | int = ()
) -> dict[str, list[Any]]:
    """Divide cases, stored or not, into ``train`` and ``validation`` by patient.

    Args:
        cases: with scribbles.
        patients: these validate: their scribbles choose the iteration that is kept and are not trained on.

    Raises:
        UserError: for a patient without scribbles, or nothing left to train on.
    """
    held = {str(p) for p in ([patients] if isinstance(patients, str | int) else patients)}
    groups: dict[str, list[Any]] = {"train": [], "validation": []}
    for case in cases:
        groups["validation" if _patient(case) in held else "train"].append(case)
    unknown = held - {_patient(case) for case in groups["validation"]}
    if unknown:
        raise UserError(f"--validation_patients: {sorted(unknown)[0]!r} has no scribbles among the cases to train on.")
    if not groups["train"]:
        raise UserError("no case is left to train on: check --validation_patients.")
    return groups


def _patient(case: StoredCase | Mapping[str, Any]) -> str:
    return str(case.patient if isinstance(case, StoredCase) else case["patient"])


def store_cases(
    cases: Sequence[Mapping[str, Any]],
    transform: Transform,
    label_transform: Transform,
    datalist: DataList,
    labels: Mapping[str, int],
    unlabelled: int,
    output_dir: str | os.PathLike,
    settings: str,
) -> list[StoredCase]:
    """Store the cases of a data list in ``output_dir/slices``; see :func:`store_scribbles`.

    Args:
        cases: of :func:`monai_ext.data.scribble_slices.scribbled_cases`.
        transform: of images and scribbles.
        label_transform: of dense labels.
        datalist: the scribbles of its other labels are background.
        labels: name -> value of the structures, in the order of the classes.
        unlabelled: value of what is not scribbled on.
        output_dir: of the training.
        settings: text that stands for those of the transforms.
    """
    return store_scribbles(
        cases,
        transform,
        Path(output_dir) / "slices",
        labels,
        unlabelled,
        list(datalist.labels.values()),
        settings,
        label_transform,
        datalist.dataset,
    )


def needs_sam(variant: str) -> bool:
    """Whether a variant of the training begins with pseudo-labels of a promptable model."""
    return variant == "sam_sp"


def promptable_network(
    variant: str, sam_variant: str, weights: str | os.PathLike | None, device: Any, **compact: Any
) -> PromptableSam | None:
    """Build the promptable model; None where the variant of the training needs no pseudo-labels of it."""
    if not needs_sam(variant):
        return None
    return build_sam(sam_variant, weights, **compact).to(device)


def check_provenance(
    variant: str,
    weights: str | os.PathLike | None,
    dataset: str,
    allow_dense: bool = False,
    tuned_elsewhere: bool = False,
) -> None:
    """Refuse a promptable model that has seen dense labels of the data set whose scribbles are learned from.

    Args:
        variant: of the training.
        weights: of the promptable model.
        dataset: whose scribbles are learned from.
        allow_dense: let weights pass that saw dense labels of it.
        tuned_elsewhere: SAM-SP*: the model must have been tuned on scribbles of another data set, and not on this one.

    Raises:
        UserError: it saw dense labels of the data set, or is not what SAM-SP* asks for.
    """
    if not needs_sam(variant) or weights is None:
        return
    record = read_record(weights)
    refuse_dense_labels(record, dataset, allow_dense)
    if tuned_elsewhere:
        names = {data.dataset.casefold() for data in record.datasets if data.labels == "scribble"} if record else set()
        if not names or dataset.casefold() in names:
            said = f"on scribbles of {dataset} itself" if names else "on no scribbles that a record beside them names"
            raise UserError(
                f"SAM-SP* takes a SAM tuned on another data set, but {weights} were tuned {said}: give --checkpoint "
                "round_1/sam.pt of a training on another one."
            )


def segmentor_record(
    name: str,
    architecture: str,
    variant: str,
    datalist: DataList,
    cases: Sequence[StoredCase] | Sequence[Mapping[str, Any]],
    licence: str,
    weights: str | os.PathLike | None = None,
    simulated: bool = False,
    trained_as: Mapping[str, Any] | None = None,
    validation: Sequence[StoredCase] = (),
) -> WeightRecord:
    """Say what weights will have seen: the cases of this training and, through pseudo-labels, all that SAM has seen.

    Args:
        name: of the weights.
        architecture: which they fit.
        variant: of the training; only ``sam_sp`` learns from the promptable model.
        datalist: of the training.
        cases: trained on, or whose scribbles chose the iteration.
        licence: of the data.
        weights: of the promptable model.
        simulated: the scribbles were drawn by a program.
        trained_as: options that inference has to repeat; see :class:`WeightRecord`.
        validation: those of ``cases`` whose scribbles chose the iteration.
    """
    patients = sorted({_patient(case) for case in cases})
    own = TrainingData(
        dataset=datalist.dataset,
        patients=patients,
        labels="dense" if variant == "full" else "scribble",
        licence=licence,
    )
    through = read_record(weights) if variant == "sam_sp" and weights is not None else None
    notes = [f"variant {variant}"]
    if through:
        notes.append(f"pseudo-labels began with {through.name}")
    elif variant == "sam_sp" and weights is not None:
        notes.append(f"pseudo-labels began with {Path(weights).name}, which has no record")
    if simulated:
        notes.append("scribbles were simulated from dense labels")
    if validation:
        chosen_by = ", ".join(sorted({case.patient for case in validation}))
        notes.append(f"scribbles of {chosen_by} were not trained on and chose the iteration")
    return WeightRecord(
        name=name,
        variant=architecture,
        datasets=[own, *(through.datasets if through else [])],
        command=run_command(),
        licence=licence,
        sha256="",
        notes="; ".join(notes),
        trained_as=dict(trained_as or {}),
    )
