"""Cases one after the other: what is asked, what is answered, what is learned."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_ext.errors import UserError
from monai_ext.inferers.online import OnlineInferer
from monai_ext.inferers.reference_inferer import BACKGROUND
from monai_ext.inferers.simulated_user import Expert, TruthPrompts


class Recorder:
    """A learner that answers with SAM's logits plus one for each correction it was given."""

    def __init__(self) -> None:
        self.asked, self.corrected, self.steps, self.restarts = [], [], 0, 0

    position = 0

    def infer(self, view):
        self.asked.append(view)
        answer = type("Answer", (), {})()
        answer.key, answer.said = view.key, {"alpha": 1.0, "own": view.crop.of(view.sam)}
        answer.logits = view.crop.of(view.sam) + len(self.corrected)
        return answer

    def correct(self, pending, truth, source="expert"):
        self.corrected.append((pending.key, truth, source))
        return {"loss": 1.0}

    def step(self):
        self.steps += 1
        return {}

    def restart(self):
        self.restarts += 1

    def mark(self):
        return len(self.corrected)

    def rewind(self, position):
        self.rewound = position


@pytest.fixture
def case(make_image):
    """Three slices; the first two hold structure 1, the second one also 2."""
    label = torch.zeros(1, 1, 40, 64, 3, dtype=torch.long)
    label[..., 8:28, 10:40, :2] = 1
    label[..., 30:38, 44:60, 1] = 2
    return make_image(0, (40, 64, 3))[None], label


def build(learners, **options) -> OnlineInferer:
    given = {"prompter": TruthPrompts("box"), "expert": Expert(), **options}
    return OnlineInferer({"disc": 1, "ring": 2}, learners, **given)


def test_each_structure_is_asked_of_its_own_learner_within_its_box(case, tiny_network):
    learners = {"disc": Recorder(), "ring": Recorder()}
    image, label = case
    logits = build(learners)(image, tiny_network(), case=["a"], user_label=label)
    assert [view.key for view in learners["disc"].asked] == ["a/disc/0/0", "a/disc/1/0"]
    assert [view.key for view in learners["ring"].asked] == ["a/ring/1/1"]
    assert learners["disc"].asked[0].crop == (10, 8, 40, 28)
    assert logits.shape == (1, 2, 40, 64, 3)
    outside = logits[0, 0].clone()
    outside[8:28, 10:40, :2] = BACKGROUND
    assert bool((outside == BACKGROUND).all())


def test_a_slice_is_answered_before_it_is_learned_from(case, tiny_network):
    learners = {"disc": Recorder(), "ring": Recorder()}
    image, label = case
    inferer = build(learners)
    logits, details = inferer.segment_case(image, tiny_network(), case=["a"], user_label=label)
    sam = [view.crop.of(view.sam) for view in learners["disc"].asked]
    torch.testing.assert_close(logits.as_tensor()[0, 0, 8:28, 10:40, 0], sam[0])
    torch.testing.assert_close(logits.as_tensor()[0, 0, 8:28, 10:40, 1], sam[1] + 1)
    assert inferer.images == 2
    assert [row["status"] for row in details.rows] == ["corrected"] * 3


def test_learning_after_the_case_leaves_its_answers_alone(case, tiny_network):
    learners = {"disc": Recorder(), "ring": Recorder()}
    image, label = case
    logits = build(learners, learn_after="case")(image, tiny_network(), case=["a"], user_label=label)
    second = learners["disc"].asked[1]
    torch.testing.assert_close(logits.as_tensor()[0, 0, 8:28, 10:40, 1], second.crop.of(second.sam))
    assert len(learners["disc"].corrected) == 2


def test_the_correction_is_the_true_mask_of_the_slice(case, tiny_network):
    learners = {"disc": Recorder(), "ring": Recorder()}
    image, label = case
    build(learners)(image, tiny_network(), case=["a"], user_label=label)
    assert torch.equal(learners["ring"].corrected[0][1], label[0, 0, ..., 1] == 2)


def test_without_feedback_nothing_is_learned_and_the_truth_makes_no_difference(case, tiny_network):
    image, label = case
    prompts = {"box": [[10], [8], [0], [39], [27], [0]]}
    image.meta["original_affine"] = (
        image[0].affine.numpy()
        @ torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]).double().numpy()
    )
    masks = []
    for truth in (None, label, torch.full(label.shape, float("nan"))):
        learner = Recorder()
        inferer = OnlineInferer({"disc": 1}, {"disc": learner}, expert=Expert(0.0))
        masks.append(inferer(image, tiny_network(), case=["a"], user_label=truth, **prompts))
        assert learner.corrected == []
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_pseudo_labels_and_steps_where_nobody_corrects(case, tiny_network):
    image, label = case
    pseudo, stepping = Recorder(), Recorder()
    build({"disc": pseudo, "ring": Recorder()}, expert=Expert(0.0), pseudo_labels=True)(
        image, tiny_network(), case=["a"], user_label=label
    )
    build({"disc": stepping, "ring": Recorder()}, expert=Expert(0.0), step_without_feedback=True)(
        image, tiny_network(), case=["a"], user_label=label
    )
    assert {source for *_, source in pseudo.corrected} <= {"pseudo"}
    assert stepping.steps == 2
    assert stepping.corrected == []


