"""Distributions of prompts, and draws from them that gradients pass through (ProSAM, §4.2, Eq. 5 to 7).

A prompt is a vector of n numbers with a mean mu and a standard deviation sigma for each of them. Eq. 5 takes the
multivariate t distribution with scale ``diag(sigma²) / (1 + n / nu)`` and ``nu + n`` degrees of freedom. Eq. 7, which
draws from it, divides the root of delta by nu + n, where a t distribution needs the root of the quotient:

* ``t``: the draw that Eq. 5 asks for. Its variance is ``nu / (nu + n - 2)`` sigma².
* ``t_eq7``: Eq. 7 as printed. Its noise is larger than that of ``t`` by ``sqrt(nu + n)``, 16 times at n = 256; since
  sigma is learned, both span the same family.
* ``t_nu``: nu degrees of freedom and scale sigma²: the heavy tails of which the paper's §7.5 speaks. With nu + n
  degrees of freedom there are none left: the kurtosis of ``t`` at n = 256 is 3.02, that of a Gaussian 3.
* ``gaussian``: the paper's ablation (Table 5).
* ``none``: the mean, which is VRP-SAM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_ext.errors import UserError

LEAST_NU = 3
"""Fewest degrees of freedom: with two or less a t distribution has no variance."""


@dataclass(frozen=True)
class PromptDistribution:
    """Independent distributions of N prompts a target.

    Attributes:
        mean: [B, N, C].
        std: [B, N, C], not negative; None: the prompts are the means.
        shots: references that they come from, behind one another, with N / shots prompts each.
    """

    mean: Tensor
    std: Tensor | None = None
    shots: int = 1

    @property
    def prompts_of_a_shot(self) -> int:
        """N / shots."""
        return self.mean.shape[-2] // self.shots


@dataclass(frozen=True)
class Sampler:
    """How prompts are drawn.

    Args:
        name: one of :data:`SAMPLERS`.
        nu: degrees of freedom (Table 5: 5 of 3 and 5).
        joint: one delta for all prompts of a draw and reference, whose n is then N C, in place of one a prompt with
            n = C. The paper's wording allows both.

    Raises:
        UserError: for an unknown name, or an impossible nu.
    """

    name: str = "t"
    nu: int = 5
    joint: bool = False

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise UserError(f"sampler {self.name!r} is unknown: choose one of {', '.join(SAMPLERS)}.")
        if not isinstance(self.nu, int) or isinstance(self.nu, bool) or self.nu < LEAST_NU:
            raise UserError(f"nu is {self.nu}: give a whole number, {LEAST_NU} or more.")

    def draw(self, prompts: PromptDistribution, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw prompts: mu + sigma times noise that depends on neither (Eq. 6).

        Args:
            prompts: B targets with N prompts of C numbers.
            count: K draws.
            generator: source of randomness, on the CPU, so that every device draws the same; None: torch's own.

        Returns:
            [K, B, N, C]. Without ``std``, or with the sampler ``none``, K times the mean, and nothing is drawn.

        Raises:
            UserError: K is less than 1.

        Example:
            >>> Sampler("t").draw(PromptDistribution(mean, std), count=10).shape  # mean, std: [2, 50, 256]
            torch.Size([10, 2, 50, 256])
        """
        check_count(count)
        if prompts.std is None or self.name == "none":
            return prompts.mean.expand(count, *prompts.mean.shape)
        mean, std = prompts.mean, prompts.std
        if self.joint and prompts.shots > 1:  # each has the n that was learned with
            size = prompts.prompts_of_a_shot
            parts = zip(mean.split(size, dim=1), std.split(size, dim=1), strict=True)
            return torch.cat([self.draw(PromptDistribution(*part), count, generator) for part in parts], dim=2)
        noise = torch.randn(count, *mean.shape, generator=generator)
        scale = SAMPLERS[self.name].scale(self, (count, *mean.shape), generator)
        return mean + std * (scale * noise).to(mean)

    def std_factor(self, prompts: int, channels: int) -> float:
        """Return the standard deviation of a draw in units of sigma, for N prompts of C channels."""
        return SAMPLERS[self.name].variance(self.nu, self.dimensions(prompts, channels)) ** 0.5

    def dimensions(self, prompts: int, channels: int) -> int:
        """Return n of Eq. 5."""
        return prompts * channels if self.joint else channels

    def chi_square(self, degrees: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Draw delta, [K, B, N, 1], or [K, B, 1, 1] for joint prompts: a sum of squares of so many Gaussians."""
        count, batch, prompts, _ = shape
        places = (count, batch, 1 if self.joint else prompts)
        return torch.randn(*places, degrees, generator=generator).square().sum(dim=-1, keepdim=True)


def check_count(count: Any) -> None:
    """Refuse an impossible number of draws.

    Raises:
        UserError: it is no whole number, or less than 1.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"the number of sampled prompts K is {count}: give a whole number, 1 or more.")


@dataclass(frozen=True)
class _Family:
    """What makes a sampler: the factor of sigma times the Gaussian noise, and the variance of the draw in sigma²."""

    scale: Callable[[Sampler, tuple[int, ...], torch.Generator | None], Tensor | float]
    variance: Callable[[int, int], float]


def _t(sampler: Sampler, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    n = sampler.dimensions(*shape[-2:])
    delta = sampler.chi_square(sampler.nu + n, shape, generator)
    return (delta / (sampler.nu + n)).rsqrt() / (1 + n / sampler.nu) ** 0.5


def _t_eq7(sampler: Sampler, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    n = sampler.dimensions(*shape[-2:])
    delta = sampler.chi_square(sampler.nu + n, shape, generator)
    return (sampler.nu + n) / delta.sqrt() / (1 + n / sampler.nu) ** 0.5


def _t_nu(sampler: Sampler, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return (sampler.chi_square(sampler.nu, shape, generator) / sampler.nu).rsqrt()


SAMPLERS: dict[str, _Family] = {
    "t": _Family(_t, lambda nu, n: nu / (nu + n - 2)),
    "t_eq7": _Family(_t_eq7, lambda nu, n: nu * (nu + n) / (nu + n - 2)),
    "t_nu": _Family(_t_nu, lambda nu, n: nu / (nu - 2)),
    "gaussian": _Family(lambda sampler, shape, generator: 1.0, lambda nu, n: 1.0),
    "none": _Family(lambda sampler, shape, generator: 0.0, lambda nu, n: 0.0),
}
"""Samplers by name."""
