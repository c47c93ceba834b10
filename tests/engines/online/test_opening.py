"""Tests of monai_ext.engines.online.opening."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from monai_ext.engines.online import OnlineLearner
from monai_ext.engines.online.opening import open_learners, refuse_other_prompts
from monai_ext.errors import UserError


@pytest.mark.parametrize("names", [("left kidney", "left_kidney"), ("a/b", "a\\b"), ("..",), (" ",)])
def test_structures_that_would_share_a_folder_are_refused(names, tmp_path) -> None:
    labels = {name: value for value, name in enumerate(names, start=1)}
    with pytest.raises(UserError, match="learned in a folder of its name"):
        open_learners(labels, tmp_path, cast(Any, SimpleNamespace(device="cpu")), "sam", {}, "mean_crop")
    assert not list(tmp_path.iterdir())


def test_each_structure_has_a_folder(tmp_path) -> None:
    labels = {"left kidney": 1, "Leber/2": 2, "\u5fc3": 3}
    open_learners(labels, tmp_path, cast(Any, SimpleNamespace(device="cpu")), "sam", {}, "mean_crop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Leber_2", "left_kidney", "\u5fc3"]


@pytest.fixture
def taught(make_object, make_method, tmp_path) -> OnlineLearner:
    """A learner that answers what it was taught: one point, and one box that was taken back."""
    learner = OnlineLearner(make_method(), tmp_path)
    for number, prompt in enumerate(({"points": [[20.0, 20.0, 1.0]]}, {"box": [9.0, 9.0, 30.0, 30.0], "points": []})):
        view, truth = make_object(number)
        learner.correct(learner.infer(replace(view, prompt=prompt)), truth)
    assert learner.taught_with == {"points", "box"}
    learner.undo()
    return OnlineLearner(make_method(), tmp_path, frozen=True)


def test_prompts_of_another_kind_than_taught_are_refused(taught) -> None:
    assert taught.taught_with == {"points"}
    cases = [{"case": "a", "box": "", "points": [20, 20]}, {"case": "b", "box": [1, 1, 5, 5], "points": ""}]
    refuse_other_prompts({"lesion": taught}, cases[:1])
    with pytest.raises(UserError, match="case 'b' is prompted by a box, but 'lesion' was taught with points"):
        refuse_other_prompts({"lesion": taught}, cases)
    refuse_other_prompts({"lesion": taught}, cases, allow=True)


def test_a_learner_that_knows_nothing_takes_any_prompt(make_method) -> None:
    refuse_other_prompts({"lesion": OnlineLearner(make_method(), frozen=True)}, [{"case": "a", "points": [20, 20]}])