def test_the_threshold_spares_what_is_good(case, tiny_network):
    image, label = case
    learners = {"disc": Recorder(), "ring": Recorder()}
    inferer = build(learners, expert=Expert(threshold=0.5))
    _, details = inferer.segment_case(image, tiny_network(), case=["a"], user_label=label)
    for row in details.rows:
        assert row["corrected"] == int(row["dice"] < 0.5)


def test_learners_begin_anew_when_the_group_changes(case, tiny_network):
    image, label = case
    learner = Recorder()
    inferer = build({"disc": learner, "ring": Recorder()}, restart_by="kind")
    for group in ("benign", "benign", "malignant"):
        inferer(image, tiny_network(), case=["a"], user_label=label, group=[group])
    assert learner.restarts == 1
    assert inferer.images == 2  # of the second group


def test_a_point_is_answered_in_the_box_of_sams_mask(case, tiny_network):
    image, label = case
    learners = {"disc": Recorder(), "ring": Recorder()}
    build(learners, prompter=TruthPrompts("point"))(image, tiny_network(), case=["a"], user_label=label)
    view = learners["disc"].asked[0]
    assert view.prompt["points"] == [[25.0, 18.0, 1.0]]
    inside = view.crop.of(view.sam) > 0
    assert int(inside.sum()) == int((view.sam > 0).sum())


def test_after_a_point_at_least_its_window_is_looked_at(case, tiny_network):
    image, label = case
    learners = {"disc": Recorder(), "ring": Recorder()}
    inferer = build(learners, prompter=TruthPrompts("point"), point_window=0.5)
    inferer(image, tiny_network(), case=["a"], user_label=label)
    crop = learners["disc"].asked[0].crop
    assert crop.x0 <= 25 - 15
    assert crop.x1 > 25 + 15


def test_what_a_follow_up_finds_is_asked_for(case, tiny_network):
    image, label = case
    learner = Recorder()
    found = torch.full((1, 1, 40, 64, 3), -5.0)
    found[..., 10:20, 10:30, 1] = 5
    options = {"expert": Expert(), "follow_up": lambda *a, **k: MetaTensor(found)}
    inferer = OnlineInferer({"disc": 1}, {"disc": learner}, **options)
    logits = inferer(image, tiny_network(), case=["a"], user_label=label)
    assert [view.key for view in learner.asked] == ["a/disc/1/0"]
    assert learner.asked[0].crop == (8, 9, 32, 21)  # grown by a tenth
    wide = Recorder()
    wider = OnlineInferer({"disc": 1}, {"disc": wide}, point_window=0.5, **options)
    wider(image, tiny_network(), case=["a"], user_label=label)
    assert wide.asked[0].crop == (4, 0, 36, 31)  # half of 64 pixels round the middle, cut off at the border
    assert int((logits > 0).sum()) == 200
    assert len(learner.corrected) == 1


def test_what_a_follow_up_misses_is_noted_where_the_expert_looks(case, tiny_network):
    image, label = case
    found = torch.full((1, 1, 40, 64, 3), -5.0)
    found[..., 8:28, 10:40, 1] = 5.0
    rows = {}
    for feedback in (1.0, 0.0):
        options = {"expert": Expert(feedback), "follow_up": lambda *a, **k: MetaTensor(found)}
        inferer = OnlineInferer({"disc": 1}, {"disc": Recorder()}, **options)
        details = inferer.segment_case(image, tiny_network(), case=["a"], user_label=label)[1]
        rows[feedback] = [(row["slice"], row["status"], row["dice"]) for row in details.rows]
    assert rows[1.0][0] == (0, "missed", 0.0)  # the disc is on slices 0 and 1
    assert [row[0] for row in rows[1.0]] == [0, 1]
    assert [row[0] for row in rows[0.0]] == [1]


def test_no_prompt_and_no_label_is_a_mistake(case, tiny_network):
    image, _ = case
    with pytest.raises(UserError, match="there is no prompt"):
        OnlineInferer({"disc": 1}, {"disc": Recorder()})(image, tiny_network(), case=["a"])
    with pytest.raises(UserError, match="needs the case's label"):
        build({"disc": Recorder(), "ring": Recorder()})(image, tiny_network(), case=["a"])
