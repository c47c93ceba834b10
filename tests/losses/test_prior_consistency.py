"""Tests of monai_ext.losses.prior_consistency: Eq. 1 against a slow reference."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from monai_ext.losses.prior_consistency import CollapseMonitor, PriorConsistencyLoss


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def slow_divergence(mean: float, variance: float, other_mean: float, other_variance: float) -> float:
    distance = (variance + (mean - other_mean) ** 2) / other_variance
    return 0.5 * (math.log(other_variance) - math.log(variance) + distance - 1)


@pytest.mark.parametrize("direction", ["printed", "reverse"])
def test_against_a_slow_reference(direction: str) -> None:
    image, mask = (torch.randn(3, 4), torch.randn(3, 4)), (torch.randn(3, 4), torch.randn(3, 4))
    (mx, lx), (my, ly) = (image, mask) if direction == "printed" else (mask, image)
    total = sum(
        slow_divergence(float(mx[b, k]), math.exp(lx[b, k]), float(my[b, k]), math.exp(ly[b, k]))
        for b in range(3)
        for k in range(4)
    )
    loss = PriorConsistencyLoss(direction)(image, mask)
    assert float(loss) == pytest.approx(total / 3, rel=1e-5)
    theirs = kl_divergence(Normal(mx, (lx / 2).exp()), Normal(my, (ly / 2).exp()))
    torch.testing.assert_close(loss, theirs.sum(dim=1).mean())


def test_equal_distributions_have_no_divergence() -> None:
    one = (torch.randn(2, 4), torch.randn(2, 4))
    assert float(PriorConsistencyLoss()(one, one)) == pytest.approx(0, abs=1e-6)


def test_unknown_direction() -> None:
    with pytest.raises(ValueError, match="printed or reverse"):
        PriorConsistencyLoss("both")


def test_variance_over_the_window() -> None:
    monitor = CollapseMonitor(window=3)
    means = torch.randn(5, 2) * torch.tensor([1.0, 0.001])
    assert monitor.update(means[:1]) == (0.0, 0)
    variance, active = monitor.update(means[1:])
    assert variance == pytest.approx(float(means[2:].var(dim=0).mean()))
    assert active == 1


def test_a_collapse_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    monitor = CollapseMonitor(window=4)
    with caplog.at_level(logging.WARNING):
        monitor.update(torch.ones(3, 2))
        assert not caplog.records  # the window is not full yet
        monitor.update(torch.ones(3, 2))
        monitor.update(torch.ones(1, 2))
    assert [record.getMessage()[:60] for record in caplog.records] == [
        "the distribution of z_y is the same for all of the last 4 ma"
    ]


def test_varied_distributions_are_no_collapse(caplog: pytest.LogCaptureFixture) -> None:
    CollapseMonitor(window=4).update(torch.randn(8, 2))
    assert not caplog.records


def test_the_monitor_goes_on() -> None:
    first, second = CollapseMonitor(window=3), CollapseMonitor(window=3)
    first.update(torch.randn(4, 2))
    second.load_state_dict(first.state_dict())
    more = torch.randn(1, 2)
    assert first.update(more) == second.update(more)
