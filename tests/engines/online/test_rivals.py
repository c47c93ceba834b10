"""What AuxOL is compared with: each does what its name says, through the same learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ext.engines.online import OnlineLearner, View
from monai_ext.engines.online.opening import METHODS, build_method
from monai_ext.engines.online.rivals import DirectOnline, InscribedEllipse, MeanCrop, Remembering, SamAlone
from monai_ext.engines.online.view import cut
from monai_ext.errors import UserError
from monai_ext.networks.sam import build_compact
from monai_ext.prompts.crops import Crop


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_compact(image_size=64, stride=8, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=32).eval()


def seen(network, make_object, number: int) -> tuple[View, torch.Tensor]:
    """A view with the network's features, and a box prompt."""
    view, truth = make_object(number)
    rows, columns = truth.nonzero().T
    box = [float(value) for value in (columns.min(), rows.min(), columns.max(), rows.max())]
    crop = Crop(int(box[0]), int(box[1]), int(box[2]) + 1, int(box[3]) + 1)
    with torch.no_grad():
        features = network.encode(view.image[None]).features[0]
    return View(view.key, view.image, view.sam, crop, {"box": box, "points": []}, view.case, features), truth


def test_sam_alone_is_sam(make_object):
    view, _ = make_object(0)
    logits, _ = SamAlone().serve()(cut(view))
    assert torch.equal(logits, view.crop.of(view.sam))


def test_the_ellipse_lies_in_the_box_and_fills_it_by_pi_quarters(make_object, network):
    view, truth = seen(network, make_object, 0)
    logits, _ = InscribedEllipse().serve()(cut(view))
    mask = (logits > 0).numpy()
    assert mask.shape == view.crop.size
    assert np.mean(mask) == pytest.approx(np.pi / 4, abs=0.05)
    assert mask[mask.shape[0] // 2].all()
    common = (mask & view.crop.of(truth).numpy()).sum()
    assert 2 * common / (mask.sum() + truth.sum()) > 0.95  # the truth is an ellipse


def test_the_mean_crop_is_the_mean_of_the_corrected_masks(network, make_object):
    learner = OnlineLearner(MeanCrop(side=16))
    view, _ = seen(network, make_object, 0)
    assert torch.equal(learner.infer(view).logits, view.crop.of(view.sam))
    half = torch.zeros(48, 40)
    half[:, : view.crop.x0 + view.crop.size[1] // 2] = 1
    learner.correct(learner.infer(view), half)
    learner.correct(learner.infer(view), half)
    mask = learner.infer(view).logits > 0
    assert bool(mask[:, 0].all())
    assert not bool(mask[:, -1].any())


def test_memory_finds_again_what_it_was_shown(network):
    """Of a picture whose halves differ it is shown the left one: of the same picture it answers the left half."""
    features = torch.zeros(32, 8, 8)
    features[0, :, :4], features[1, :, 4:] = 1, 1
    view = View("a", torch.zeros(1, 64, 64), torch.zeros(64, 64), Crop(0, 0, 64, 64), {}, {}, features)
    left = torch.zeros(64, 64)
    left[:, :32] = 1
    learner = OnlineLearner(Remembering(64, 8, parts=1))
    learner.correct(learner.infer(view), left)
    mask = learner.infer(view).logits > 0
    assert int((mask != (left > 0)).sum()) <= 64


def test_direct_online_learns_in_a_decoder_of_its_own(network, make_object):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    method = DirectOnline(network, batch=2, learning_rate=5e-3, crop=32)
    learner, losses = OnlineLearner(method), []
    for _ in range(8):
        view, truth = seen(network, make_object, 0)
        losses.append(learner.correct(learner.infer(view), truth)["loss"])
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_direct_online_stays_as_it_was_where_a_step_fails(network, make_object, monkeypatch):
    method = DirectOnline(network, batch=2, crop=32, steps=2)
    learner = OnlineLearner(method)
    (first, truth), (second, other) = (seen(network, make_object, number) for number in range(2))
    learner.correct(learner.infer(first), truth)
    before, answer = method.state(), learner.infer(second).logits
    before = {name: value.clone() for name, value in before[0].items()}, before[1]
    step, count = method._train, iter(range(9))

    def second_fails():
        if next(count):
            raise RuntimeError("out of memory")
        return step()

    monkeypatch.setattr(method, "_train", second_fails)
    with pytest.raises(RuntimeError):
        learner.correct(learner.infer(second), other)
    after = method.state()
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert after[1] == before[1]
    assert torch.equal(learner.infer(second).logits, answer)


@pytest.mark.parametrize("change", ["correct", "step"])
def test_direct_online_refuses_a_step_that_diverges(network, make_object, change):
    method = DirectOnline(network, batch=2, crop=32)
    learner = OnlineLearner(method)
    (first, truth), (second, other) = (seen(network, make_object, number) for number in range(2))
    learner.correct(learner.infer(first), truth)
    pending = learner.infer(second)
    before = {name: value.clone() for name, value in method.state()[0].items()}
    method._optimiser.param_groups[0]["lr"] = 1e20
    with pytest.raises(UserError, match="lower learning_rate"):
        learner.correct(pending, other) if change == "correct" else learner.step()
    assert all(torch.equal(value, before[name]) for name, value in method.state()[0].items())
    assert torch.equal(learner.infer(second).logits, pending.logits)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_is_taken_up_again_as_it_was(method, network, make_object, tmp_path):
    settings = {"base": 2, "crop": 32, "batch": 2}

    def build() -> OnlineLearner:
        return OnlineLearner(build_method(method, network, settings), tmp_path / method)

    one = build()
    for number in range(3):
        view, truth = seen(network, make_object, number)
        one.correct(one.infer(view), truth)
    other = build()
    view, truth = seen(network, make_object, 3)
    assert torch.equal(one.infer(view).logits, other.infer(view).logits)
    one.method.absorb(journal := one._correction(one.infer(view), truth, "expert", None))
    other.method.absorb(journal)
    ours, theirs = one.method.state(), other.method.state()
    assert all(torch.equal(value, theirs[0][name]) for name, value in ours[0].items())


def test_an_unknown_method_is_refused(network):
    with pytest.raises(UserError, match="choose one of auxol"):
        build_method("magic", network, {})
