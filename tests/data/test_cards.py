from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import monai_ext.data.cards as cards
from monai_ext.data.cards import Card, Cuts, Members, Ranges, card_names, load_card
from monai_ext.data.indexing import INDEXERS
from monai_ext.errors import UserError

NAMES = card_names()


@pytest.mark.parametrize("name", NAMES)
def test_every_card_is_valid(name: str) -> None:
    card = load_card(name)
    assert card.citations
    assert card.layout
    assert card.source.how


def test_there_is_a_card_for_every_data_set_of_the_papers() -> None:
    streams = {"colondb", "etis", "cvc_300", "busi", "glas", "retouch"}
    assert set(NAMES) >= streams | {"4d_lung", "cvc_clinicdb", "nsclc_radiomics", "kvasir_seg", "perseg", "acdc"}
    assert set(NAMES) >= {"mscmr", "chaos_t1", "chaos_t2", "ms_cmrseg", "synapse"}


def test_every_indexer_has_its_card() -> None:
    assert set(INDEXERS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_card_names_a_package_registry(name: str) -> None:
    text = json.dumps(load_card(name).model_dump()).lower()
    assert not re.search(r"pypi|pythonhosted|conda|npmjs|artifactory", text)


@pytest.mark.parametrize("name", NAMES)
def test_dois_are_bare(name: str) -> None:
    card = load_card(name)
    dois = [card.source.doi, *(citation.doi for citation in card.citations)]
    assert all(doi is None or re.fullmatch(r"10\.[0-9]{4,}/\S+", doi) for doi in dois)


# Groups


def members_of(name: str, key: str) -> dict[str | int, list[str]]:
    """The names of each group, of all names that the card's set has."""
    card = load_card(name)
    group = card.group(key)
    if isinstance(group, Ranges):
        names = [f"patient{n:03d}" for n in range(1, 700)]
    else:
        assert isinstance(group, Members)
        names = [one for several in group.members.values() for one in several]
    found: dict[str | int, list[str]] = {}
    for one, value in card.assign(key, names).items():
        found.setdefault(value, []).append(one)
    return found


def test_acdc_has_five_folds_of_twenty_and_the_official_split() -> None:
    folds = members_of("acdc", "fold")
    assert [len(folds[k]) for k in range(5)] == [20] * 5
    assert folds[1][0] == "patient021"
    assert {name: len(found) for name, found in members_of("acdc", "split").items()} == {"train": 100, "test": 50}


@pytest.mark.parametrize("name", ["chaos_t1", "chaos_t2"])
def test_chaos_has_five_folds_of_four_by_number(name: str) -> None:
    folds = members_of(name, "fold")
    assert [len(folds[k]) for k in range(5)] == [4] * 5
    numbers = [int(one) for k in range(5) for one in folds[k]]
    assert numbers == sorted(numbers)


def test_mscmr_splits_45_subjects_in_25_5_and_15() -> None:
    splits = members_of("mscmr", "split")
    assert {name: len(found) for name, found in splits.items()} == {"train": 25, "val": 5, "test": 15}
    numbers = sorted(int(one.removeprefix("subject")) for found in splits.values() for one in found)
    assert numbers == list(range(1, 46))


def test_the_29_sequences_of_cvc_clinicdb_cover_612_frames_without_a_gap() -> None:
    group = load_card("cvc_clinicdb").group("sequence")
    assert isinstance(group, Ranges)
    ranges = [group.ranges[str(number)] for number in range(1, 30)]
    assert len(group.ranges) == 29
    assert [n for first, last in ranges for n in range(first, last + 1)] == list(range(1, 613))
    assert sum(last - first + 1 - 3 for first, last in ranges) == 525  # the first three are not scored


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("kvasir_seg", {"train": 800, "val": 100, "test": 100}),
        ("nsclc_radiomics", {"train": 337, "val": 42, "test": 42}),
    ],
)
def test_splits_of_sorted_names_do_not_depend_on_their_order(name: str, sizes: dict[str, int]) -> None:
    names = [f"case{n:04d}" for n in range(sum(sizes.values()))]
    splits = load_card(name).assign("split", names)
    assert splits == load_card(name).assign("split", names[::-1])
    assert {split: list(splits.values()).count(split) for split in sizes} == sizes
    assert splits["case0000"] == "train"
    assert splits[names[-1]] == "test"


def test_an_incomplete_set_is_not_cut() -> None:
    cuts = Cuts(key="split", rule="", kind="cuts", sizes={"train": 2, "test": 1})
    assert cuts.assign(["a", "b"]) == {}


def test_synapse_has_five_folds_of_six() -> None:
    folds = load_card("synapse").assign("fold", [f"{n:04d}" for n in [*range(1, 11), *range(21, 41)]])
    assert sorted(folds.values()) == sorted(list(range(5)) * 6)
    assert folds["0006"] == 0
    assert folds["0007"] == 1


def test_overlapping_groups_are_refused() -> None:
    with pytest.raises(ValidationError, match="overlap"):
        Ranges(key="fold", rule="", kind="ranges", ranges={"0": (1, 20), "1": (20, 40)})
    with pytest.raises(ValidationError, match="two groups"):
        Members(key="split", rule="", kind="members", members={"train": ["a"], "test": ["a"]})


# Mistakes


def raw(name: str = "acdc") -> dict[str, object]:
    return json.loads(load_card(name).model_dump_json())


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Card.model_validate({**raw(), "license": "MIT"})


def test_two_labels_of_one_value_are_refused() -> None:
    with pytest.raises(ValidationError, match="same value"):
        Card.model_validate({**raw(), "labels": {"RV": 1, "LV": 1}})


def test_an_unknown_card_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no data set card 'adcd'; the cards are: .*acdc"):
        load_card("adcd")


def test_a_broken_card_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acdc.json").write_text(json.dumps({**raw(), "dimension": 4}))
    monkeypatch.setattr(cards, "_cards_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"acdc\.json: dimension: .*; correct it"):
        load_card("acdc")


def test_a_card_is_called_as_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(raw()))
    monkeypatch.setattr(cards, "_cards_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="calls itself 'acdc'"):
        load_card("mine")
