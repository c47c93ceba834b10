"""What the training configs call: which cases train, where their slices lie, what is said of the weights."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from monai_ext import processes
from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.phantoms import random_slice, write_phantom_patient
from monai_ext.data.provenance import Serves, TrainingData, WeightRecord
from monai_ext.data.regions import draw_regions
from monai_ext.data.slice_store import StoredCase, Transform, store_drawn, store_regions, store_slices
from monai_ext.data.slices import MixedSampler, SliceDataset
from monai_ext.errors import UserError
from monai_ext.losses.correspondence import CorrespondenceLoss
from monai_ext.losses.promptable import DenseClassLoss
from monai_ext.networks.sam import PromptableSam

FIRST_PHANTOM_PATIENT = 1000
"""Seed of the first phantom patient that is trained on."""

SOURCES = ("data", "phantoms", "regions")
"""Sources of training slices in the order of their numbers: labelled cases, drawn ones, regions of the same images."""

Groups = Mapping[str, Sequence[Mapping[str, Any]]]


def load_cases(
    datalist: str | os.PathLike,
    data_root: str | os.PathLike | None = None,
    split: str | None = None,
    validation_split: str | None = None,
    fold: int | None = None,
) -> DataList:
    """Read the cases to train on and those of ``validation_split``, if one is named; see :func:`load_datalist`."""
    cases = load_datalist(datalist, data_root, split=split, fold=fold)
    if split is not None and validation_split is not None and validation_split != split:
        cases.cases += load_datalist(datalist, data_root, split=validation_split, fold=fold).cases
    return cases


def split_training(
    cases: DataList, validation_patients: Sequence[str] | str | int = (), validation_split: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Divide the labelled cases into ``train`` and ``validation`` by patient; a case without one is its own.

    Args:
        cases: of :func:`load_cases`.
        validation_patients: these validate,
        validation_split: and so do the cases of this split.

    Raises:
        UserError: for a validation patient or split that the list does not have, or nothing left to train on.
    """
    given = [validation_patients] if isinstance(validation_patients, str | int) else validation_patients
    held = {str(p) for p in given}
    labelled = [c for c in cases.cases if c.label is not None]
    unknown = held - {str(c.patient or c.case) for c in labelled}
    if unknown:
        raise UserError(f"validation patient {sorted(unknown)[0]!r} has no labelled case in {cases.dataset}.")
    if validation_split is not None and validation_split not in {c.split for c in labelled}:
        raise UserError(
            f"{cases.dataset} has no labelled case in split {validation_split!r}: check --validation_split."
        )
    groups: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for case in labelled:
        item = {
            "case": case.case,
            "patient": str(case.patient or case.case),
            "image": case.image,
            "label": case.label,
            "modality": case.modality or cases.modality,
        }
        validates = item["patient"] in held or (validation_split is not None and case.split == validation_split)
        groups["validation" if validates else "train"].append(item)
    if not groups["train"]:
        raise UserError(
            f"{cases.dataset} has no labelled case to train on: check --split, --validation_patients and "
            "--validation_split."
        )
    return groups


def dense_loss(network: PromptableSam, labels: Mapping[str, int], weight: float) -> DenseClassLoss | None:
    """Build the auxiliary loss for the structures of ``labels``, or None for weight 0."""
    if not weight:
        return None
    channels = network.mask_decoder.transformer_dim
    return DenseClassLoss(channels, len(labels))


def correspondence_loss(weight: float, views: int) -> CorrespondenceLoss | None:
    """Build the loss that compares two views of a slice, or None for weight 0.

    Raises:
        UserError: there is one view.
    """
    if weight and views != 2:
        raise UserError("--correspondence compares two views of a slice: set --views 2.")
    return CorrespondenceLoss() if weight else None


def on_device(module: nn.Module | None, device: Any) -> nn.Module | None:
    """Move a module that may be None."""
    return None if module is None else module.to(device)


