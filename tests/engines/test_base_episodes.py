"""Tests of monai_ext.engines.episode_training for methods without superpixels: which SAM may serve, frozen episodes."""

from __future__ import annotations

import pytest

from few_shot_cases import few_shot_cases
from monai_ext.data.episode_lists import read_episodes, write_episodes
from monai_ext.data.episodes import Episode, FewShotTask, SliceName
from monai_ext.data.manifest import DataList
from monai_ext.data.provenance import TrainingData, WeightRecord, write_record
from monai_ext.engines.episode_training import check_sam, validation_episodes
from monai_ext.errors import UserError

TASK = FewShotTask(base=("liver", "spleen"), novel=("kidney",))


def test_a_sam_that_saw_dense_masks_of_a_data_set_is_refused(tmp_path):
    lists = [DataList(dataset=name, labels={"x": 1}, cases=[]) for name in ("Other", "Toy")]
    weights = tmp_path / "sam.pt"
    check_sam(weights, lists)  # no record, nothing to hold against it
    seen = TrainingData(dataset="toy", patients=[], labels="dense", licence="none")
    fields = {"name": "w", "variant": "v", "command": "none", "licence": "none", "sha256": ""}
    write_record(weights, WeightRecord(datasets=[seen], **fields))
    with pytest.raises(UserError, match="--allow_dense_sam true"):
        check_sam(weights, lists)
    check_sam(weights, lists, allow_dense=True)
    check_sam(weights, lists[:1])


def test_episodes_ask_for_base_classes_that_two_patients_show(tmp_path):
    cases = few_shot_cases(tmp_path)
    episodes = validation_episodes(cases, TASK, 1, None, 9, 0, tmp_path / "list.json")
    assert len(episodes) == 9
    assert {episode.name for episode in episodes} == {"liver", "spleen"}
    assert all(episode.support.case != episode.query.case for episode in episodes)
    assert read_episodes(tmp_path / "list.json") == episodes
    assert validation_episodes(cases, TASK, 1, None, 9, 0, tmp_path / "list.json") == episodes
    assert validation_episodes([], TASK, 1, None, 9, 0, tmp_path / "none.json") == []
    assert not (tmp_path / "none.json").exists()


def test_a_class_that_one_patient_shows_is_left_out_and_none_at_all_is_an_error(tmp_path):
    cases = few_shot_cases(tmp_path)
    shown = validation_episodes([cases[0], cases[2]], TASK, 1, None, 4, 0, tmp_path / "list.json")
    assert {episode.name for episode in shown} == {"liver"}
    with pytest.raises(UserError, match=r"no two validation patients .* show liver or spleen: name others"):
        validation_episodes(cases[:1], TASK, 1, None, 4, 0, tmp_path / "one.json")


def test_a_given_list_is_checked(tmp_path):
    cases = few_shot_cases(tmp_path)
    places = SliceName("Toy", "a", 1), SliceName("Toy", "b", 5)

    def given(name, support, query, trained=()):
        write_episodes(tmp_path / "given.json", [Episode(name, support, query)])
        return validation_episodes(cases, TASK, 1, None, 5, 0, tmp_path / "kept.json", tmp_path / "given.json", trained)

    assert given("liver", *places) == read_episodes(tmp_path / "kept.json")
    with pytest.raises(UserError, match="'kidney', which is no base class"):
        given("kidney", SliceName("Toy", "a", 2), SliceName("Toy", "b", 7))
    with pytest.raises(UserError, match="who is in the training"):
        given("liver", *places, trained=[{"dataset": "Toy", "patient": "b"}])
