"""AuxOL's step: what it learns from, and from which weights each number comes."""

from __future__ import annotations

import pytest
import torch

from monai_ext.engines.online import OnlineLearner
from monai_ext.engines.online.auxiliary import network_input
from monai_ext.engines.online.fusion import best_alpha
from monai_ext.errors import UserError
from monai_ext.inferers.online import dice
from monai_ext.prompts.crops import grow, shrink_mask


def teach(learner: OnlineLearner, make_object, numbers) -> list[dict]:
    said = []
    for number in numbers:
        view, truth = make_object(number)
        said.append(learner.correct(learner.infer(view), truth))
    return said


@pytest.mark.slow
def test_it_learns_and_alpha_falls(make_object, make_method):
    learner, scores, alphas = OnlineLearner(make_method(base=4, batch=8, learning_rate=1e-2)), [], []
    for number in range(40):
        view, truth = make_object(number)
        pending = learner.infer(view)
        scores.append(dice(pending.logits > 0, view.crop.of(truth)))
        alphas.append(pending.said["alpha"])
        learner.correct(pending, truth)
    assert alphas[:5] == [1.0] * 5
    assert sum(alphas[-10:]) / 10 < 0.7
    assert sum(scores[-10:]) / 10 > sum(scores[:5]) / 5 + 0.05


def test_loss_and_alpha_come_from_the_weights_before_the_step(make_object, make_method):
    method = make_method()
    learner = OnlineLearner(method)
    teach(learner, make_object, range(2))
    view, truth = make_object(2)
    pending = learner.infer(view)
    crop = pending.view
    with torch.no_grad():
        own = method.network(network_input(crop, method.settings)[None])
    loss = method.loss(own, shrink_mask(view.crop.of(truth), 32)[None, None])
    alpha = best_alpha(crop.sam, grow(own[0, 0], view.crop.size), view.crop.of(truth))
    said = learner.correct(pending, truth)
    assert said["loss"] == pytest.approx(float(loss))
    assert said["best_alpha"] == alpha
    with torch.no_grad():
        assert not torch.equal(own, method.network(network_input(crop, method.settings)[None]))


def test_the_answer_to_a_sample_does_not_know_its_own_alpha(make_object, make_method):
    learner = OnlineLearner(make_method())
    said = teach(learner, make_object, range(6))
    expected = sum(one["best_alpha"] for one in said[1:6]) / 5
    assert learner.infer(make_object(6)[0]).said["alpha"] == pytest.approx(expected)


def test_one_step_is_taken_on_the_mean_loss_of_the_whole_batch(make_object, make_method):
    method = make_method(learning_rate=1e-3)
    learner = OnlineLearner(method)
    teach(learner, make_object, range(2))
    twin = make_method(learning_rate=1e-3)
    twin.load_state(*method.state())
    view, truth = make_object(2)
    learner.correct(learner.infer(view), truth)

    optimiser = torch.optim.AdamW(twin.network.parameters(), 1e-3, weight_decay=5e-4)
    optimiser.load_state_dict(twin._optimiser.state_dict())
    images, truths = method.batch.stacked()
    optimiser.zero_grad()
    twin.loss(twin.network(images), truths).mean().backward()
    optimiser.step()
    for ours, reference in zip(method.network.parameters(), twin.network.parameters(), strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.slow
def test_where_nothing_is_corrected_no_truth_is_read(make_object, make_method):
    """The truth of uncorrected samples is NaN: answers and state are the same."""

    def run(poisoned: bool):
        learner, logits = OnlineLearner(make_method()), []
        for number in range(8):
            view, truth = make_object(number)
            truth = torch.full(truth.shape, float("nan")) if poisoned and number % 2 else truth
            pending = learner.infer(view)
            logits.append(pending.logits)
            if number % 2 == 0:
                learner.correct(pending, truth)
        return logits, learner.method.state()

    (clean, state), (poisoned, other) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(clean, poisoned, strict=True))
    assert state[1] == other[1]
    assert all(torch.equal(value, other[0][name]) for name, value in state[0].items())


