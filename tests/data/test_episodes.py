"""Tests of monai_ext.data.episodes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from few_shot_cases import SIDE, few_shot_case, few_shot_cases
from monai_ext.data.episodes import (
    FIRST_SUPERPIXEL,
    Draw,
    Episode,
    EpisodeDataset,
    EpisodePool,
    EpisodeSampler,
    SliceName,
    choose_task,
)
from monai_ext.data.slice_store import IGNORE
from monai_ext.data.superpixels import Superpixels, store_superpixels
from monai_ext.errors import UserError
from monai_ext.transforms.augment import BatchAugment

KNOWN = ["liver", "kidney", "spleen"]
CUT = Superpixels(smallest=0.03, largest=0.5)


@pytest.fixture
def cases(tmp_path):
    cases = few_shot_cases(tmp_path)
    store_superpixels(cases, CUT)
    return cases


def names(pool: EpisodePool, organ: str) -> list[tuple[str, int]]:
    return [(pool.name_of(place).case, pool.name_of(place).slice) for place in pool.members[organ]]


def test_what_is_not_novel_is_base() -> None:
    task = choose_task(KNOWN, novel="spleen", setting=2)
    assert (task.base, task.novel, task.excluded) == (("liver", "kidney"), ("spleen",), ("spleen",))
    assert choose_task(KNOWN, novel=["spleen"]).excluded == ()
    assert choose_task(KNOWN, ["kidney"], ["spleen", "liver"]).base == ("kidney",)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"novel": "heart"}, "class 'heart' is in no data list: they have liver, kidney, spleen"),
        ({"base": ["liver", "heart"]}, "class 'heart' is in no data list"),
        ({"base": ["liver", "spleen"], "novel": "spleen"}, "spleen is novel and among the base classes"),
        ({"base": "liver", "two_class": True}, "the training needs two base classes, .* but has liver"),
        ({"novel": KNOWN}, "the training needs a base class, but has none"),
        ({"setting": 3}, "--setting 3 is unknown"),
        ({"episodes": "all"}, "--episodes 'all' is unknown: choose one of supervised, superpixel, mixed"),
    ],
)
def test_mistakes_of_a_task(options, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        choose_task(KNOWN, **options)


def test_superpixels_alone_need_no_base_class() -> None:
    assert choose_task(KNOWN, novel=KNOWN, episodes="superpixel", two_class=True).base == ()
    assert choose_task(KNOWN, novel="spleen", episodes="superpixel").base == ()
    assert choose_task(KNOWN, ["liver"], episodes="superpixel").base == ("liver",)
    assert choose_task(KNOWN, novel="spleen", episodes="mixed").base == ("liver", "kidney")


def test_setting_1_removes_nothing(cases) -> None:
    pool = EpisodePool(cases, ["liver", "kidney"])
    assert (pool.slices, pool.removed) == (9, 0)


def test_any_excluded_organ_removes_a_slice(cases) -> None:
    pool = EpisodePool(cases, ["liver"], ["kidney", "spleen"], min_pixels=1)
    slices = {
        (case.case, int(k)): row
        for case in cases
        for k, row in zip(case.load("slices"), case.load("pixels"), strict=True)
    }
    expected = {name for name, row in slices.items() if not row[2] and not row[3]}
    left = {(pool.name_of(place).case, pool.name_of(place).slice) for place in pool.rows}
    assert left == expected
    assert pool.removed == len(slices) - len(expected) == 5  # those of both organs would be one
    assert names(pool, "liver") == [("a", 1), ("b", 5)]


def test_a_class_needs_so_many_pixels_but_one_excludes(tmp_path) -> None:
    cases = [few_shot_case(tmp_path, name, [("liver",), ("liver", "kidney")]) for name in "ab"]
    for case in cases:
        pixels = np.array(case.load("pixels"))
        pixels[0, 1], pixels[1, 2] = 9, 1
        np.save(f"{case.stem}_pixels.npy", pixels)
    assert names(EpisodePool(cases, ["liver"], min_pixels=10), "liver") == [("a", 1), ("b", 1)]
    assert names(EpisodePool(cases, ["liver"], ["kidney"], min_pixels=9), "liver") == [("a", 0), ("b", 0)]


def test_setting_2_that_leaves_no_slice_is_told(tmp_path) -> None:
    cases = [few_shot_case(tmp_path, name, [("liver", "kidney")]) for name in "ab"]
    store_superpixels(cases, CUT)
    with pytest.raises(UserError, match=r"all 2 training slices were removed, as each shows kidney .*--setting 1"):
        EpisodePool(cases, [], ["kidney"], superpixels=CUT.name, superpixels_only=True)


def test_a_class_of_one_patient_is_refused(cases) -> None:
    with pytest.raises(UserError, match="no two patients of one data set and modality show spleen"):
        EpisodePool([cases[0], cases[2]], ["spleen"], min_pixels=1)
    with pytest.raises(UserError, match="show spleen after 4 of 9 slices were removed"):
        EpisodePool(cases, ["spleen"], ["kidney"], min_pixels=1)


def test_supports_are_of_another_patient_of_the_same_kind(tmp_path) -> None:
    both = [("liver",), ("liver",)]
    cases = [
        few_shot_case(tmp_path, "a0", both, patient="a"),
        few_shot_case(tmp_path, "a1", both, patient="a"),
        few_shot_case(tmp_path, "b", both),
        few_shot_case(tmp_path, "c", both, modality="CT"),
        few_shot_case(tmp_path, "d", both, dataset="Other"),
        few_shot_case(tmp_path, "e", both, dataset="Other"),
    ]
    pool = EpisodePool(cases, ["liver"])
    found = {case.case: case for case in cases}
    rng = np.random.default_rng(0)
    drawn = [pool.draw_class(rng, "liver") for _ in range(300)]
    for episode in drawn:
        support, query = found[episode.support.case], found[episode.query.case]
        assert support.patient != query.patient
        assert (support.dataset, support.modality) == (query.dataset, query.modality)
    assert {episode.query.case for episode in drawn} == {"a0", "a1", "b", "d", "e"}


def test_draws_depend_on_seed_epoch_and_number_alone(cases) -> None:
    pool = EpisodePool(cases, ["liver", "kidney"], superpixels=CUT.name)

    def draw(epoch: int, length: int, **options: object) -> list[Draw]:
        sampler = EpisodeSampler(pool, length, "mixed", two_class=True, **options)
        list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(3, 10) == draw(3, 20)[:10]
    assert draw(3, 10) != draw(4, 10)
    assert draw(3, 10) != draw(3, 10, seed=1)


def test_kinds_of_episodes(cases) -> None:
    pool = EpisodePool(cases, ["liver", "kidney"], superpixels=CUT.name)

    def share(kind: str, **options: float) -> float:
        drawn = list(EpisodeSampler(pool, 400, kind, **options))
        return sum(draw.episodes[0].is_superpixel for draw in drawn) / len(drawn)

    assert (share("supervised"), share("superpixel")) == (0, 1)
    assert share("mixed", superpixel_share=0.3) == pytest.approx(0.3, abs=0.07)
    with pytest.raises(UserError, match=r"--superpixel_share is 1\.5"):
        EpisodeSampler(pool, 1, "mixed", superpixel_share=1.5)


def test_two_classes_are_different_and_all_come(cases) -> None:
    pool = EpisodePool(cases, ["liver", "kidney", "spleen"], superpixels=CUT.name)
    draws = list(EpisodeSampler(pool, 200, "mixed", two_class=True))
    pairs = Counter(tuple(e.name for e in draw.episodes) for draw in draws if not draw.episodes[0].is_superpixel)
    assert len(pairs) == 6
    for draw in draws:
        one, other = draw.episodes
        assert one.is_superpixel == other.is_superpixel
        assert one.query != other.query if one.is_superpixel else one.name != other.name
    with pytest.raises(UserError, match="--batch_size is 2: give 1 or more, and 1 where two classes"):
        EpisodeSampler(pool, 1, two_class=True, batch_size=2)


def test_tensors_of_a_class(cases) -> None:
    episode = Episode("kidney", SliceName("Toy", "a", 2), SliceName("Toy", "b", 7))
    dataset = EpisodeDataset(cases, 40, ["liver", "kidney"], episodes=[episode])
    batch = dataset[0]
    assert batch["support_image"].shape == (1, 3, 40, 40)
    for role, case, row in (("support", cases[0], 2), ("query", cases[1], 2)):
        image = torch.from_numpy(np.array(case.load("image")[row])).float()
        assert torch.equal(batch[f"{role}_image"][0, :, :SIDE, :SIDE], image.expand(3, -1, -1))
        mask = torch.from_numpy(case.load("label")[row] == 2)
        assert torch.equal(batch[f"{role}_mask"][0, :SIDE, :SIDE], mask.float())
        assert batch[f"{role}_mask"].sum() == mask.sum() == 64
        assert batch[f"{role}_valid"].sum() == SIDE * SIDE  # the padding is not
    assert batch["classes"].tolist() == [2]
    assert batch["supervised"].tolist() == [True]


def test_pixels_of_no_known_class_are_not_valid(cases) -> None:
    label = np.array(cases[0].load("label"))
    label[2, 20:22] = IGNORE
    np.save(f"{cases[0].stem}_label.npy", label)
    episode = Episode("kidney", SliceName("Toy", "a", 2), SliceName("Toy", "b", 7))
    batch = EpisodeDataset(cases, SIDE, ["kidney"], episodes=[episode])[0]
    assert batch["support_valid"][0].sum() == SIDE * (SIDE - 2)
    assert not batch["support_valid"][0, 20:22].any()


def test_superpixels_say_that_no_anatomy_is_known(cases) -> None:
    pool = EpisodePool(cases, ["liver"], superpixels=CUT.name)
    sampler = EpisodeSampler(pool, 6, "superpixel", two_class=True)
    augment = BatchAugment(rotation=20, scale=(0.9, 1.1))
    dataset = EpisodeDataset(cases, SIDE, ["liver"], CUT.name, augment)
    for batch in DataLoader(dataset, sampler=sampler, batch_size=None):
        assert batch["supervised"].tolist() == [False, False]
        assert batch["classes"][0] != batch["classes"][1]
        assert (batch["classes"] >= FIRST_SUPERPIXEL).all()
        assert (batch["support_mask"].flatten(1).sum(1) > 0).all()
        assert (batch["query_mask"].flatten(1).sum(1) > 0).all()
        assert not torch.equal(batch["support_image"], batch["query_image"])  # two augmentations of one slice


def test_the_augmentation_of_an_item_is_its_own(cases) -> None:
    pool = EpisodePool(cases, ["liver", "kidney"])
    draws = list(EpisodeSampler(pool, 3, two_class=True))
    dataset = EpisodeDataset(cases, SIDE, ["liver", "kidney"], augment=BatchAugment(elastic=4.0))
    first = dataset[draws[1]]
    dataset[draws[0]]
    again = dataset[draws[1]]
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_structure_that_leaves_the_slice_keeps_it_as_it_was(cases) -> None:
    def away(image, mask, valid, generator):
        return image + 1, mask * 0, valid * 0

    episode = Episode("liver", SliceName("Toy", "a", 1), SliceName("Toy", "b", 5))
    plain, moved = (EpisodeDataset(cases, SIDE, ["liver"], None, a, [episode])[0] for a in (None, away))
    assert all(torch.equal(plain[key], moved[key]) for key in plain)


WAYS: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))


def way(image: torch.Tensor, other: torch.Tensor) -> tuple[int, ...]:
    """Return the axes along which ``other`` was mirrored to give ``image``."""
    (found,) = (axes for axes in WAYS if torch.equal(image, other.flip(axes)))
    return found


def test_each_slice_is_mirrored_by_itself_and_its_mask_with_it(cases) -> None:
    episodes = [Episode("liver", SliceName("Toy", "a", 1), SliceName("Toy", "b", 5))] * 40
    plain = EpisodeDataset(cases, SIDE, ["liver"], episodes=episodes)[0]
    mirrored = EpisodeDataset(cases, SIDE, ["liver"], episodes=episodes, mirror=0.5)
    ways: dict[str, set[tuple[int, ...]]] = {"support": set(), "query": set()}
    for number in range(len(episodes)):
        batch = mirrored[number]
        for role, seen in ways.items():
            axes = way(batch[f"{role}_image"], plain[f"{role}_image"])
            assert torch.equal(batch[f"{role}_mask"], plain[f"{role}_mask"].flip(axes))
            assert torch.equal(batch[f"{role}_valid"], plain[f"{role}_valid"].flip(axes))
            seen.add(axes)
    assert all(len(seen) == 4 for seen in ways.values())


def test_a_mirrored_slice_stays_in_its_corner_of_the_square(cases) -> None:
    episode = Episode("liver", SliceName("Toy", "a", 1), SliceName("Toy", "b", 5))
    padded = EpisodeDataset(cases, SIDE + 8, ["liver"], episodes=[episode], mirror=1.0)[0]
    plain = EpisodeDataset(cases, SIDE, ["liver"], episodes=[episode])[0]
    assert padded["query_size"].tolist() == [[SIDE, SIDE]]
    assert torch.equal(padded["query_image"][..., :SIDE, :SIDE], plain["query_image"].flip((-2, -1)))
    assert not padded["query_valid"][:, SIDE:].any()
    assert not padded["query_valid"][..., SIDE:].any()


@pytest.mark.parametrize("mirror", [0.0, 0.5])
def test_the_support_of_a_superpixel_is_mirrored_against_its_query(cases, mirror) -> None:
    pool = EpisodePool(cases, ["liver"], superpixels=CUT.name)
    dataset = EpisodeDataset(cases, SIDE, ["liver"], CUT.name, mirror=mirror, mirror_superpixels=True)
    ways = set()
    for draw in EpisodeSampler(pool, 40, "superpixel"):
        batch = dataset[draw]
        axes = way(batch["support_image"][0], batch["query_image"][0])
        assert torch.equal(batch["support_mask"][0], batch["query_mask"][0].flip(axes))
        ways.add(axes)
    assert ways == set(WAYS[1:])  # never the query as it is


def test_mirroring_needs_a_probability(cases) -> None:
    with pytest.raises(UserError, match="--mirror is 2: give a probability from 0 to 1"):
        EpisodeDataset(cases, SIDE, ["liver"], mirror=2)
