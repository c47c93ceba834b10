"""Episodes of few-shot segmentation: a support slice with its mask, and a query slice that holds the same thing.

An episode is a pair of slices; a case stays a volume. Which organs are known (base) and which are not (novel) is said
by name; *Setting 1* lets novel organs stand in the background of training slices, *Setting 2* removes every training
slice that shows any of them (Roy et al. 2020). The field's code for Setting 2 mostly removes only slices that show all
of them, which leaves the novel organ in most slices; here ANY counts, and the number of removed slices is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from monai_ext.data.slice_store import IGNORE, StoredCase
from monai_ext.errors import UserError

EPISODES = ("supervised", "superpixel", "mixed")
"""What an episode's class is: a base class, a superpixel, or either."""

FIRST_SUPERPIXEL = 2**20
"""Numbers of superpixels begin here, above those of all classes."""


@dataclass(frozen=True)
class FewShotTask:
    """Which structures are known and which are not.

    Args:
        base: names of the classes that training knows.
        novel: names of the classes that it does not.
        setting: 1 or 2, see the module.
    """

    base: tuple[str, ...]
    novel: tuple[str, ...]
    setting: int = 1

    @property
    def excluded(self) -> tuple[str, ...]:
        """Classes that no training slice may show."""
        return self.novel if self.setting == 2 else ()


def choose_task(
    known: Sequence[str],
    base: Sequence[str] | str | None = None,
    novel: Sequence[str] | str | None = None,
    setting: int = 1,
    two_class: bool = False,
    episodes: str = "supervised",
) -> FewShotTask:
    """Check the names of the classes against those that the data lists have.

    Args:
        known: names in the data lists.
        base: None: all that are not novel; of superpixels alone none, which learn from no label.
        novel: None: none, as for weights that know all organs at hand.
        setting: 1 or 2.
        two_class: each step draws two classes, so there must be two.
        episodes: one of :data:`EPISODES`; superpixels alone need no base class.

    Raises:
        UserError: for an unknown name, setting or kind, a novel class among the base classes, no base class, or fewer
            than two of them with ``two_class``.

    Example:
        >>> choose_task(["liver", "spleen", "kidney"], novel=["kidney"], setting=2).base
        ('liver', 'spleen')
    """
    if setting not in (1, 2):
        raise UserError(f"--setting {setting} is unknown: choose 1 (novel organs in the background) or 2 (removed).")
    if episodes not in EPISODES:
        raise UserError(f"--episodes {episodes!r} is unknown: choose one of {', '.join(EPISODES)}.")
    unseen = _names(novel)
    unnamed = [] if episodes == "superpixel" else [name for name in known if name not in unseen]
    seen = unnamed if base is None else _names(base)
    for name in (*unseen, *seen):
        if name not in known:
            raise UserError(f"class {name!r} is in no data list: they have {', '.join(known)}.")
    both = [name for name in unseen if name in seen]
    if both:
        raise UserError(f"{both[0]} is novel and among the base classes: leave it out of --base or of --novel.")
    if episodes != "superpixel" and len(seen) < 1 + two_class:
        need = "two base classes, since each step contrasts two" if two_class else "a base class"
        raise UserError(f"the training needs {need}, but has {', '.join(seen) or 'none'}: name more with --base.")
    return FewShotTask(tuple(dict.fromkeys(seen)), tuple(dict.fromkeys(unseen)), setting)


def _names(given: Sequence[str] | str | None) -> list[str]:
    return [] if given is None else [given] if isinstance(given, str) else [str(name) for name in given]


@dataclass(frozen=True, order=True)
class SliceName:
    """One slice of one case.

    Args:
        dataset: of the case.
        case: its name.
        slice: number of the slice in the case, from 0, as the input frame counts them.
    """

    dataset: str
    case: str
    slice: int


@dataclass(frozen=True)
class Episode:
    """A class, where it is shown and where it is asked for.

    Args:
        name: of the class; ``""`` for a superpixel.
        support: the slice whose mask is given.
        query: the slice to segment; for a superpixel the same slice.
        region: number of the superpixel; 0 for a class.
    """

    name: str
    support: SliceName
    query: SliceName
    region: int = 0

    @property
    def is_superpixel(self) -> bool:
        """Whether the class is a superpixel, of which no anatomy is known."""
        return self.region > 0


@dataclass(frozen=True)
class Draw:
    """What one batch of a training is made of.

    Args:
        episodes: one or several.
        seed: of the augmentation.
    """

    episodes: tuple[Episode, ...]
    seed: int


