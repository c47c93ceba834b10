"""MONAI Label's studies folder: which annotated study serves the one that a request asks for.

The server keeps ``<study>.nii.gz`` (or a picture) in the folder, labels in ``labels/<tag>/`` and what it knows of both
in ``datastore_v2.json``. Patients and visits are known to a data list of ours, :data:`DATALIST`, put beside the
studies; its cases are the studies, matched by file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_ext.data.images import is_frame, read_label
from monai_ext.data.manifest import Case, DataList, load_datalist
from monai_ext.data.pairs import VisitLike, pair_with_reference
from monai_ext.data.text import read_json
from monai_ext.errors import UserError

DATALIST = "datalist.json"
DATASTORE = "datastore_v2.json"
FINAL = "final"
"""MONAI Label's tag of a label that somebody has approved."""


def served_folder() -> Path | None:
    """Return the studies of the MONAI Label server that this process is, or None in any other process."""
    folder = os.environ.get("MONAI_LABEL_STUDIES")
    return Path(folder) if folder else None


class Studies:
    """Finds the reference of a request to a MONAI Label server.

    1. ``reference`` of the request: {"study": NAME, "tag": "final"}, or a study's name, or a list of these. The labels
       are the values found there, called as the viewer called them when it saved them, else ``label_<value>``.
    2. Else the data list: the patient's earliest annotated visit before this one. A study's ``final`` label in the
       datastore goes before the list's own, so what was annotated in the viewer serves at once. Structures of the list
       that the reference does not hold are left out.

    The label of the study asked for is never opened.

    Args:
        folder: of the studies; None: :func:`served_folder`.
        reference_visit: see :func:`monai_ext.data.pairs.pair_with_reference`.
        names: structures to serve; None: all.
        allow_modality: a reference may be of another modality than the study, as far as the data list tells them.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        reference_visit: VisitLike | Sequence[VisitLike] | None = None,
        names: Sequence[str] | str | None = None,
        allow_modality: bool = True,
    ) -> None:
        self.folder = served_folder() if folder is None else Path(folder)
        self.reference_visit, self.allow_modality = reference_visit, allow_modality
        self.names = [names] if isinstance(names, str) else names

    def __call__(self, item: Mapping[Any, Any]) -> dict[str, Any] | None:
        """Return what serves a request; None for an item that is none (``python -m monai.bundle run``).

        Args:
            item: the request: ``image_path``, and ``reference`` or nothing.

        Returns:
            ``reference_image`` and ``reference_label`` (files), ``reference`` (their names), ``reference_choice``
            (``pooled`` or ``nearest``), ``labels`` (name -> value), ``modality`` and ``reference_modality``, of each
            reference; ``""`` where the data list does not tell.

        Raises:
            UserError: nothing serves this study, or what is named is not there.
        """
        if self.folder is None or "image_path" not in item:
            return None
        image = Path(item["image_path"]).resolve()
        named = item.get("reference")
        found = self._by_name(named, image) if named else self._by_patient(image)
        if image in {Path(file).resolve() for file in found["reference_image"]}:
            raise UserError(f"study {_stem(image)} cannot be its own reference: name an earlier, annotated study.")
        self._refuse_other_modality(found, image)
        return self._chosen(found)

    @property
    def _served(self) -> Path:
        """The folder of studies."""
        if self.folder is None:
            raise ValueError("there is no folder of studies: this is no MONAI Label server")
        return self.folder

    def _by_name(self, named: Any, asked: Path) -> dict[str, Any]:
        labels: dict[str, int] = {}
        names, images, files = [], [], []
        for one in named if isinstance(named, (list, tuple)) else [named]:
            wanted = {"study": one} if isinstance(one, str) else one
            if not isinstance(wanted, Mapping) or not isinstance(wanted.get("study"), str):
                raise UserError(f'reference {one!r} names no study: give {{"study": NAME, "tag": "{FINAL}"}}.')
            study, tag = wanted["study"], str(wanted.get("tag") or FINAL)
            image, label, info = self._annotated(study, tag)
            names.append(study)
            images.append(str(image))
            files.append(str(label))
            held = _values(label)
            _join(labels, {name: value for name, value in _names(info, held).items() if value in held}, study)
        known = self._modalities()
        return {
            "reference": names,
            "reference_image": images,
            "reference_label": files,
            "reference_choice": "pooled",
            "labels": labels,
            "modality": known.get(asked, ""),
            "reference_modality": [known.get(Path(file).resolve(), "") for file in images],
        }

    def _modalities(self) -> dict[Path, str]:
        """Modality of each image of the data list, as far as there is one."""
        path = self._served / DATALIST
        if not path.is_file():
            return {}
        datalist = load_datalist(path)
        return {Path(case.image).resolve(): case.modality or datalist.modality or "" for case in datalist.cases}

    def _refuse_other_modality(self, found: Mapping[str, Any], image: Path) -> None:
        own = found["modality"]
        for name, other in zip(found["reference"], found["reference_modality"], strict=True):
            differs = other.strip().casefold() != own.strip().casefold()
            if own and other and differs and not self.allow_modality:
                raise UserError(
                    f"study {_stem(image)} is {own}, but its reference {name} is {other}: name a reference of its "
                    "modality, or set allow_modality in the bundle's inference.yaml."
                )

    def _annotated(self, study: str, tag: str) -> tuple[Path, Path, Mapping[str, Any]]:
        """Image, label and what the datastore noted of the label."""
        studies = self._datastore()
        if study not in studies:
            raise UserError(f"reference {study!r} is no study of {self._served}: these are {_some(studies)}.")
        there = studies[study].get("labels") or {}
        if tag not in there:
            tags = ", ".join(there) or "none"
            raise UserError(
                f"study {study!r} has no label tagged {tag!r} (it has {tags}): annotate and submit it first."
            )
        image = self._served / f"{study}{studies[study]['image']['ext']}"
        return image, self._served / "labels" / tag / f"{study}{there[tag]['ext']}", there[tag].get("info") or {}

    def _by_patient(self, image: Path) -> dict[str, Any]:
        path = self._served / DATALIST
        if not path.is_file():
            raise UserError(
                f"study {_stem(image)} has no reference: put a data list with patients and visits at {path}, or name "
                f'an annotated study in the request, "reference": {{"study": NAME, "tag": "{FINAL}"}}.'
            )
        datalist = load_datalist(path)
        case = next((c for c in datalist.cases if Path(c.image).resolve() == image), None)
        if case is None:
            raise UserError(f"study {_stem(image)} is no image of {path}: add it there, with its patient and visit.")
        patient, told = self._with_datastore_labels(datalist, case)
        annotated = [c for c in patient.cases if c.label]
        if not case.reference_image and not annotated:
            raise UserError(
                f"study {case.case}: patient {case.patient!r} has no annotated study to be the reference: annotate "
                "an earlier visit and submit its label."
            )
        if case.visit is None and not case.reference_image and all(c.case == case.case for c in annotated):
            raise UserError(
                f"study {case.case}: no other study of patient {case.patient!r} is annotated: name an annotated study "
                f'in the request, "reference": {{"study": NAME, "tag": "{FINAL}"}}.'
            )
        known = case.reference_image or case.visit is None or any(_is_before(c.visit, case.visit) for c in annotated)
        pairs = pair_with_reference(patient, self.reference_visit) if known else []
        pair = next((p for p in pairs if p["case"] == case.case), None)
        if pair is None:
            raise UserError(
                f"study {case.case} (visit {case.visit}) has no annotated visit before it: annotate an earlier "
                f"visit of patient {case.patient!r} and submit its label."
            )
        held: set[int] = set()
        for file in pair["reference_label"]:
            values = _values(Path(file))
            _check_told(told.get(file, {}), values, datalist.labels, file)
            held |= values
        if unknown := sorted(held - set(datalist.labels.values()) - {datalist.ignore}):
            raise UserError(
                f"{', '.join(pair['reference_label'])} holds {unknown[0]}, which is no label of {path}: add its name "
                "and value to 'labels' there."
            )
        labels = {name: value for name, value in datalist.labels.items() if value in held}
        keys = ("reference", "reference_image", "reference_label", "reference_choice", "modality", "reference_modality")
        return {**{key: pair[key] for key in keys}, "labels": labels}

    def _with_datastore_labels(self, datalist: DataList, asked: Case) -> tuple[DataList, dict[str, Mapping[int, str]]]:
        """The asked study's patient alone; a case that the datastore has a final label of has that label.

        Also what the viewer called the values of each of these labels, by file.
        """
        files: dict[Path, str] = {}
        told: dict[str, Mapping[int, str]] = {}
        for study, known in self._datastore().items():
            label = (known.get("labels") or {}).get(FINAL)
            if label:
                image = (self._served / f"{study}{known['image']['ext']}").resolve()
                files[image] = str(self._served / "labels" / FINAL / f"{study}{label['ext']}")
                told[files[image]] = told_names(label.get("info"))
        cases = [c for c in datalist.cases if c is asked or (c.patient is not None and c.patient == asked.patient)]
        found = [c.model_copy(update={"label": files.get(Path(c.image).resolve(), c.label)}) for c in cases]
        return datalist.model_copy(update={"cases": found}), told

    def _datastore(self) -> dict[str, Any]:
        path = self._served / DATASTORE
        if not path.is_file():
            return {}
        return dict(read_json(path)["objects"])

    def _chosen(self, found: dict[str, Any]) -> dict[str, Any]:
        if self.names is not None:
            found["labels"] = {name: value for name, value in found["labels"].items() if name in self.names}
        if not found["labels"]:
            asked = "" if self.names is None else f" of {', '.join(self.names)}"
            raise UserError(f"reference {', '.join(found['reference_label'])} holds no structure{asked}: annotate it.")
        return found


def result_options(image: str | os.PathLike, labels: Mapping[str, int]) -> dict[str, str]:
    """How the server is to write a mask: the smallest type that holds the values, and never as a lossy picture."""
    options = {"result_dtype": "uint8" if max(labels.values()) < 2**8 else "uint16"}
    if is_frame(image):
        options["result_extension"] = ".png"
    return options


def _values(label: Path) -> set[int]:
    return {int(value) for value in np.unique(read_label(label)) if value}


def told_names(info: Mapping[str, Any] | None) -> dict[int, str]:
    """Return value -> name as the viewer numbered its segments when it saved a label; empty where it did not say.

    Args:
        info: what the datastore noted of the label; ``label_info`` is in it or in its ``params``.
    """
    known = info or {}
    params = known.get("params")
    told = known.get("label_info") or (params.get("label_info") if isinstance(params, Mapping) else None) or []
    return {int(one["idx"]): str(one["name"]) for one in told if "idx" in one and one.get("name")}


def structure_values(info: Mapping[str, Any] | None, labels: Mapping[str, int]) -> dict[str, int]:
    """Return the structures' values in a label: as the viewer numbered its segments, or ours where it did not say.

    Empty where it gave names of which none is a structure's: what is 1 there need not be what is 1 here.

    >>> structure_values({"label_info": [{"name": "liver", "idx": 1}, {"name": "lesion", "idx": 2}]}, {"lesion": 1})
    {'lesion': 2}
    """
    told = told_names(info)
    return {name: value for value, name in told.items() if name in labels} if told else dict(labels)


def _names(info: Mapping[str, Any], held: set[int]) -> dict[str, int]:
    """Names that the viewer gave with a label, else ``label_<value>``."""
    names = told_names(info)
    return {names.get(value, f"label_{value}"): value for value in sorted(held)}


def _join(labels: dict[str, int], further: Mapping[str, int], study: str) -> None:
    """Add a study's structures to those of the references before it.

    Raises:
        UserError: a name has another value there, or a value another name.
    """
    names = {value: name for name, value in labels.items()}
    for name, value in further.items():
        if labels.get(name, value) != value or names.get(value, name) != name:
            before = f"{name!r} is {labels[name]}" if name in labels else f"{value} is {names[value]!r}"
            raise UserError(
                f"reference {study!r} has {name!r} as {value}, but in a reference before it {before}: give the "
                "segments of these studies the same names and numbers, or name one reference."
            )
    labels.update(further)


def _check_told(told: Mapping[int, str], held: set[int], labels: Mapping[str, int], file: str) -> None:
    """Check that a viewer's numbers of its segments are those of the data list.

    Raises:
        UserError: the label holds a value that the viewer called otherwise.
    """
    names = {value: name for name, value in labels.items()}
    for value in sorted(held & set(told) & set(names)):
        if told[value] != names[value]:
            raise UserError(
                f"{file}: the viewer saved {told[value]!r} as {value}, which is {names[value]!r} in the data list: "
                "name and number the segments as the list does, and submit the label again."
            )


def _is_before(one: Any, other: Any) -> bool:
    """Compare visits of one patient, which a data list has as numbers alone or dates alone; none is unordered."""
    return one is None or bool(one < other)


def _stem(image: Path) -> str:
    return image.name.split(".")[0]


def _some(names: Mapping[str, Any]) -> str:
    few = ", ".join(sorted(names)[:5]) or "none"
    return few + (", ..." if len(names) > 5 else "")
