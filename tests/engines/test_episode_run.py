"""Methods on frozen episodes: the right slices, masks and counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from few_shot_cases import SIDE, few_shot_cases
from monai_ext.data.episode_lists import read_episodes, write_episodes
from monai_ext.data.episodes import Episode, SliceName
from monai_ext.data.manifest import Case, DataList
from monai_ext.data.slice_store import IGNORE
from monai_ext.engines.episode_run import STRUCTURE, StoredSlices, choose_items, frozen_episodes, run_episodes
from monai_ext.errors import UserError
from monai_ext.inferers.reference import ReferenceLoader
from monai_ext.inferers.reference_inferer import ReferenceInferer, SliceResult

EPISODES = [
    Episode("kidney", SliceName("Toy", "b", 7), SliceName("Toy", "a", 2)),
    Episode("liver", SliceName("Toy", "b", 5), SliceName("Toy", "a", 2)),
]


class CopyReference(ReferenceInferer):
    """Copies the reference's mask without its first column, and notes what it saw."""

    def segment_slice(self, network, target, matched, **extra):
        (one,) = matched
        mask = (one.label == 1).float() * 2 - 1
        mask[:, mask.amax(dim=0).gt(0).nonzero()[0]] = -1
        self.seen = (target.image, one.reference.image.as_tensor()[..., one.index], one.label)
        return [SliceResult(mask, "ok", {"features": {"distance": 0.5}})]


@pytest.fixture
def cases(tmp_path):
    return few_shot_cases(tmp_path)


@pytest.fixture
def slices(cases):
    return StoredSlices(cases)


def test_a_method_sees_the_support_s_slice_and_mask_and_the_query_s_slice_alone(cases, slices):
    inferer = CopyReference(STRUCTURE, ReferenceLoader(slices, STRUCTURE), "relative")
    (outcome,) = run_episodes(inferer, None, slices, EPISODES[:1])
    query, support, label = inferer.seen
    np.testing.assert_array_equal(query[0], cases[0].load("image")[2, 0])
    np.testing.assert_array_equal(support[0], cases[1].load("image")[2, 0])
    np.testing.assert_array_equal(label, cases[1].load("label")[2] == 2)
    assert outcome.counts == (7 * 8, 0, 8, SIDE**2 - 64), "the kidney is at the same place in all"
    assert outcome.dice == pytest.approx(2 * 56 / (56 + 64))
    assert (outcome.patient, outcome.status, outcome.features["distance"]) == ("a", "ok", 0.5)
    assert "certainty" in outcome.features


def test_each_episode_has_its_own_structure(slices):
    inferer = CopyReference(STRUCTURE, ReferenceLoader(slices, STRUCTURE), "position")
    assert [outcome.counts[0] for outcome in run_episodes(inferer, None, slices, EPISODES)] == [56, 56]


def test_pixels_whose_class_is_not_known_do_not_count(cases, slices):
    label = np.array(cases[0].load("label"))
    label[2, 20:] = IGNORE
    np.save(f"{cases[0].stem}_label.npy", label)
    inferer = CopyReference(STRUCTURE, ReferenceLoader(slices, STRUCTURE), "relative")
    (outcome,) = run_episodes(inferer, None, StoredSlices(cases), EPISODES[:1])
    assert sum(outcome.counts) == 20 * SIDE


def test_episodes_are_drawn_written_and_taken_again(cases, tmp_path):
    drawn = frozen_episodes(cases, ["liver", "spleen"], 1, 6, 0, tmp_path / "list.json")
    assert [episode.name for episode in drawn] == ["liver", "spleen"] * 3
    assert frozen_episodes(cases, ["liver", "spleen"], 1, 99, 5, tmp_path / "b.json", tmp_path / "list.json") == drawn
    assert read_episodes(tmp_path / "b.json") == drawn
    write_episodes(tmp_path / "list.json", EPISODES)
    with pytest.raises(UserError, match="episode 1 asks for 'liver', which --classes does not name"):
        frozen_episodes(cases, ["kidney"], 1, 6, 0, tmp_path / "c.json", tmp_path / "list.json")
    write_episodes(tmp_path / "list.json", [Episode("liver", SliceName("Toy", "a", 1), SliceName("Toy", "a", 2))])
    with pytest.raises(UserError, match="both of patient 'a'"):
        frozen_episodes(cases, ["liver"], 1, 6, 0, tmp_path / "c.json", tmp_path / "list.json")
    write_episodes(tmp_path / "list.json", [Episode("", EPISODES[0].query, EPISODES[0].query, region=1)])
    with pytest.raises(UserError, match="episode 0 asks for a superpixel, which --classes does not name"):
        frozen_episodes(cases, ["liver"], 1, 6, 0, tmp_path / "c.json", tmp_path / "list.json")


def test_patients_are_those_named_or_of_the_fold():
    def patient(number: int, label: str | None = "l.nii") -> Case:
        return Case(case=f"c{number}", patient=f"p{number}", image="i.nii", label=label, fold=number // 2)

    lists = [DataList(dataset="Toy", modality="MR", labels={"x": 1}, cases=[patient(n) for n in range(4)])]
    lists[0].cases.append(patient(5, None))
    assert [item["patient"] for item in choose_items(lists)] == ["p0", "p1", "p2", "p3"]
    assert [item["patient"] for item in choose_items(lists, 1)] == ["p2", "p3"]
    assert [item["patient"] for item in choose_items(lists, 1, ["p0", "p3"])] == ["p0", "p3"]
    with pytest.raises(UserError, match="patient 'p5' has no labelled case"):
        choose_items(lists, None, "p5")
    with pytest.raises(UserError, match="no labelled case is left"):
        choose_items(lists, 2)


def test_a_frame_has_its_place_and_no_scanner_coordinates(slices):
    image, mask, valid = slices.load("kidney", SliceName("Toy", "b", 7))
    assert tuple(image.shape) == (1, SIDE, SIDE, 1)
    assert mask.dtype == valid.dtype == torch.bool
    assert image.meta["filename_or_obj"] == "b:7"
