"""What ProSAM's training config calls besides :mod:`monai_ext.engines.episode_training`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from monai_ext import processes
from monai_ext.data.episode_lists import check_episodes, draw_episodes, read_episodes, write_episodes
from monai_ext.data.episodes import Episode, EpisodePool, FewShotTask
from monai_ext.data.manifest import DataList
from monai_ext.data.provenance import read_record, refuse_dense_labels
from monai_ext.data.slice_store import StoredCase
from monai_ext.errors import UserError


def check_sam(weights: str | os.PathLike, lists: Sequence[DataList], allow_dense: bool = False) -> None:
    """Refuse a SAM that saw dense labels of a data set that is learned from: novel classes would not be new to it.

    Raises:
        UserError: it did, and ``allow_dense`` is not set.
    """
    record = read_record(weights)
    for one in lists:
        refuse_dense_labels(record, one.dataset, allow_dense)


def base_episodes(
    cases: Sequence[StoredCase],
    task: FewShotTask,
    min_pixels: int,
    count: int,
    seed: int,
    path: str | os.PathLike,
    given: str | os.PathLike | None = None,
    trained: Sequence[Mapping[str, Any]] = (),
) -> list[Episode]:
    """Return the frozen episodes of base classes that choose the weights, and write them.

    Args:
        cases: stored ones of the validation patients; none: there is no validation.
        task: its base classes are asked for, as far as two validation patients show them.
        min_pixels: see :class:`EpisodePool`.
        count: number of episodes.
        seed: of the draws.
        path: where the list is written.
        given: a list to take instead, see :func:`monai_ext.data.episode_lists.read_episodes`.
        trained: cases of the training, whose patients must not be in it.

    Raises:
        UserError: the list does not fit, or asks for a novel class; or no base class is shown by two patients.
    """
    if given is not None:
        episodes = read_episodes(given)
        for number, episode in enumerate(episodes):
            if episode.name not in task.base:
                raise UserError(f"{given}: episode {number} asks for {episode.name!r}, which is no base class.")
        check_episodes(episodes, cases, [(c["dataset"], c["patient"]) for c in trained])
    elif cases:
        episodes = draw_episodes(EpisodePool(cases, _shown(cases, task.base, min_pixels), (), min_pixels), count, seed)
    else:
        return []
    processes.from_first(lambda: write_episodes(path, episodes, seed=seed))
    return episodes


def _shown(cases: Sequence[StoredCase], names: Sequence[str], min_pixels: int) -> list[str]:
    """Return the classes that two patients of one data set show; all where none is, so that the pool says so."""
    found = []
    for name in names:
        try:
            EpisodePool(cases, [name], (), min_pixels)
        except UserError:
            continue
        found.append(name)
    return found or list(names)
