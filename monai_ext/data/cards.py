"""Data set cards: what is known of a public data set before it is downloaded, one JSON file each.

A card says where the data set comes from and under which licence, which value each structure has, how the official
download is laid out, and how its cases are grouped (splits, folds, sequences). What could not be confirmed is left
out and named under ``unverified``. The cards lie in ``data_manifests/``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from monai_ext.data.text import read_text
from monai_ext.errors import UserError

_LAST_NUMBER = re.compile(r"([0-9]+)[^0-9]*$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where a data set comes from.

    Args:
        landing_page: the page that describes the data set and leads to the download.
        doi: of the data set itself (not of a paper).
        registration: whether a login, a form or a request is needed; None where it could not be confirmed.
        how: how to get it, in a sentence or two.
    """

    landing_page: str | None
    doi: str | None
    registration: bool | None
    how: str


class Citation(_Strict):
    """A publication to cite.

    Args:
        text: authors, title, where and when.
        doi: its DOI.
    """

    text: str
    doi: str | None


class _Group(_Strict):
    key: Literal["split", "fold", "sequence"]
    rule: str

    def _value(self, name: str) -> str | int:
        return name if self.key == "split" else int(name)


class Ranges(_Group):
    """Groups by the last number in a name.

    Args:
        key: key of a case that holds the group.
        rule: the rule in words and where it comes from.
        ranges: first and last number of each group, both included.
    """

    kind: Literal["ranges"]
    ranges: dict[str, tuple[int, int]]

    @model_validator(mode="after")
    def _are_disjoint(self) -> Ranges:
        ordered = sorted(self.ranges.values())
        if any(first > last for first, last in ordered):
            raise ValueError("a range ends before it begins")
        if any(one[1] >= two[0] for one, two in itertools.pairwise(ordered)):
            raise ValueError("two ranges overlap")
        return self

    def assign(self, names: Collection[str]) -> dict[str, str | int]:
        """Return the group of each name that has one."""
        found = {}
        for name in names:
            match = _LAST_NUMBER.search(name)
            number = int(match[1]) if match else -1
            for group, (first, last) in self.ranges.items():
                if first <= number <= last:
                    found[name] = self._value(group)
        return found


class Members(_Group):
    """Groups by name.

    Args:
        key: key of a case that holds the group.
        rule: the rule in words and where it comes from.
        members: names of each group.
    """

    kind: Literal["members"]
    members: dict[str, list[str]]

    @model_validator(mode="after")
    def _are_disjoint(self) -> Members:
        names = [name for group in self.members.values() for name in group]
        if len(set(names)) < len(names):
            raise ValueError("a name stands in two groups")
        return self

    def assign(self, names: Collection[str]) -> dict[str, str | int]:
        """Return the group of each name that has one."""
        groups = {name: self._value(group) for group, members in self.members.items() for name in members}
        return {name: groups[name] for name in names if name in groups}


class Cuts(_Group):
    """Groups cut from the sorted names, one after the other.

    Names are sorted as text, so that the groups are the same on every file system. They are only made of the
    complete set: a missing case would shift all that follow.

    Args:
        key: key of a case that holds the group.
        rule: the rule in words and where it comes from.
        sizes: number of names in each group, in order.
    """

    kind: Literal["cuts"]
    sizes: dict[str, int]

    def assign(self, names: Collection[str]) -> dict[str, str | int]:
        """Return the group of each name; none unless there are exactly as many names as the sizes add up to."""
        distinct = sorted(set(names))
        groups = [self._value(group) for group, size in self.sizes.items() for _ in range(size)]
        return dict(zip(distinct, groups, strict=True)) if len(distinct) == len(groups) else {}


class Folders(_Group):
    """Groups by the folder of the download.

    Args:
        key: key of a case that holds the group.
        rule: the rule in words and where it comes from.
        folders: folder (or, where all lie in one, beginning of the file's name) of each group.
    """

    kind: Literal["folders"]
    folders: dict[str, str]

    def assign(self, names: Collection[str]) -> dict[str, str | int]:
        """Return the group of each folder that has one."""
        groups = {folder: self._value(group) for group, folder in self.folders.items()}
        return {name: groups[name] for name in names if name in groups}


