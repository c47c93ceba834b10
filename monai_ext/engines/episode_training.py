"""What training configs of few-shot methods call: data lists, patients, episodes, and the record of the weights."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from monai_ext import processes
from monai_ext.data.episode_lists import check_episodes, draw_episodes, read_episodes, write_episodes
from monai_ext.data.episodes import Episode, EpisodePool, FewShotTask
from monai_ext.data.manifest import Case, DataList, load_datalist
from monai_ext.data.provenance import TrainingData, WeightRecord, read_record, refuse_dense_labels, same_patients
from monai_ext.data.slice_store import StoredCase, store_slices
from monai_ext.data.superpixels import Superpixels, store_superpixels
from monai_ext.engines.training import run_command
from monai_ext.errors import UserError

Transform = Callable[[dict[str, Any]], dict[str, Any]]
Groups = Mapping[str, Sequence[Mapping[str, Any]]]

VALIDATING = 2
"""Patients of the fold after the tested one that validate where none are named."""


def load_lists(
    datalist: str | os.PathLike,
    further: Sequence[str] | str = (),
    data_root: str | os.PathLike | None = None,
    split: str | None = None,
) -> list[DataList]:
    """Read the data list and further ones, whose relative paths refer to their own folders.

    A split counts for lists whose cases have any.

    Raises:
        UserError: two lists are of one data set.
    """
    paths = [further] if isinstance(further, str) else list(further)
    lists = [_load(datalist, data_root, split), *(_load(path, None, split) for path in paths)]
    names = [one.dataset for one in lists]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two data lists are of {name}: give each data set once.")
    return lists


def _load(path: str | os.PathLike, data_root: str | os.PathLike | None, split: str | None) -> DataList:
    whole = load_datalist(path, data_root)
    splits = sorted({case.split for case in whole.cases if case.split})
    if split is None and len(splits) > 1 and processes.is_first():
        print(
            f"warning: {whole.dataset} has the splits {', '.join(splits)}, and all are learned from: --split takes one",
            file=sys.stderr,
        )
    if split is None or not splits:
        return whole
    return load_datalist(path, data_root, split=split)


def class_names(lists: Sequence[DataList]) -> list[str]:
    """Return the names of all classes, those of the first list first; one name is one class in all lists."""
    return list(dict.fromkeys(name for one in lists for name in one.labels))


def split_patients(
    lists: Sequence[DataList],
    fold: int | None = None,
    validation_patients: Sequence[str] | str | None = None,
    held_out: Sequence[str] | str = (),
) -> dict[str, list[dict[str, Any]]]:
    """Divide the labelled cases by patient: ``train`` and ``validation``; patients of the tested fold are in neither.

    Nor are their images in another list of the same patients, such as CHAOS_T1 beside CHAOS_T2.

    Args:
        lists: of :func:`load_lists`.
        fold: of the first list, which is tested and so kept out; None: no fold is.
        validation_patients: whose episodes of base classes and superpixels choose the weights; None: the first two
            patients of the fold after the tested one, if there is one.
        held_out: further patients that are not trained on, such as those of supports.

    Raises:
        UserError: a patient or the fold is in no list, a patient of the fold is to validate, or nobody is left to train
            on.
    """
    first = lists[0]
    if fold is not None and fold not in {case.fold for case in first.cases}:
        raise UserError(f"{first.dataset} has no fold {fold}: check --fold.")
    validating = _next_fold(first, fold) if validation_patients is None else _texts(validation_patients)
    kept_out = _texts(held_out)
    known = {_patient(case) for one in lists for case in one.cases}
    for patient in (*validating, *kept_out):
        if patient not in known:
            raise UserError(
                f"patient {patient!r} is in no data list, or not in the split that is taken: check "
                "--validation_patients, --held_out and --split."
            )
    tested_on = {_patient(case) for case in first.cases if fold is not None and case.fold == fold}
    both = sorted(tested_on & set(validating))
    if both:
        raise UserError(
            f"patient {both[0]!r} is of fold {fold} of {first.dataset}, which is tested: name others with "
            "--validation_patients."
        )
    groups: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for one in lists:
        for case in one.cases:
            patient = _patient(case)
            tested = patient in tested_on and same_patients(one.dataset, first.dataset)
            if case.label is None or tested or (patient in kept_out and patient not in validating):
                continue
            groups["validation" if patient in validating else "train"].append(_item(case, one))
    if not groups["train"]:
        raise UserError("no labelled case is left to train on: check --split, --fold and --held_out.")
    return groups


def _next_fold(datalist: DataList, fold: int | None) -> list[str]:
    """Return the first patients of the fold after the tested one, as the list has them; after the last the first."""
    folds = sorted({case.fold for case in datalist.cases if case.fold is not None})
    if fold is None or len(folds) < 2:
        return []
    following = folds[(folds.index(fold) + 1) % len(folds)]
    patients = dict.fromkeys(_patient(case) for case in datalist.cases if case.fold == following)
    return list(patients)[:VALIDATING]


def all_items(groups: Groups) -> list[Mapping[str, Any]]:
    """Return the cases of all groups in one list."""
    return [item for group in groups.values() for item in group]


def _texts(given: Sequence[str] | str | int) -> list[str]:
    return [str(given)] if isinstance(given, str | int) else [str(one) for one in given]


def _patient(case: Case) -> str:
    return str(case.patient or case.case)


def labelled_items(datalist: DataList, fold: int | None = None) -> list[dict[str, Any]]:
    """Return the labelled cases of a list, or of one of its folds, as :func:`split_patients` has them."""
    cases = [case for case in datalist.cases if case.label is not None and fold in (None, case.fold)]
    return [_item(case, datalist) for case in cases]


def _item(case: Case, datalist: DataList) -> dict[str, Any]:
    return {
        "case": case.case,
        "patient": _patient(case),
        "dataset": datalist.dataset,
        "image": case.image,
        "label": case.label,
        "modality": case.modality or datalist.modality,
    }


def store_cases(
    cases: Sequence[Mapping[str, Any]],
    lists: Sequence[DataList],
    transform: Transform,
    folder: str | os.PathLike,
    settings: str,
    superpixels: Superpixels | None = None,
) -> list[StoredCase]:
    """Cut all slices of the cases, and their superpixels; of several processes, the first one does so for all.

    Args:
        cases: of :func:`split_patients`.
        lists: of the cases.
        transform: loads and maps a case to the input frame.
        folder: where the slices go; trainings of the same images may share it.
        settings: text that stands for the transform's settings.
        superpixels: how they are cut; None: there are none.
    """

    def make() -> list[dict[str, Any]]:
        stored: list[StoredCase] = []
        for one in lists:
            own = [case for case in cases if case["dataset"] == one.dataset]
            if own:
                stored += store_slices(
                    own,
                    transform,
                    folder,
                    one.labels,
                    ignore=one.ignore,
                    every_slice=True,
                    settings=settings,
                    dataset=one.dataset,
                )
        if superpixels is not None:
            store_superpixels(stored, superpixels)
        return [case.to_json() for case in stored]

    return [StoredCase.from_json(told) for told in processes.from_first(make)]


def superpixels_for(episodes: str, superpixels: Superpixels) -> Superpixels | None:
    """Return how superpixels are cut, or None where a training's episodes are of annotated classes alone."""
    return None if episodes == "supervised" else superpixels


