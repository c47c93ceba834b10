"""Where weights come from: a JSON file beside each checkpoint, and checks against the cases of a test.

A safetensors file that :mod:`monai_ext.session.safetensors` has written holds the record itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from monai_ext.data.safetensors_file import RECORD, SUFFIX, TENSORS_SHA256, read_metadata, tensors_sha256
from monai_ext.data.text import read_text
from monai_ext.data.training_settings import SETTINGS_FILE, read_settings
from monai_ext.errors import UserError
from monai_ext.files import PathLike, atomic_path, sha256_of


class TrainingData(BaseModel):
    """What a set of weights has seen of one data set.

    Args:
        dataset: name of the data set, as in its data list.
        patients: the patients, as in its data list.
        labels: what was known of their images.
        licence: licence of the data.
    """

    model_config = ConfigDict(extra="forbid")

    dataset: str
    patients: list[str] = []
    labels: Literal["dense", "scribble", "none"]
    licence: str


class Serves(BaseModel):
    """What weights are chosen for where the user names none; empty lists do not limit.

    Args:
        modalities: words for them, one of which stands in the name of a case's modality.
        structures: words for them, likewise.
    """

    model_config = ConfigDict(extra="forbid")

    modalities: list[str] = []
    structures: list[str] = []


class WeightRecord(BaseModel):
    """Provenance of one checkpoint.

    Args:
        name: name of the weights.
        variant: architecture that they fit, such as "vit_b" or "compact".
        datasets: what they were trained on.
        command: command that made them.
        licence: licence of the weights.
        sha256: checksum of the checkpoint.
        notes: anything else.
        trained_parameters: how many parameters of each part of the network the training changed, where that is known.
        trained_as: options of the training that inference has to repeat (labels in their order, sizes, ...).
        made_with: hash of this package's source and versions of the packages that the training began with.
        accepted: the same of each later start under other code, which ``--accept_code true`` let pass.
        serves: what they are chosen for by :func:`monai_ext.session.default_weights.choose_weights`; None: for nothing.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    variant: str
    datasets: list[TrainingData]
    command: str
    licence: str
    sha256: str
    notes: str = ""
    trained_parameters: dict[str, int] | None = None
    trained_as: dict[str, Any] = {}
    made_with: dict[str, str] = {}
    accepted: list[dict[str, str]] = []
    serves: Serves | None = None


def _official(variant: str, sha256: str) -> WeightRecord:
    return WeightRecord(
        name=f"SAM {variant}",
        variant=variant,
        datasets=[TrainingData(dataset="SA-1B", labels="dense", licence="SA-1B Dataset Research License")],
        command="released by the authors of Segment Anything (Kirillov et al. 2023)",
        licence="Apache-2.0",
        sha256=sha256,
    )


