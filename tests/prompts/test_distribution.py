"""Draws against their moments, their gradients and their seeds."""

from __future__ import annotations

import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.prompts.distribution import SAMPLERS, PromptDistribution, Sampler

DRAWN = ("t", "t_eq7", "t_nu", "gaussian")


def of_zeros(prompts: int = 1, channels: int = 256, sigma: float = 1.0) -> PromptDistribution:
    shape = (1, prompts, channels)
    return PromptDistribution(torch.zeros(shape), torch.full(shape, sigma))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "channels", "variance"),
    [
        ("t", 256, 5 / 259),
        ("t_eq7", 256, 5 * 261 / 259),
        ("gaussian", 256, 1.0),
        ("t", 128, 5 / 131),  # of the compact SAM
        ("t_eq7", 128, 5 * 133 / 131),
    ],
)
def test_variance_is_that_of_the_formula(name, channels, variance):
    draws = Sampler(name).draw(of_zeros(4, channels), 400, generator())
    assert draws.numel() > 1e5
    assert float(draws.var()) == pytest.approx(variance, rel=0.02)
    assert Sampler(name).std_factor(4, channels) == pytest.approx(variance**0.5)


def test_with_nu_degrees_of_freedom_the_variance_is_larger():
    draws = Sampler("t_nu", nu=7).draw(of_zeros(64, 16), 4000, generator())
    assert float(draws.var()) == pytest.approx(7 / 5, rel=0.03)
    assert Sampler("t_nu").std_factor(50, 256) ** 2 == pytest.approx(5 / 3)


@pytest.mark.parametrize(("name", "kurtosis"), [("t", 3 * 259 / 257), ("t_eq7", 3 * 259 / 257), ("gaussian", 3.0)])
def test_kurtosis_says_that_the_tails_are_not_heavy(name, kurtosis):
    draws = Sampler(name).draw(of_zeros(8), 500, generator()).double()
    assert float((draws**4).mean() / (draws**2).mean() ** 2) == pytest.approx(kurtosis, rel=0.02)


def test_kurtosis_with_nu_degrees_of_freedom_is_heavy():
    draws = Sampler("t_nu", nu=9).draw(of_zeros(2000, 8), 60, generator()).double()
    assert float((draws**4).mean() / (draws**2).mean() ** 2) == pytest.approx(3 * 7 / 5, rel=0.1)