def training_pool(
    cases: Sequence[StoredCase],
    task: FewShotTask,
    episodes: str,
    min_pixels: int,
    superpixels: Superpixels,
) -> EpisodePool:
    """Collect the slices that a training draws from, and tell how many Setting 2 removed."""
    cut = superpixels_for(episodes, superpixels)
    name = None if cut is None else cut.name
    pool = EpisodePool(cases, task.base, task.excluded, min_pixels, name, episodes == "superpixel")
    if processes.is_first():
        print(describe_pool(pool, task), file=sys.stderr)
    return pool


def describe_pool(pool: EpisodePool, task: FewShotTask) -> str:
    """Describe the slices that a training draws from in one line."""
    shown = ", ".join(f"{name} {len(pool.members[name])}" for name in task.base)
    said = f"Setting {task.setting}: {pool.removed} of {pool.slices} training slices removed"
    said += f" because they show {' or '.join(task.novel)}" if task.excluded else ""
    return f"{said}; slices of each base class: {shown or 'none'}; slices with superpixels: {len(pool.regions)}"


def validation_episodes(
    cases: Sequence[StoredCase],
    task: FewShotTask,
    min_pixels: int,
    superpixels: Superpixels | None,
    count: int,
    seed: int,
    path: str | os.PathLike,
    given: str | os.PathLike | None = None,
    trained: Sequence[Mapping[str, Any]] = (),
) -> list[Episode]:
    """Return the frozen episodes of a validation and write them: half of base classes and half of superpixels.

    Novel classes are never asked for: no choice may be made by them. A line on stderr names the base classes that no
    two validation patients show.

    Args:
        cases: stored ones of the validation patients; none: there is no validation.
        task: its base classes are asked for, as far as two validation patients show them.
        min_pixels: see :class:`EpisodePool`.
        superpixels: how they are cut; None: all episodes are of base classes.
        count: number of episodes.
        seed: of the draws.
        path: where the list is written.
        given: a list to take instead, see :func:`monai_ext.data.episode_lists.read_episodes`.
        trained: cases of the training, whose patients must not be in it.

    Raises:
        UserError: the list does not fit or asks for another class; or, without superpixels, no base class is shown by
            two patients.
    """
    cut = None if superpixels is None else superpixels.name
    if given is not None:
        episodes = read_episodes(given)
        for number, episode in enumerate(episodes):
            if not episode.is_superpixel and episode.name not in task.base:
                raise UserError(f"{given}: episode {number} asks for {episode.name!r}, which is no base class.")
        check_episodes(episodes, cases, [(c["dataset"], c["patient"]) for c in trained], cut)
    elif cases:
        classes = [name for name in task.base if _shown_by_two(cases, name, min_pixels)]
        left_out = [name for name in task.base if name not in classes]
        if left_out and (classes or cut) and processes.is_first():
            print(
                f"warning: no two validation patients of one data set and modality show {', '.join(left_out)}, so that "
                "no frozen episode asks for it; --validation_patients names others",
                file=sys.stderr,
            )
        if not classes and cut is None:
            raise UserError(
                f"no two validation patients of one data set and modality show {' or '.join(task.base)}: name others "
                'with --validation_patients, lower --min_pixels, or let nobody validate, --validation_patients "[]".'
            )
        if cut is None:
            episodes = draw_episodes(EpisodePool(cases, classes, (), min_pixels), count, seed)
        else:
            known = count - count // 2 if classes else 0
            pool = EpisodePool(cases, classes, (), min_pixels, cut)
            episodes = draw_episodes(pool, known, seed, classes, count - known)
    else:
        if processes.is_first():
            print(
                "note: no patient validates, so the last weights are kept; --validation_patients names some",
                file=sys.stderr,
            )
        return []
    processes.from_first(lambda: write_episodes(path, episodes, seed=seed))
    return episodes


