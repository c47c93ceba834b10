"""Tests of monai_ext.losses.spatial_contrast: Eqs. 7 and 8 against slow references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.losses.spatial_contrast import ContrastQueue, SpatialContrastLoss


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def slow_contrast(r: Tensor, classes: list[int], tau: float) -> float:
    total = 0.0
    anchors, count = r.shape
    for i in range(anchors):
        positives = [j for j in range(count) if j != i and classes[j] == classes[i]]
        others = sum(math.exp(float(r[i, k]) / tau) for k in range(count) if k != i)
        total += sum(-math.log(math.exp(float(r[i, j]) / tau) / others) for j in positives) / max(len(positives), 1)
    return total


def slow_literal(r: Tensor, classes: list[int], tau: float) -> float:
    count = len(classes)
    total = 0.0
    for i in range(count):
        for j in range(count):
            if classes[i] == classes[j]:
                others = sum(math.exp(float(r[i, k]) / tau) for k in range(count) if k != i)
                total -= math.log(math.exp(float(r[i, j]) / tau) / others)
    return total / (count - 1)


def test_two_classes_against_a_slow_reference() -> None:
    r = torch.rand(4, 4) * 4 - 2
    classes = [3, 8, 3, 8]
    assert float(SpatialContrastLoss()(r, classes)) == pytest.approx(slow_contrast(r, classes, 0.1), rel=1e-5)


def test_a_queue_against_a_slow_reference() -> None:
    r = torch.rand(2, 7) * 4 - 2
    classes = [1, 1, 2, 1, 3, 2, 1]
    loss = SpatialContrastLoss("queue", temperature=0.5)(r, classes)
    assert float(loss) == pytest.approx(slow_contrast(r, classes, 0.5), rel=1e-5)


def test_the_equation_as_printed_against_a_slow_reference() -> None:
    r = torch.rand(4, 4) * 4 - 2
    classes = [3, 8, 3, 8]
    loss = SpatialContrastLoss("literal")(r, classes)
    assert float(loss) == pytest.approx(slow_literal(r, classes, 0.1), rel=1e-5)


def test_the_equation_as_printed_pushes_a_pair_apart() -> None:
    r = torch.tensor([[1.9, 1.2], [1.2, 1.8]], requires_grad=True)
    loss = SpatialContrastLoss("literal")(r, [1, 1])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-13, abs=1e-4)
    assert float(r.grad[0, 1]) == pytest.approx(10)


def test_two_classes_pull_a_pair_together() -> None:
    r = torch.zeros(4, 4, requires_grad=True)
    SpatialContrastLoss()(r, [1, 2, 1, 2]).backward()
    assert float(r.grad[0, 2]) < 0 < float(r.grad[0, 1])
    assert float(r.grad.diagonal().abs().max()) == 0


def test_only_the_pair_itself_teaches_nothing() -> None:
    assert float(SpatialContrastLoss("queue")(torch.rand(2, 2), [1, 1])) == pytest.approx(0, abs=1e-6)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="needs images of two"):
        SpatialContrastLoss()(torch.rand(4, 4), [1, 1, 1, 1])
    with pytest.raises(UserError, match=r"--scl_pool .* is unknown: choose one of two_class, queue, literal"):
        SpatialContrastLoss("all")


def test_first_in_first_out() -> None:
    queue = ContrastQueue(size=3)
    for step in range(3):
        numbers = torch.tensor([10.0 * step, 10.0 * step + 1], requires_grad=True)
        together, classes = queue.join([numbers, numbers + 0.5], [step, step])
        assert together[0].requires_grad
        queue.push([numbers, numbers + 0.5], [step, step])
    assert together[0].tolist() == [20, 21, 10, 11, 0]
    assert together[1].tolist() == [20.5, 21.5, 10.5, 11.5, 0.5]
    assert classes == [2, 2, 1, 1, 0]
    assert queue.classes == [2, 2, 1]
    assert not queue.held[0].requires_grad


def test_the_queue_goes_on() -> None:
    first, second = ContrastQueue(3), ContrastQueue(3)
    first.push([torch.rand(2, 4)], [1, 2])
    second.load_state_dict(first.state_dict())
    new = [torch.rand(1, 4)]
    assert torch.equal(first.join(new, [3])[0][0], second.join(new, [3])[0][0])
    assert second.join(new, [3])[1] == [3, 1, 2]