def training_sources(
    cases: Sequence[Mapping[str, Any]],
    transform: Transform,
    output_dir: str | os.PathLike,
    labels: Mapping[str, int],
    settings: str,
    size: int,
    phantoms: int,
    seed: int,
    phantom_patients: int = 0,
    regions: int = 0,
    phantom_kinds: Sequence[str] = ("mr", "rgb"),
    phantom_regions: int = 0,
    ignore: int | None = None,
) -> dict[str, list[StoredCase]]:
    """Store the training slices, draw phantoms and regions; return source -> cases, the keys being :data:`SOURCES`.

    Of several processes, the first one does so for all.

    Args:
        cases: of :func:`split_training`.
        transform: loads and maps a case to the input frame.
        output_dir: the slices go to its folder ``slices``.
        labels: name -> value of the structures.
        settings: text that stands for the transform's settings.
        size: side of drawn slices in pixels.
        phantoms: drawn slices of each kind.
        seed: of the drawn slices.
        phantom_patients: phantom patients of three visits; their seeds begin at :data:`FIRST_PHANTOM_PATIENT`, far from
            that of the demo.
        regions: sets of regions cut from each slice's image; see :mod:`monai_ext.data.regions`.
        phantom_kinds: of :func:`monai_ext.data.phantoms.random_slice`.
        phantom_regions: sets of regions cut from each drawn slice.
        ignore: value of the labels where the class is not known: no loss counts these pixels.
    """
    folder = Path(output_dir) / "slices"

    def make() -> list[list[StoredCase]]:
        data = store_slices(cases, transform, folder, labels, ignore=ignore, settings=settings)
        drawn = store_drawn(random_slice, folder, size, phantoms, phantom_kinds, seed) if phantoms else []
        cut = store_regions(data, draw_regions, folder, regions, seed) if regions else []
        cut += store_regions(drawn, draw_regions, folder, phantom_regions, seed) if phantom_regions else []
        return [data, drawn + _cut_patients(phantom_patients, transform, folder, settings), cut]

    return dict(zip(SOURCES, _from_first(make), strict=True))


def _cut_patients(count: int, transform: Transform, folder: Path, settings: str) -> list[StoredCase]:
    """Write phantom patients and store their slices."""
    stored = []
    for number in range(FIRST_PHANTOM_PATIENT, FIRST_PHANTOM_PATIENT + count):
        patient = load_datalist(write_phantom_patient(folder / f"phantom_patient{number}", number))
        visits = [{"case": c.case, "image": c.image, "label": c.label, "modality": "MR"} for c in patient.cases]
        stored += store_slices(visits, transform, folder, patient.labels, settings=settings)
    return stored


def _from_first(make: Callable[[], Sequence[Sequence[StoredCase]]]) -> list[list[StoredCase]]:
    """Let the first process store cases; return them in all."""
    told = processes.from_first(lambda: [[case.to_json() for case in cases] for cases in make()])
    return [[StoredCase.from_json(case) for case in cases] for cases in told]


def validation_sources(
    groups: Groups,
    transform: Transform,
    output_dir: str | os.PathLike,
    labels: Mapping[str, int],
    settings: str,
    ignore: int | None = None,
) -> dict[str, list[StoredCase]]:
    """Store the validation patients' slices; without such patients, the first training case stands in."""
    cases, folder = groups["validation"] or groups["train"][:1], Path(output_dir) / "slices"
    (data,) = _from_first(lambda: [store_slices(cases, transform, folder, labels, ignore=ignore, settings=settings)])
    return {"data": data}