def test_pseudo_labels_teach_but_give_no_alpha(make_object, make_method):
    method = make_method()
    learner = OnlineLearner(method)
    view, _ = make_object(0)
    pending = learner.infer(view)
    said = learner.correct(pending, pending.logits > 0, source="pseudo")
    assert "best_alpha" not in said
    assert method.alphas == []
    assert len(method.batch.samples) == 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"steps_per_feedback": 3}, {"official_loss": True}, {"policy": "fifo"}])
def test_options_change_what_is_learned(make_object, make_method, options):
    plain, other = OnlineLearner(make_method()), OnlineLearner(make_method(**options))
    teach(plain, make_object, range(6))
    teach(other, make_object, range(6))
    assert not torch.equal(plain.method.network.last.weight, other.method.network.last.weight)


def test_sam_is_a_fourth_channel_where_asked_for(make_object, make_method):
    view = OnlineLearner(make_method(sam_channel="mask")).infer(make_object(0)[0]).view
    masked = network_input(view, make_method(sam_channel="mask").settings)
    shares = network_input(view, make_method(sam_channel="probability").settings)
    assert masked.shape == shares.shape == (4, 32, 32)
    assert masked[3].unique().tolist() == [0.0, 1.0]
    assert len(shares[3].unique()) > 2
    assert network_input(view, make_method().settings).shape == (3, 32, 32)


@pytest.mark.slow
def test_a_state_goes_on_to_the_same_bits(make_object, make_method):
    one = OnlineLearner(make_method())
    teach(one, make_object, range(7))
    other = make_method()
    other.load_state(*one.method.state())
    two = OnlineLearner(other)
    teach(one, make_object, range(7, 12))
    teach(two, make_object, range(7, 12))
    ours, theirs = one.method.state(), two.method.state()
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(value, theirs[0][name]) for name, value in ours[0].items())


def test_a_loss_that_is_no_number_changes_nothing(make_object, make_method):
    method = make_method()
    learner = OnlineLearner(method)
    teach(learner, make_object, range(2))
    before, values = ({k: v.clone() for k, v in method.state()[0].items()}, method.state()[1])
    view, truth = make_object(2)
    pending = learner.infer(view)
    method.loss = lambda logits, masks: logits.sum((1, 2, 3)) * float("nan")  # type: ignore[assignment]
    with pytest.raises(UserError, match="not a number"):
        learner.correct(pending, truth)
    assert method.state()[1] == values
    assert all(torch.equal(value, before[name]) for name, value in method.state()[0].items())


class Steep(torch.autograd.Function):
    """The sum of the logits; its gradient is whatever it is told to be."""

    @staticmethod
    def forward(context, logits, slope):
        context.slope, context.shape = slope, logits.shape
        return logits.sum((1, 2, 3)) * 0

    @staticmethod
    def backward(context, _):
        return torch.full(context.shape, context.slope), None


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("slope", [float("nan"), float("inf"), 1e30, None])
@pytest.mark.parametrize("change", ["correct", "step"])
def test_a_step_that_diverges_is_neither_served_nor_saved(make_object, make_method, tmp_path, steps, slope, change):
    method = make_method(steps_per_feedback=steps)
    learner = OnlineLearner(method, tmp_path)
    teach(learner, make_object, range(6))  # enough for the network to have a share in the answer
    (view, truth), loss = make_object(6), method.loss
    pending, (tensors, values) = learner.infer(view), method.state()
    before = {name: value.clone() for name, value in tensors.items()}
    if slope is None:
        method._optimiser.param_groups[0]["lr"] = 1e38
    else:
        method.loss = lambda logits, masks: Steep.apply(logits, slope)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"lower learning_rate|not a number"):
        learner.correct(pending, truth) if change == "correct" else learner.step()
    assert method.state()[1] == values
    assert all(torch.equal(value, before[name]) for name, value in method.state()[0].items())
    assert torch.equal(learner.infer(view).logits, pending.logits)
    method.loss = loss
    again = OnlineLearner(make_method(steps_per_feedback=steps), tmp_path)
    assert torch.equal(again.infer(view).logits, pending.logits)


@pytest.mark.parametrize(
    "options", [{"crop": 40}, {"crop": 16}, {"steps_per_feedback": 0}, {"sam_channel": "logits"}, {"alpha": 2}]
)
def test_impossible_settings_are_refused(make_method, options):
    with pytest.raises(UserError):
        make_method(**options)