Group: TypeAlias = Annotated[Ranges | Members | Cuts | Folders, Field(discriminator="kind")]


class Card(_Strict):
    """What is known of a data set.

    Args:
        name: as the command line calls it, and the file's name.
        title: as people call it.
        dataset: as data lists and the records of weights call it.
        source: where it comes from.
        licence: SPDX identifier where there is one, else in words.
        citations: what to cite.
        modality: as data lists name it: "MR", "CT", "endoscopy" ...
        dimension: 2 for pictures, 3 for volumes.
        labels: value of each structure in the data list that indexing writes.
        ignore: value that is neither structure nor background (the unlabelled part of scribbles).
        grey_ranges: first and last grey value of each structure in the download, where it is not the label's value.
        roi_names: regular expression that finds each structure's ROI or segment by name (DICOM).
        layout: patterns (as of ``Path.glob``) below the root of the download, by what they find.
        groups: splits, folds and sequences.
        size: numbers of patients, cases, ...
        traps: what is known to go wrong.
        unverified: what could not be confirmed.
    """

    name: str
    title: str
    dataset: str
    source: Source
    licence: str
    citations: list[Citation] = Field(min_length=1)
    modality: str
    dimension: Literal[2, 3]
    labels: dict[str, Annotated[int, Field(gt=0)]] = Field(min_length=1)
    ignore: int | None = None
    grey_ranges: dict[str, tuple[int, int]] | None = None
    roi_names: dict[str, str] | None = None
    layout: dict[str, list[str]]
    groups: list[Group] = []
    size: dict[str, int | None]
    traps: list[str]
    unverified: list[str]

    @model_validator(mode="after")
    def _labels_fit(self) -> Card:
        values = [*self.labels.values(), *([] if self.ignore is None else [self.ignore])]
        if len(set(values)) < len(values):
            raise ValueError("two labels have the same value")
        for named in (self.grey_ranges, self.roi_names):
            if named is not None and set(named) - set(self.labels):
                raise ValueError("a structure is described that is not in labels")
        return self

    def group(self, key: str) -> Ranges | Members | Cuts | Folders | None:
        """Return the groups stored under a key: "split", "fold" or "sequence"; None where the set has none."""
        return next((group for group in self.groups if group.key == key), None)

    def assign(self, key: str, names: Iterable[str]) -> dict[str, str | int]:
        """Return the group of each name that has one: see the kinds of groups."""
        group = self.group(key)
        return {} if group is None else group.assign(list(names))


def card_names() -> list[str]:
    """Return the names of all cards, sorted."""
    return sorted(path.stem for path in _cards_folder().glob("*.json"))


def load_card(name: str) -> Card:
    """Read the card of a data set.

    Raises:
        UserError: there is none of this name, or it is not valid.
    """
    path = _cards_folder() / f"{name}.json"
    if name not in card_names():
        raise UserError(f"there is no data set card {name!r}; the cards are: {', '.join(card_names())}")
    try:
        card = Card.model_validate_json(read_text(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the card"
        raise UserError(f"{path}: {where}: {first['msg']}; correct it") from error
    if card.name != name:
        raise UserError(f"{path}: the card calls itself {card.name!r}; name it as the file")
    return card


def find_card(dataset: str | None) -> Card | None:
    """Return the card whose cases are known as ``dataset`` in data lists and weight records, if there is one."""
    cards = (load_card(name) for name in card_names())
    return next((card for card in cards if card.dataset == dataset), None)


def _cards_folder() -> Path:
    """Find the cards in the package (a wheel) or beside it (a clone)."""
    package = Path(__file__).parents[1]
    folders = (package / "data_manifests", package.parent / "data_manifests")
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise UserError(f"the data set cards are in none of {', '.join(map(str, folders))}; install monai-ext again")
    return folder