def check_sam(weights: str | os.PathLike, lists: Sequence[DataList], allow_dense: bool = False) -> None:
    """Refuse a SAM that saw dense labels of a data set that is learned from: novel classes would not be new to it.

    Raises:
        UserError: it did, and ``allow_dense`` is not set.
    """
    record = read_record(weights)
    for one in lists:
        refuse_dense_labels(record, one.dataset, allow_dense)


def report_episodes(episodes: Sequence[Episode]) -> None:
    """Print how many episodes of each class there are.

    Raises:
        UserError: there is none.
    """
    if not episodes:
        raise UserError("no episode was drawn, as no patient validates: give --fold or --validation_patients.")
    counts = Counter("superpixels" if episode.is_superpixel else episode.name for episode in episodes)
    if processes.is_first():
        print(f"{len(episodes)} episodes: " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items())))


def _shown_by_two(cases: Sequence[StoredCase], name: str, min_pixels: int) -> bool:
    """Whether two patients of one data set and modality show a class."""
    try:
        return bool(EpisodePool(cases, [name], (), min_pixels).members[name])
    except UserError:
        return False


def episodic_record(
    name: str,
    variant: str,
    lists: Sequence[DataList],
    groups: Groups,
    licence: str,
    task: FewShotTask,
    trained_as: Mapping[str, Any] | None = None,
    seen_before: Sequence[Mapping[str, Any]] = (),
    notes: str | None = None,
) -> WeightRecord:
    """Return the record of weights: the training patients of each data set, the base classes, and what was novel.

    Args:
        name: of the weights.
        variant: of the network.
        lists: the data lists.
        groups: of :func:`split_patients`.
        licence: of the data, which the weights inherit.
        task: base and novel classes.
        trained_as: options that inference has to repeat.
        seen_before: what the weights it starts from have seen, as :class:`TrainingData` has it.
        notes: whom to name, and anything else.
    """
    seen = []
    labels: Literal["dense", "none"] = "dense" if task.base or task.excluded else "none"  # superpixels need no label
    for one in lists:
        patients = sorted({str(c["patient"]) for c in groups["train"] if c["dataset"] == one.dataset})
        if patients:
            seen.append(TrainingData(dataset=one.dataset, patients=patients, labels=labels, licence=licence))
    held = sorted({str(c["patient"]) for c in groups["validation"]})
    said = [f"base classes: {', '.join(task.base) or 'none'}", f"Setting {task.setting}"]
    said += [f"novel: {', '.join(task.novel)}"] if task.novel else []
    said += [f"choices were made on {', '.join(held)}"] if held else []
    said += [notes] if notes else []
    return WeightRecord(
        name=name,
        variant=variant,
        datasets=[*seen, *(TrainingData.model_validate(item) for item in seen_before)],
        command=run_command(),
        licence=licence,
        sha256="",
        notes="; ".join(said),
        trained_as=dict(trained_as or {}),
    )