@pytest.mark.parametrize("name", DRAWN)
def test_same_as_the_slow_formula(name):
    """Every number of the draw from the same eps and delta, by the formula as the paper writes it."""
    n, nu, count = 6, 5, 3
    prompts = PromptDistribution(torch.randn(2, 4, n), torch.rand(2, 4, n))
    drawn = Sampler(name, nu).draw(prompts, count, generator(3))
    source = generator(3)
    eps = torch.randn(count, 2, 4, n, generator=source)
    degrees = {"t": nu + n, "t_eq7": nu + n, "t_nu": nu, "gaussian": 0}[name]
    normal = torch.randn(count, 2, 4, degrees, generator=source) if degrees else torch.zeros(count, 2, 4, 1)
    for k in range(count):
        for b in range(2):
            for m in range(4):
                delta = float((normal[k, b, m] ** 2).sum())
                for i in range(n):
                    mu, sigma, e = prompts.mean[b, m, i], prompts.std[b, m, i], eps[k, b, m, i]
                    scale = sigma / (1 + n / nu) ** 0.5
                    expected = {
                        "t": lambda mu=mu, s=scale, e=e, d=delta: mu + 1 / (d / (nu + n)) ** 0.5 * s * e,
                        "t_eq7": lambda mu=mu, s=scale, e=e, d=delta: mu + 1 / (d**0.5 / (nu + n)) * s * e,
                        "t_nu": lambda mu=mu, s=sigma, e=e, d=delta: mu + s * e / (d / nu) ** 0.5,
                        "gaussian": lambda mu=mu, s=sigma, e=e: mu + s * e,
                    }[name]()
                    assert float(drawn[k, b, m, i]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", DRAWN)
def test_gradients_reach_mean_and_sigma(name):
    mean, std = torch.randn(2, 3, 8).requires_grad_(), torch.rand(2, 3, 8).requires_grad_()
    draws = Sampler(name).draw(PromptDistribution(mean, std), 4, generator())
    draws.sum().backward()
    assert torch.equal(mean.grad, torch.full_like(mean, 4.0)), "dz/dmu is 1 for each of 4 draws"
    noise = ((draws - mean) / std).sum(dim=0)
    torch.testing.assert_close(std.grad, noise.detach(), rtol=1e-3, atol=1e-4)
    assert bool(std.grad.isfinite().all())


@pytest.mark.parametrize("name", DRAWN)
def test_same_seed_same_draw(name):
    prompts = of_zeros(3, 8)
    one, same, other = (Sampler(name).draw(prompts, 2, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def test_delta_is_drawn_for_each_prompt_or_for_all():
    shape = (3, 2, 50, 8)
    assert Sampler("t").chi_square(13, shape, generator()).shape == (3, 2, 50, 1)
    assert Sampler("t", joint=True).chi_square(13, shape, generator()).shape == (3, 2, 1, 1)
    assert Sampler("t", joint=True).dimensions(50, 256) == 12800


def test_joint_prompts_share_their_length():
    """With few degrees of freedom the scale varies from draw to draw, and within one only where it is not joint."""
    prompts = of_zeros(200, 64)

    def spread(joint: bool) -> float:
        draws = Sampler("t_nu", nu=3, joint=joint).draw(prompts, 4, generator())
        lengths = draws.square().mean(dim=-1).sqrt()
        return float((lengths.std(dim=-1) / lengths.mean(dim=-1)).mean())

    assert spread(joint=True) < 0.2 < spread(joint=False)


def test_without_sigma_nothing_is_drawn():
    mean = torch.randn(2, 3, 4)
    state = torch.get_rng_state()
    for prompts in (PromptDistribution(mean), PromptDistribution(mean, torch.ones_like(mean))):
        assert torch.equal(Sampler("none").draw(prompts, 2), mean.expand(2, -1, -1, -1))
    assert torch.equal(Sampler("t").draw(PromptDistribution(mean), 2), mean.expand(2, -1, -1, -1))
    assert torch.equal(torch.get_rng_state(), state)


def test_with_sigma_zero_every_draw_is_the_mean():
    mean = torch.randn(2, 3, 4)
    for name in SAMPLERS:
        drawn = Sampler(name).draw(PromptDistribution(mean, torch.zeros_like(mean)), 1, generator())
        assert torch.equal(drawn[0], mean)


@pytest.mark.parametrize("options", [{"name": "cauchy"}, {"nu": 2}, {"nu": 2.5}, {"nu": True}, {"nu": -1}])
def test_impossible_samplers_are_refused(options):
    with pytest.raises(UserError, match=r"sampler 'cauchy' is unknown|nu is"):
        Sampler(**options)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_an_impossible_number_of_draws_is_refused(count):
    with pytest.raises(UserError, match="sampled prompts K is"):
        Sampler().draw(of_zeros(), count)


# ---- the Laplacian identity: noise is a penalty on curvature (ProSAM §7.1) ------------------------------------------


def test_noise_on_a_quadratic_costs_the_weighted_laplacian():
    torch.manual_seed(0)
    half = torch.randn(6, 6, dtype=torch.double)
    hessian = half @ half.T
    mean, std = torch.randn(6, dtype=torch.double), torch.rand(6, dtype=torch.double) + 0.5
    noise = torch.randn(200_000, 6, dtype=torch.double)
    noise = torch.cat([noise, -noise])  # antithetic: the linear term vanishes exactly
    noise = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T @ noise / len(noise))).T  # covariance exactly 1

    def loss(z: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.einsum("ki,ij,kj->k", z, hessian, z)

    penalty = loss(mean + std * noise).mean() - loss(mean[None])[0]
    assert float(penalty) == pytest.approx(float(0.5 * (std**2 * hessian.diagonal()).sum()), rel=1e-9)


def test_the_rest_on_a_quartic_is_of_fourth_order():
    torch.manual_seed(0)
    mean = torch.randn(8, dtype=torch.double)
    noise = torch.randn(100_000, 8, dtype=torch.double)
    noise = torch.cat([noise, -noise])
    noise = noise / noise.square().mean(dim=0).sqrt()

    def rest(sigma: float) -> float:
        expected = ((mean + sigma * noise) ** 4).sum(dim=1).mean() - (mean**4).sum()
        return float(expected - 0.5 * sigma**2 * (12 * mean**2).sum())

    assert rest(0.4) / rest(0.2) == pytest.approx(16, rel=1e-6)


@pytest.mark.parametrize("name", DRAWN)
def test_prompts_of_several_references_spread_as_those_of_one(name):
    """Joint prompts have one delta and one n for each reference, as where they were learned."""
    sampler, shape = Sampler(name, joint=True), (1, 6, 4)
    one = PromptDistribution(torch.zeros(shape), torch.ones(shape))
    three = PromptDistribution(torch.zeros(1, 18, 4), torch.ones(1, 18, 4), shots=3)
    drawn, alone = (sampler.draw(prompts, 4000, generator()) for prompts in (three, one))
    assert drawn.shape == (4000, 1, 18, 4)
    assert float(drawn.std()) == pytest.approx(float(alone.std()), rel=0.05)
    if name in ("t", "t_nu"):
        sizes = drawn.square().mean(dim=3)[:, 0]
        assert float(torch.corrcoef(sizes[:, [0, 5, 6]].T)[0, 2]) == pytest.approx(0, abs=0.1)
