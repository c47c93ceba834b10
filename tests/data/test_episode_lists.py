"""Tests of monai_ext.data.episode_lists."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from few_shot_cases import few_shot_case, few_shot_cases
from monai_ext.data.episode_lists import check_episodes, draw_episodes, read_episodes, write_episodes
from monai_ext.data.episodes import Episode, EpisodePool, SliceName
from monai_ext.data.superpixels import Superpixels, store_superpixels
from monai_ext.errors import UserError

CUT = Superpixels(smallest=0.03, largest=0.5)
LIVER = Episode("liver", SliceName("Toy", "a", 1), SliceName("Toy", "b", 5))


@pytest.fixture
def cases(tmp_path):
    cases = few_shot_cases(tmp_path)
    store_superpixels(cases, CUT)
    return cases


def test_what_is_written_is_read(cases, tmp_path) -> None:
    pool = EpisodePool(cases, ["liver", "kidney"], superpixels=CUT.name)
    episodes = draw_episodes(pool, 5, seed=3, superpixels=2)
    assert [e.name for e in episodes] == ["liver", "kidney", "liver", "kidney", "liver", "", ""]
    assert episodes == draw_episodes(pool, 5, seed=3, superpixels=2)
    write_episodes(tmp_path / "list.json", episodes, seed=3)
    assert read_episodes(tmp_path / "list.json") == episodes
    assert json.loads((tmp_path / "list.json").read_text())["seed"] == 3
    check_episodes(episodes, cases, superpixels=CUT.name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"episodes": []}', "the list of episodes is empty"),
        ("[", "the list of episodes is not JSON"),
        ("{}", "the list, key 'episodes': field required"),
        ('{"episodes": [{"class": "liver", "query": {"dataset": "T", "case": "a", "slice": 1}}]}', "0, key 'support'"),
        ('{"episodes": [{"class": "liver", "support": {"dataset": "T", "case": "a", "slice": 1}}]}', "0, key 'query'"),
        (
            '{"episodes": [{"support": {"dataset": "T", "case": "a", "slice": 1}, '
            '"query": {"dataset": "T", "case": "a", "slice": 1}}]}',
            "episode 0 needs either a 'class' or a 'region'",
        ),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, text, sentence) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_episodes(tmp_path / "list.json")


def test_a_missing_list_and_an_empty_one(tmp_path) -> None:
    with pytest.raises(UserError, match="the list of episodes cannot be read"):
        read_episodes(tmp_path / "none.json")
    with pytest.raises(UserError, match="there is no episode to write"):
        write_episodes(tmp_path / "list.json", [])
    assert not list(tmp_path.glob("*list*"))
    with pytest.raises(UserError, match="the list of episodes is empty"):
        check_episodes([], [])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "heart"}, "class 'heart' is unknown: Toy has liver, kidney, spleen"),
        ({"support": SliceName("Toy", "z", 1)}, "its support, case 'z' of 'Toy', is not among the cases"),
        ({"query": SliceName("Toy", "b", 0)}, "its query, case 'b', has no slice 0"),
        ({"query": SliceName("Toy", "b", 7)}, "its query, slice 7 of case 'b', shows no liver"),
        ({"support": SliceName("Toy", "a", 0)}, "its support, slice 0 of case 'a', shows no liver"),
        ({"query": SliceName("Toy", "a", 2)}, "support and query are both of patient 'a'"),
        ({"query": SliceName("Toy", "d", 0)}, "the support is MR, the query CT"),
        ({"name": "", "region": 200}, "shows no superpixel 200"),
    ],
)
def test_episodes_that_do_not_fit(cases, tmp_path, change, sentence) -> None:
    cases.append(few_shot_case(tmp_path, "d", [("liver",)], modality="CT"))
    check_episodes([LIVER], cases)
    with pytest.raises(UserError, match=f"episode 1: .*{sentence}"):
        check_episodes([LIVER, replace(LIVER, **change)], cases, superpixels=CUT.name)


@pytest.mark.parametrize(("patient", "role"), [("a", "support"), ("b", "query")])
def test_patients_of_the_training_are_refused(cases, patient, role) -> None:
    with pytest.raises(UserError, match=f"episode 0: its {role} is of patient '{patient}', who is in the training"):
        check_episodes([LIVER], cases, [("Toy", patient)])
    check_episodes([LIVER], cases, [("Other", patient)])
