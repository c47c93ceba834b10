"""Tests of monai_ext.networks.prelu."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_ext.networks.prelu import SingleSlopePReLU


@pytest.mark.parametrize("slope", [0.25, 0.0, -0.3])
def test_values_and_gradients_are_those_of_torch(slope: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = []
    for layer in (SingleSlopePReLU().double(), nn.PReLU().double()):
        nn.init.constant_(layer.weight, slope)
        inputs = x.clone().requires_grad_()
        outputs = layer(inputs)
        (outputs * torch.arange(x.numel()).view_as(x)).sum().backward()
        found.append((outputs.detach(), inputs.grad, layer.weight.grad))
        with torch.no_grad():
            assert torch.equal(layer(x), outputs)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_its_weights_are_those_of_torch() -> None:
    SingleSlopePReLU().load_state_dict(nn.PReLU().state_dict())


def test_it_is_traced_as_a_plain_operation() -> None:
    with torch.no_grad():
        traced = torch.jit.trace(SingleSlopePReLU(), torch.randn(1, 2, 3, 3))
    assert "prelu" in str(traced.graph)