class EpisodePool:
    """The slices that episodes are drawn from, by class.

    Args:
        cases: stored with all their slices, see :func:`monai_ext.data.slice_store.store_slices`.
        classes: names of the base classes.
        excluded: slices that show ANY of these are removed (Setting 2).
        min_pixels: a slice shows a base class if it covers at least so many pixels; an excluded one always.
        superpixels: name that superpixels are stored under; None: there are none.
        superpixels_only: the classes are not drawn from, so nothing is asked of them.

    ``slices`` and ``removed`` count all slices and the removed ones, ``members`` maps each class to its (case, row).

    Raises:
        UserError: no two patients of one data set show a class, no slice holds a superpixel, or none is left.

    Example:
        >>> pool = EpisodePool(cases, ["liver", "spleen"], excluded=["kidney"])
        >>> pool.slices, pool.removed
        (412, 168)
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        classes: Sequence[str],
        excluded: Sequence[str] = (),
        min_pixels: int = 1,
        superpixels: str | None = None,
        superpixels_only: bool = False,
    ) -> None:
        self.cases, self.classes, self.superpixels = list(cases), tuple(classes), superpixels
        self.excluded = tuple(excluded)
        self.members: dict[str, list[tuple[int, int]]] = {name: [] for name in classes}
        self.rows: list[tuple[int, int]] = []
        self.slices = 0
        self.numbers = [np.asarray(case.load("slices")) for case in self.cases]
        for number, case in enumerate(self.cases):
            pixels = np.asarray(case.load("pixels"))
            shown = {name: pixels[:, 1 + k] for k, name in enumerate(case.classes)}
            barred = [shown[name] > 0 for name in excluded if name in shown]
            free = ~np.any(barred, axis=0) if barred else np.ones(len(pixels), bool)
            self.slices += len(pixels)
            self.rows += [(number, int(row)) for row in np.flatnonzero(free)]
            for name in self.members:
                if name in shown:
                    held = np.flatnonzero(free & (shown[name] >= max(1, min_pixels)))
                    self.members[name] += [(number, int(row)) for row in held]
        self.removed = self.slices - len(self.rows)
        self.supports = {} if superpixels_only else {name: self._partners(name) for name in classes}
        self.regions = self._count_regions() if superpixels else []

    def _partners(self, name: str) -> dict[int, list[tuple[int, int]]]:
        """Map each case to the slices that may support a query of it: of other patients, alike in kind."""
        partners = {}
        for number in sorted({number for number, _ in self.members[name]}):
            own = self.cases[number]
            others = [
                place
                for place in self.members[name]
                if self.cases[place[0]].patient != own.patient
                and self.cases[place[0]].dataset == own.dataset
                and self.cases[place[0]].modality == own.modality
            ]
            if others:
                partners[number] = others
        if not partners:
            removed = f" after {self.removed} of {self.slices} slices were removed (Setting 2)" if self.removed else ""
            raise UserError(
                f"no two patients of one data set and modality show {name}{removed}: leave it out of --base, lower "
                "--min_pixels or give more patients."
            )
        self.members[name] = [place for place in self.members[name] if place[0] in partners]
        return partners

    def _count_regions(self) -> list[tuple[int, int, int]]:
        """List (case, row, number of superpixels) of the slices that hold any."""
        counted = []
        maps = {number: self.cases[number].load(str(self.superpixels)) for number in {n for n, _ in self.rows}}
        for number, row in self.rows:
            count = int(maps[number][row].max())
            if count:
                counted.append((number, row, count))
        if not self.rows and self.removed:
            raise UserError(
                f"all {self.slices} training slices were removed, as each shows {' or '.join(self.excluded)} (Setting "
                "2): take --setting 1, or fewer novel classes."
            )
        if not counted:
            raise UserError("no training slice holds a superpixel: lower the smallest size, or raise the largest.")
        return counted

    def name_of(self, place: tuple[int, int]) -> SliceName:
        """Name the slice of a (case, row)."""
        case = self.cases[place[0]]
        return SliceName(case.dataset, case.case, int(self.numbers[place[0]][place[1]]))

    def draw_class(self, rng: np.random.Generator, name: str) -> Episode:
        """Draw a query of a class, and its support from another patient."""
        places = self.members[name]
        query = places[int(rng.integers(len(places)))]
        partners = self.supports[name][query[0]]
        return Episode(name, self.name_of(partners[int(rng.integers(len(partners)))]), self.name_of(query))

    def draw_superpixel(self, rng: np.random.Generator) -> Episode:
        """Draw a slice and one of its superpixels."""
        number, row, count = self.regions[int(rng.integers(len(self.regions)))]
        place = self.name_of((number, row))
        return Episode("", place, place, int(rng.integers(1, count + 1)))

    def draw_two(self, rng: np.random.Generator, superpixel: bool) -> tuple[Episode, Episode]:
        """Draw episodes of two different classes, or of superpixels of two slices where there are two."""
        if superpixel:
            first, second = self.draw_superpixel(rng), self.draw_superpixel(rng)
            while len(self.regions) > 1 and first.query == second.query:
                second = self.draw_superpixel(rng)
            return first, second
        one, other = (self.classes[int(k)] for k in rng.permutation(len(self.classes))[:2])
        return self.draw_class(rng, one), self.draw_class(rng, other)

    def draw(self, rng: np.random.Generator, superpixel: bool) -> Episode:
        """Draw one episode, of a class or of a superpixel."""
        if superpixel:
            return self.draw_superpixel(rng)
        return self.draw_class(rng, self.classes[int(rng.integers(len(self.classes)))])


class EpisodeSampler(Sampler[Draw]):
    """Draws the batches of an epoch; each depends on (seed, epoch, its number) alone, so that a run can be resumed.

    Args:
        pool: what there is.
        length: batches of an epoch.
        episodes: one of :data:`EPISODES`.
        superpixel_share: of ``mixed``.
        two_class: a batch has two episodes, of different classes, for losses that contrast them.
        batch_size: episodes of a batch otherwise, each drawn by itself.
        seed: of all draws.

    Raises:
        UserError: for an unknown kind of episodes, a share outside of 0 to 1, or a batch size that does not fit.
    """

    def __init__(
        self,
        pool: EpisodePool,
        length: int,
        episodes: str = "supervised",
        superpixel_share: float = 0.5,
        two_class: bool = False,
        batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        if episodes not in EPISODES:
            raise UserError(f"--episodes {episodes!r} is unknown: choose one of {', '.join(EPISODES)}.")
        if not 0 <= superpixel_share <= 1:
            raise UserError(f"--superpixel_share is {superpixel_share}: give a share from 0 to 1.")
        if batch_size < 1 or (two_class and batch_size != 1):
            raise UserError(f"--batch_size is {batch_size}: give 1 or more, and 1 where two classes are contrasted.")
        self.share = {"supervised": 0.0, "superpixel": 1.0, "mixed": superpixel_share}[episodes]
        self.pool, self.length, self.seed, self.epoch = pool, length, seed, 0
        self.two_class, self.batch_size = two_class, batch_size

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of ``epoch`` (0, 1, ...)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        for number in range(self.length):
            rng = np.random.default_rng([self.seed, self.epoch, number])
            if self.two_class:
                episodes: tuple[Episode, ...] = self.pool.draw_two(rng, self._is_superpixel(rng))
            else:
                episodes = tuple(self.pool.draw(rng, self._is_superpixel(rng)) for _ in range(self.batch_size))
            yield Draw(episodes, int(rng.integers(2**62)))

    def _is_superpixel(self, rng: np.random.Generator) -> bool:
        return bool(rng.random() < self.share)


Augment = Any
"""(image [B, C, S, S], mask [B, 1, S, S], valid [B, 1, S, S], generator) -> the three; such as ``BatchAugment``."""


class EpisodeDataset(Dataset):
    """Batches of episodes as tensors; a loader takes them as they are (``batch_size=None``).

    >>> loader = DataLoader(EpisodeDataset(cases, 256, classes), sampler=sampler, batch_size=None)  # doctest: +SKIP

    A batch of B episodes holds ``support_image`` and ``query_image`` [B, 3, S, S] float32 in [0, 255], ``support_mask``
    and ``query_mask`` [B, S, S] float32 of 0 and 1, ``support_valid`` and ``query_valid`` [B, S, S] bool, which is
    False in the padding and where nobody knows the class, ``support_size`` and ``query_size`` [B, 2], rows and columns
    of the square that the image fills, ``classes`` [B], a number for each class and each superpixel, and ``supervised``
    [B] bool: of a superpixel no anatomy is known, and a loss that learns which anatomy to expect (APSCL's Eq. 1) is
    switched off for it.

    Args:
        cases: that the episodes name.
        size: side S of the square in pixels; padded at the bottom and right.
        classes: names, numbered from 1.
        superpixels: name that superpixels are stored under.
        augment: of the two slices of an episode, each on its own; None: they stay as they are.
        episodes: frozen ones, one a batch, by number; the batches of a training are :class:`Draw`.
        mirror: probability that a slice of an episode is mirrored along its rows, and that along its columns; each
            slice and axis by itself. The grey values stay whole, so that features of frozen networks can be kept.
        mirror_superpixels: the support of a superpixel, which is the query itself, is mirrored against it along its
            rows, its columns or both, so that its place does not give it away.

    Raises:
        UserError: ``mirror`` is no probability.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        size: int,
        classes: Sequence[str],
        superpixels: str | None = None,
        augment: Augment | None = None,
        episodes: Sequence[Episode] = (),
        mirror: float = 0.0,
        mirror_superpixels: bool = False,
    ) -> None:
        if not 0 <= mirror <= 1:
            raise UserError(f"--mirror is {mirror}: give a probability from 0 to 1.")
        self.size, self.superpixels, self.augment, self.episodes = size, superpixels, augment, list(episodes)
        self.mirror, self.mirror_superpixels = mirror, mirror_superpixels
        self.numbers = {name: number for number, name in enumerate(classes, start=1)}
        self.cases = {(case.dataset, case.case): case for case in cases}
        self._rows = {key: {int(k): row for row, k in enumerate(c.load("slices"))} for key, c in self.cases.items()}
        self._maps: dict[tuple[str, str, str], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, item: Draw | int) -> dict[str, Tensor]:
        draw = item if isinstance(item, Draw) else Draw((self.episodes[item],), item)
        generator = torch.Generator().manual_seed(draw.seed)
        parts = [self._tensors(episode, generator) for episode in draw.episodes]
        batch = {key: torch.stack([part[key] for part in parts]) for key in parts[0]}
        own = FIRST_SUPERPIXEL + draw.seed % 2**40
        numbers = [own + k if e.is_superpixel else self.numbers[e.name] for k, e in enumerate(draw.episodes)]
        known = [not episode.is_superpixel for episode in draw.episodes]
        return {**batch, "classes": torch.tensor(numbers), "supervised": torch.tensor(known)}

    def _tensors(self, episode: Episode, generator: torch.Generator) -> dict[str, Tensor]:
        flips = self._flips(episode, generator)
        places = (episode.support, episode.query)
        slices = [self._slice(episode, place, axes) for place, axes in zip(places, flips, strict=True)]
        image, mask, valid = (torch.stack([one[k] for one in slices]) for k in range(3))
        if self.augment is not None:
            image, mask, valid = _augmented(self.augment, image, mask, valid, generator)
        image = image.expand(-1, 3, -1, -1)
        tensors: dict[str, Tensor] = {}
        for k, (role, place) in enumerate((("support", episode.support), ("query", episode.query))):
            size = self._load(self.cases[place.dataset, place.case], "image").shape[-2:]
            tensors |= {f"{role}_image": image[k], f"{role}_mask": mask[k, 0], f"{role}_valid": valid[k, 0] > 0}
            tensors[f"{role}_size"] = torch.tensor(size)
        return tensors

    def _flips(self, episode: Episode, generator: torch.Generator) -> list[tuple[int, ...]]:
        """Draw the axes along which the support and the query are mirrored."""
        chosen = np.zeros((2, 2), bool)
        if self.mirror:
            chosen = (torch.rand((2, 2), generator=generator) < self.mirror).numpy()
        if self.mirror_superpixels and episode.is_superpixel:
            against = 1 + int(torch.randint(3, (), generator=generator))
            chosen[0] = chosen[1] ^ np.array([bool(against & 1), bool(against & 2)])
        return [tuple(axis - 2 for axis in range(2) if row[axis]) for row in chosen]

    def _slice(self, episode: Episode, place: SliceName, mirrored: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        key = (place.dataset, place.case)
        case, row = self.cases[key], self._rows[key][place.slice]
        image = torch.from_numpy(np.array(self._load(case, "image")[row])).float()
        label = np.asarray(self._load(case, "label")[row])
        if episode.is_superpixel:
            mask, valid = np.asarray(self._load(case, str(self.superpixels))[row]) == episode.region, label >= 0
        else:
            mask, valid = label == 1 + case.classes.index(episode.name), label != IGNORE
        first, second, third = (
            self._square(plane.flip(mirrored) if mirrored else plane) for plane in (image, _plane(mask), _plane(valid))
        )
        return first, second, third

    def _load(self, case: StoredCase, what: str) -> np.ndarray:
        key = (case.dataset, case.case, what)
        if key not in self._maps:
            self._maps[key] = case.load(what)
        return self._maps[key]

    def _square(self, array: Tensor) -> Tensor:
        height, width = array.shape[-2:]
        return torch.nn.functional.pad(array, (0, self.size - width, 0, self.size - height))


def _plane(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None]


def _augmented(
    augment: Augment, image: Tensor, mask: Tensor, valid: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Augment support and query; a slice that lost what it shows at the border stays as it was."""
    new_image, new_mask, new_valid = augment(image, mask, valid, generator)
    kept = (new_mask.flatten(1).any(dim=1) | ~mask.flatten(1).any(dim=1)).view(-1, 1, 1, 1)
    return (
        torch.where(kept, new_image, image),
        torch.where(kept, new_mask, mask),
        torch.where(kept, new_valid, valid),
    )