# SAM's official files come without a record beside them; they are known by their checksums.
OFFICIAL_WEIGHTS = {
    sha256: _official(variant, sha256)
    for variant, sha256 in (
        ("vit_b", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        ("vit_l", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        ("vit_h", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    )
}


def record_path(checkpoint: PathLike) -> Path:
    """Return where the record of a checkpoint lies: ``model.pt`` -> ``model.json``."""
    return Path(checkpoint).with_suffix(".json")


def read_record(checkpoint: PathLike) -> WeightRecord | None:
    """Read the record beside a checkpoint, or in a safetensors file; None where there is none.

    Raises:
        UserError: the record is not usable.
    """
    inside = _record_inside(checkpoint)
    path = record_path(checkpoint) if inside is None else Path(checkpoint)
    if inside is None and not path.is_file():
        return None
    try:
        return WeightRecord.model_validate_json(read_text(path) if inside is None else inside)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: the file: not UTF-8 (byte {error.start}); correct the record of these weights"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {key}: {first['msg'].lower()}; correct the record of these weights") from error


def _record_inside(checkpoint: PathLike) -> str | None:
    """Return the record that a safetensors file holds, as JSON."""
    return read_metadata(checkpoint).get(RECORD) if Path(checkpoint).suffix == SUFFIX else None


def write_record(checkpoint: PathLike, record: WeightRecord) -> None:
    """Write the record beside a checkpoint.

    Raises:
        UserError: the folder cannot be written.
    """
    with atomic_path(record_path(checkpoint)) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def has_record(checkpoint: PathLike) -> bool:
    """Whether a checkpoint lies there whole, with the record that was written for these very bytes."""
    path = Path(checkpoint)
    record = read_record(path) if path.is_file() else None
    return record is not None and record.sha256 == sha256_of(path)


def record_training(checkpoint: PathLike, record: WeightRecord, folder: PathLike) -> None:
    """Write the record of weights that a training has just made; one that is there for these bytes stays as it is.

    Args:
        checkpoint: file of the weights, whose checksum is filled in.
        record: what is said of them.
        folder: of the training, whose settings, where it keeps them, say what it was made with.
    """
    if has_record(checkpoint):
        return
    settings: dict[str, Any] = read_settings(Path(folder)) if (Path(folder) / SETTINGS_FILE).is_file() else {}
    made = {"made_with": settings.get("made_with", {}), "accepted": settings.get("accepted", [])}
    write_record(checkpoint, record.model_copy(update={"sha256": sha256_of(checkpoint), **made}))


def as_trained(checkpoint: PathLike, option: str, default: Any = None) -> Any:
    """Return an option that inference repeats from the training of its weights, as their record tells it.

    Args:
        checkpoint: file of the weights.
        option: its name in :attr:`WeightRecord.trained_as`, or ``architecture``: the record's ``variant``.
        default: where the weights have no record, or it does not name the option.

    Raises:
        UserError: the record is not usable.
    """
    record = read_record(checkpoint)
    return default if record is None else {"architecture": record.variant, **record.trained_as}.get(option, default)


SAME_PATIENTS = (frozenset({"chaos_t1", "chaos_t2"}),)
"""Data sets, in small letters, that are of the same patients under the same names."""

RENAMED_PATIENTS = (frozenset({"mscmr", "ms_cmrseg"}),)
"""Data sets that are of the same patients under other names: nobody can say who is who."""


def check_overlap(
    record: WeightRecord | None, dataset: str, patients: Iterable[str], allow_overlap: bool = False
) -> list[str]:
    """Refuse to evaluate weights on patients that they were trained on.

    Of data sets that are of the same patients under other names (:data:`RENAMED_PATIENTS`) all count as trained on.

    Args:
        record: provenance of the weights; None for weights that bring no record.
        dataset: name of the data set that is evaluated.
        patients: its patients.
        allow_overlap: return the overlap instead of refusing it.

    Returns:
        The patients in both, sorted.

    Raises:
        UserError: there are some, and ``allow_overlap`` is not set.
    """
    seen = record.datasets if record else []
    trained = {patient for data in seen if same_patients(data.dataset, dataset) for patient in data.patients}
    renamed = [data.dataset for data in seen if data.patients and _among(RENAMED_PATIENTS, data.dataset, dataset)]
    overlap = sorted(set(patients) if renamed else set(patients) & trained)
    if overlap and renamed and record and not allow_overlap:
        raise UserError(
            f"the weights {record.name!r} were trained on patients of {renamed[0]}, who are those of {dataset} under "
            "other names; evaluate on another data set or set --allow_overlap true"
        )
    if overlap and record and not allow_overlap:
        raise UserError(
            f"the weights {record.name!r} were trained on {len(overlap)} of the {dataset} patients to be "
            f"evaluated ({', '.join(overlap)}); leave these out or set --allow_overlap true"
        )
    return overlap


def refuse_dense_labels(record: WeightRecord | None, dataset: str, allow: bool = False) -> None:
    """Refuse to help a scribble, few-shot or online result with weights that saw dense labels of the same data set.

    Args:
        record: provenance of the weights; None for weights that bring no record.
        dataset: name of the data set that is learned from scribbles.
        allow: let them pass.

    Raises:
        UserError: they saw such labels, and ``allow`` is not set.
    """
    dense = [data for data in record.datasets if data.labels == "dense"] if record else []
    seen = [d for d in dense if same_patients(d.dataset, dataset) or _among(RENAMED_PATIENTS, d.dataset, dataset)]
    if seen and record and not allow:
        raise UserError(
            f"the weights {record.name!r} were trained on dense labels of {seen[0].dataset}: what few "
            f"labels of {dataset} teach could not be told apart from it; give others or set --allow_dense_sam true"
        )


def verify_weights(path: PathLike, record: WeightRecord) -> None:
    """Check that weights are those of their record.

    Raises:
        UserError: their checksum is another, or there is no such file.
    """
    if _record_inside(path) is None:
        verify_sha256(path, record.sha256)
    elif read_metadata(path).get(TENSORS_SHA256) != tensors_sha256(path):
        raise UserError(
            f"{path}: the sha256 of its tensors is not the one in its header; it is damaged, copy or download it again"
        )


def weights_sha256(path: PathLike) -> str:
    """Return the checksum by which weights are known to what was trained beside them.

    That of a safetensors file with a record is the checksum of the file that it was made of: the tensors are the same.
    """
    record = read_record(path) if _record_inside(path) is not None else None
    return sha256_of(path) if record is None else record.sha256


def verify_sha256(path: PathLike, expected: str) -> None:
    """Check that a file is the one that was meant.

    Raises:
        UserError: its checksum is another, or there is no such file.
    """
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path of the weights") from error
    if actual != expected.strip().lower():
        raise UserError(
            f"{path}: the sha256 is {actual}, not {expected}; it is damaged or another file, download it again"
        )


def same_patients(one: str, other: str) -> bool:
    """Tell whether two names of data sets stand for the same patients under the same names."""
    return one.strip().casefold() == other.strip().casefold() or _among(SAME_PATIENTS, one, other)


def _among(groups: Iterable[frozenset[str]], one: str, other: str) -> bool:
    """Tell whether two names of data sets are different ones of one group."""
    names = {one.strip().casefold(), other.strip().casefold()}
    return len(names) == 2 and any(names <= group for group in groups)