def training_sampler(
    dataset: SliceDataset,
    phantom_share: float,
    region_share: float,
    batch_size: int,
    epoch_length: int | None,
    seed: int,
    views: int = 1,
    reach: int = 0,
) -> MixedSampler:
    """Draw an epoch's slices: ``epoch_length`` batches, or as many as there are slices.

    The shares of phantoms and regions count where there are any; the rest are slices of the labelled cases. With two
    views the draws are pairs, see :class:`MixedSampler`.
    """
    if views not in (1, 2):
        raise UserError(f"--views {views} is not possible: choose 1 or 2.")
    present = set(dataset.source)
    shares = [0.0 if number not in present else share for number, share in ((1, phantom_share), (2, region_share))]
    check_shares(*shares)
    shares = [1 - sum(shares), *shares]
    batches = epoch_length or math.ceil(len(dataset) / batch_size)
    return MixedSampler(dataset, shares, batches * batch_size, seed, reach if views == 2 else None)


def check_shares(*shares: float) -> None:
    """Refuse shares of phantoms and regions that leave nothing for the labelled cases.

    Raises:
        UserError: they do, or one is negative.
    """
    if sum(shares) >= 1:
        raise UserError("--phantom_share and --region_share leave nothing for the labelled cases; lower one of them.")
    if min(shares) < 0:
        raise UserError("--phantom_share and --region_share are shares: give 0 or more.")


def show_trained(trained: Mapping[str, int]) -> None:
    """Print how many parameters are trained, in all and by part."""
    if processes.is_first():
        parts = ", ".join(f"{part} {number:,}" for part, number in trained.items())
        print(f"trained parameters: {sum(trained.values()):,} ({parts})", file=sys.stderr)


def training_record(
    name: str,
    variant: str,
    cases: DataList,
    groups: Groups,
    licence: str,
    phantoms: int = 0,
    trained: Mapping[str, int] | None = None,
    seen_before: Sequence[Mapping[str, Any]] = (),
    notes: str | None = None,
    serves: Mapping[str, Any] | None = None,
) -> WeightRecord:
    """Say what the weights will have seen; the checksum is filled in when they are written.

    Args:
        name: of the weights.
        variant: of the network.
        cases: the data list.
        groups: of :func:`split_training`; validation patients are named in the notes, they were not trained on.
        licence: of the data, which the weights inherit.
        phantoms: drawn slices of each kind that were mixed in.
        trained: numbers of trained parameters of :func:`monai_ext.networks.lora.count_trained`.
        seen_before: what the weights it starts from have seen, as :class:`TrainingData` has it.
        notes: whom to name, and anything else.
        serves: what the weights are chosen for where the user names none, as :class:`Serves` has it.
    """
    seen, held = (sorted({str(c["patient"]) for c in groups[group]}) for group in ("train", "validation"))
    data = [TrainingData(dataset=cases.dataset, patients=seen, labels="dense", licence=licence)]
    if phantoms:
        data.append(TrainingData(dataset="phantom slices", labels="dense", licence="Apache-2.0"))
    data += [TrainingData.model_validate(item) for item in seen_before]
    said = [f"choices were made on {', '.join(held)}"] if held else []
    said += [notes] if notes else []
    return WeightRecord(
        name=name,
        variant=variant,
        datasets=data,
        command=run_command(),
        licence=licence,
        sha256="",
        notes="; ".join(said),
        trained_parameters=None if trained is None else dict(trained),
        serves=None if serves is None else Serves.model_validate(serves),
    )


def run_command() -> str:
    """Return the command line of this run, without the folders of this machine."""
    several = processes.count() > 1  # another number of them draws otherwise
    start = ["torchrun", "--nproc_per_node", str(processes.count())] if several else ["python"]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = "" if spec is None else spec.name.removesuffix(".__main__")
    module = name if name.startswith("monai_ext.") else "monai.bundle"  # the former such as the command of ablations
    return shlex.join([*start, "-m", module, *(_without_folders(a) for a in sys.argv[1:])])


def _without_folders(argument: str) -> str:
    """Cut absolute paths, also those in a list of config files, down to their last part."""
    if os.path.isabs(argument):
        return Path(argument).name
    return re.sub(r"(?<![\w./:])/(?:[^\s'\",\]/]+/)+(?=[^\s'\",\]/])", "", argument)
