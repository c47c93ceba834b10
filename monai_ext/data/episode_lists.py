"""Frozen episodes: lists of support and query slices as JSON, so that everyone is measured on the same ones.

A list looks so, and anyone can write one by hand (``region``: of a superpixel's episode, in place of ``class``)::

    {"episodes": [{"class": "liver", "support": {"dataset": "CHAOS_T2", "case": "chaos05_T2SPIR", "slice": 14},
                   "query": {"dataset": "CHAOS_T2", "case": "chaos08_T2SPIR", "slice": 11}}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monai_ext.data.episodes import Episode, EpisodePool, SliceName
from monai_ext.data.slice_store import StoredCase
from monai_ext.data.text import read_json
from monai_ext.errors import UserError
from monai_ext.files import PathLike, atomic_path
from monai_ext.made import note_file


class _Slice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dataset: str
    case: str
    slice: int = Field(ge=0)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field("", alias="class")
    region: int = Field(0, ge=0)
    support: _Slice
    query: _Slice


class _List(BaseModel):
    model_config = ConfigDict(extra="allow")

    episodes: list[_Entry]


def draw_episodes(
    pool: EpisodePool, count: int, seed: int = 0, names: Sequence[str] | None = None, superpixels: int = 0
) -> list[Episode]:
    """Draw episodes once and for all.

    Args:
        pool: what there is.
        count: episodes of classes, taken in turn, so that all have as many.
        seed: of the draws.
        names: of the classes; None: all of the pool.
        superpixels: further episodes of superpixels.
    """
    classes = list(pool.classes if names is None else names)
    drawn = [pool.draw_class(np.random.default_rng([seed, n]), classes[n % len(classes)]) for n in range(count)]
    return drawn + [pool.draw_superpixel(np.random.default_rng([seed, count + n])) for n in range(superpixels)]


def write_episodes(path: PathLike, episodes: Sequence[Episode], **notes: Any) -> None:
    """Write a list, whole or not at all.

    Args:
        path: of the JSON file.
        episodes: in the order in which they are run.
        notes: what else the file says, such as the seed.

    Raises:
        UserError: there is no episode, or the file cannot be written.
    """
    if not episodes:
        raise UserError(f"{path}: there is no episode to write; name classes that the cases show.")
    entries = []
    for episode in episodes:
        what = {"region": episode.region} if episode.is_superpixel else {"class": episode.name}
        entries.append({**what, "support": asdict(episode.support), "query": asdict(episode.query)})
    text = ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in notes.items())
    note_file(path)
    with atomic_path(path) as temporary:
        temporary.write_text(f'{{\n{head} "episodes": [\n  {text}\n ]\n}}\n', encoding="utf-8")


def read_episodes(path: PathLike) -> list[Episode]:
    """Read a list.

    Raises:
        UserError: it cannot be read, holds no episode, or an episode lacks its class, support or query.
    """
    try:
        entries = _List.model_validate(read_json(path)).episodes
    except OSError as error:
        raise UserError(f"{path}: the list of episodes cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        number = next((part for part in first["loc"] if isinstance(part, int)), None)
        where = "the list" if number is None else f"episode {number}"
        key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int) and part != "episodes")
        raise UserError(f"{path}: {where}, key {key or 'episodes'!r}: {first['msg'].lower()}; correct it.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the list of episodes is not JSON ({error}); correct it.") from error
    if not entries:
        raise UserError(f"{path}: the list of episodes is empty; give one that holds some.")
    for number, entry in enumerate(entries):
        if bool(entry.name) == bool(entry.region):
            raise UserError(f"{path}: episode {number} needs either a 'class' or a 'region'; give one of them.")
    return [
        Episode(e.name, SliceName(**e.support.model_dump()), SliceName(**e.query.model_dump()), e.region)
        for e in entries
    ]


def check_episodes(
    episodes: Sequence[Episode],
    cases: Sequence[StoredCase],
    trained: Iterable[tuple[str, str]] = (),
    superpixels: str | None = None,
) -> None:
    """Check that frozen episodes fit the cases at hand, and that nobody is in two parts of the experiment.

    Args:
        episodes: of :func:`read_episodes`.
        cases: stored ones that they name.
        trained: (dataset, patient) of the training.
        superpixels: name that superpixels are stored under; None: there are none.

    Raises:
        UserError: names the episode and what is wrong: an unknown case, slice or class; a support or query without
            the class; support and query of one patient or of different modalities; a patient of the training.
    """
    if not episodes:
        raise UserError("the list of episodes is empty; give one that holds some.")
    known = {(case.dataset, case.case): case for case in cases}
    of_training = set(trained)
    for number, episode in enumerate(episodes):
        for role, place in (("support", episode.support), ("query", episode.query)):
            case = known.get((place.dataset, place.case))
            if case is None:
                raise _mistake(number, f"its {role}, case {place.case!r} of {place.dataset!r}, is not among the cases")
            if (case.dataset, case.patient) in of_training:
                raise _mistake(number, f"its {role} is of patient {case.patient!r}, who is in the training")
            _check_shown(number, episode, role, place, case, superpixels)
        support, query = (known[place.dataset, place.case] for place in (episode.support, episode.query))
        if episode.is_superpixel:
            continue
        if (support.dataset, support.patient) == (query.dataset, query.patient):
            raise _mistake(number, f"support and query are both of patient {query.patient!r}")
        if support.modality != query.modality:
            raise _mistake(number, f"the support is {support.modality or '?'}, the query {query.modality or '?'}")


def _check_shown(
    number: int, episode: Episode, role: str, place: SliceName, case: StoredCase, superpixels: str | None
) -> None:
    """Check that a slice of a case exists and shows the episode's class or superpixel."""
    rows = np.flatnonzero(np.asarray(case.load("slices")) == place.slice)
    if not len(rows):
        raise _mistake(number, f"its {role}, case {place.case!r}, has no slice {place.slice} with a structure")
    if episode.is_superpixel:
        shown = superpixels is not None and bool((case.load(superpixels)[rows[0]] == episode.region).any())
        what = f"superpixel {episode.region}"
    elif episode.name not in case.classes:
        raise _mistake(number, f"class {episode.name!r} is unknown: {place.dataset} has {', '.join(case.classes)}")
    else:
        shown = int(case.load("pixels")[rows[0], 1 + case.classes.index(episode.name)]) > 0
        what = episode.name
    if not shown:
        raise _mistake(number, f"its {role}, slice {place.slice} of case {place.case!r}, shows no {what}")


def _mistake(number: int, what: str) -> UserError:
    return UserError(f"episode {number}: {what}; correct the list of episodes.")
