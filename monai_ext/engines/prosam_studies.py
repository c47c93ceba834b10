"""Studies of learned prompts on frozen episodes: noise, kinds of annotation, places, and prompts found by descent.

Each returns rows, dictionaries for :mod:`monai_ext.evaluation.study`, which writes and draws them. The query's mask is
used to measure; :func:`centre_study` and :func:`descent_study` look at it, since they study prompts, not a method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from monai_ext.data.episodes import Episode, EpisodeDataset
from monai_ext.engines.prosam import ProsamObjective
from monai_ext.errors import UserError
from monai_ext.files import PathLike
from monai_ext.losses.sampled_masks import SampledMaskLoss
from monai_ext.networks.backbone import Embeddings
from monai_ext.networks.prompt_distribution import PromptDistributionNet
from monai_ext.networks.sam import PromptableSam
from monai_ext.prompts.annotations import KINDS
from monai_ext.prompts.distribution import PromptDistribution, Sampler
from monai_ext.prompts.sampled_masks import MEAN_PROMPT, STRATEGIES, merge_logits

Nets = Mapping[str, PromptDistributionNet]
StudyRow = dict[str, Any]
"""``panel``, ``series``, ``x``, ``patient``, ``class``, ``episode`` and ``value``."""

NOISES = ("absolute", "relative")


class StudyEpisodes:
    """Frozen episodes, and the prompts that several networks predict for them.

    Args:
        network: the frozen SAM.
        dataset: with the episodes.
        feature_dir: of the frozen networks' features; None: they are made anew each time.
        device: of the networks.
        seed: of annotations and draws.
    """

    def __init__(
        self,
        network: PromptableSam,
        dataset: EpisodeDataset,
        feature_dir: PathLike | None = None,
        device: Any = "cpu",
        seed: int = 0,
    ) -> None:
        self.network, self.dataset, self.feature_dir = network, dataset, feature_dir
        self.device, self.seed = device, seed

    def objective(self, prompts: PromptDistributionNet, annotation: str = "mask") -> ProsamObjective:
        """Return what decodes the prompts of a network."""
        return ProsamObjective(
            self.network, prompts, annotations=annotation, cache_dir=self.feature_dir, seed=self.seed
        )

    def batches(self, title: str) -> Iterator[tuple[int, Episode, dict[str, Tensor]]]:
        """Yield number, episode and its batch of one."""
        for number in tqdm(range(len(self.dataset)), desc=title, disable=None):
            batch = {key: value.to(self.device) for key, value in self.dataset[number].items()}
            yield number, self.dataset.episodes[number], batch

    def row(self, number: int, **told: Any) -> StudyRow:
        """Return the entries of a row that say which episode it is of, and further ones."""
        episode = self.dataset.episodes[number]
        query = episode.query
        patient = self.dataset.cases[query.dataset, query.case].patient
        return {"episode": number, "class": episode.name, "patient": patient, **told}


@torch.no_grad()
def noise_study(
    episodes: StudyEpisodes, nets: Nets, absolute: Sequence[float], relative: Sequence[float]
) -> list[StudyRow]:
    """Add Gaussian noise to the mean prompts (ProSAM Fig. 4) and measure IoU.

    The paper's noise has a fixed standard deviation. VRP-SAM's prompts leave a LayerNorm and are of size 1, ProSAM's
    leave a linear layer and may be larger, which by itself makes them less sensitive; so the panel ``relative`` has
    noise in units of the prompts' root mean square.

    Args:
        episodes: frozen ones.
        nets: name -> learned prompts.
        absolute: standard deviations.
        relative: standard deviations in units of the root mean square.

    Raises:
        UserError: a standard deviation below 0.
    """
    levels = dict(zip(NOISES, (list(absolute), list(relative)), strict=True))
    for panel, stds in levels.items():
        if any(std < 0 for std in stds):
            raise UserError(f"--{panel}_noise is {stds}: give standard deviations, 0 or more.")
    rows = []
    for name, net in nets.items():
        objective = episodes.objective(net)
        for number, _, batch in episodes.batches(f"noise: {name}"):
            mean, embeddings = _mean_prompts(objective, net, batch)
            generator = torch.Generator().manual_seed(episodes.seed * 1_000_003 + number)
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            asked = [(panel, x) for panel in NOISES for x in levels[panel]]
            scales = {"absolute": 1.0, "relative": float(mean.square().mean().sqrt())}
            noisy = torch.stack([mean + x * scales[panel] * noise for panel, x in asked])
            values = _ious(objective.decode(embeddings, noisy)[:, 0], batch)
            rows += [
                episodes.row(number, panel=panel, series=name, x=x, value=value)
                for (panel, x), value in zip(asked, values, strict=True)
            ]
    return rows


@torch.no_grad()
def annotation_study(episodes: StudyEpisodes, nets: Nets, kinds: Sequence[str] = tuple(KINDS)) -> list[StudyRow]:
    """Annotate the supports in each way (the columns of ProSAM's Table 1) and measure IoU.

    Args:
        episodes: frozen ones.
        nets: name -> learned prompts.
        kinds: of :data:`monai_ext.prompts.annotations.KINDS`.
    """
    rows = []
    for name, net in nets.items():
        for kind in kinds:
            objective = episodes.objective(net, kind)
            for number, _, batch in episodes.batches(f"{kind}: {name}"):
                (value,) = _ious(objective.predict(net, batch), batch)
                rows.append(episodes.row(number, panel="", series=name, x=kind, value=value))
    return rows


@torch.no_grad()
def strategy_study(episodes: StudyEpisodes, nets: Nets, samples: int = 10) -> list[StudyRow]:
    """Make the mask of the mean prompt, or of K draws in each way (ProSAM's Table 7), and measure IoU.

    Args:
        episodes: frozen ones.
        nets: name -> learned prompts.
        samples: K.

    Raises:
        UserError: prompts without a distribution.
    """
    rows = []
    for name, net in nets.items():
        if net.is_certain:
            raise UserError(
                f"prompts {name} have no distribution (VRP-SAM), so all strategies are one: leave them out."
            )
        objective = episodes.objective(net)
        for number, _, batch in episodes.batches(f"strategies: {name}"):
            distribution, embeddings = objective.distribution(net, batch, np.random.default_rng(episodes.seed))
            generator = torch.Generator().manual_seed(episodes.seed * 1_000_003 + number)
            tokens = torch.cat([distribution.mean[None], net.sampler.draw(distribution, samples, generator)])
            logits = objective.decode(embeddings, tokens)[:, 0]
            for strategy in STRATEGIES:
                mask = logits[0] if strategy == MEAN_PROMPT else merge_logits(logits[1:], strategy)
                (value,) = _ious(mask[None], batch)
                rows.append(episodes.row(number, panel="", series=name, x=strategy, value=value))
    return rows


@torch.no_grad()
def centre_study(episodes: StudyEpisodes, nets: Nets) -> list[StudyRow]:
    """Compare prompts with SAM's prompt for a point at the object's centre (ProSAM's Table 4).

    The paper does not say which pixel that is; here it is the one farthest from the object's border. ``x`` is the
    cosine similarity of the point's embedding and each mean prompt, averaged over the prompts; ``value`` is the IoU.
    """
    rows = []
    for name, net in nets.items():
        objective = episodes.objective(net)
        for number, _, batch in episodes.batches(f"centres: {name}"):
            mean, embeddings = _mean_prompts(objective, net, batch)
            (value,) = _ious(objective.decode(embeddings, mean[None])[0], batch)
            point = embed_point(episodes.network, innermost(batch["query_mask"][0]))
            x = float(F.cosine_similarity(mean[0], point, dim=-1).mean())
            rows.append(episodes.row(number, panel="", series=name, x=x, value=value))
    return rows


def innermost(mask: Tensor) -> tuple[int, int]:
    """Return (x, y) of the pixel of a mask [H, W] that is farthest from its border; of equal ones the first."""
    depth = ndimage.distance_transform_edt(np.pad(mask.cpu().numpy() > 0, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(column), int(row)


def embed_point(network: PromptableSam, point: tuple[int, int]) -> Tensor:
    """Return SAM's embedding of a positive point (x, y) in input-frame pixels: [1, C]."""
    places = torch.tensor([[point]], dtype=torch.float32, device=network.device)
    labels = torch.ones(1, 1, device=network.device)
    sparse, _ = network.prompt_encoder(points=(places, labels), boxes=None, masks=None)
    return sparse[0, :1]


@dataclass(frozen=True)
class Descent:
    """How prompts are found by gradient descent (ProSAM §9), with Adam.

    Args:
        steps: at most.
        learning_rate: of Adam.
        patience: a prompt stops where its loss has not fallen by ``tolerance`` in so many steps.
        tolerance: the paper's 0.0003.
    """

    steps: int = 300
    learning_rate: float = 0.1
    patience: int = 100
    tolerance: float = 3e-4

    def __call__(self, parameters: Sequence[Tensor], losses: Callable[[int], Tensor]) -> None:
        """Minimise.

        Args:
            parameters: [P, ...] each, changed in place.
            losses: (step) -> [P]; that of one prompt does not depend on the others.
        """
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(list(parameters), lr=self.learning_rate)
        best, since = torch.full((len(parameters[0]),), torch.inf), torch.zeros(len(parameters[0]))
        for step in range(self.steps):
            optimizer.zero_grad()
            loss = losses(step)
            loss.sum().backward()
            told = loss.detach().cpu()
            since = torch.where(told < best - self.tolerance, torch.zeros_like(since), since + 1)
            best = torch.minimum(best, told)
            stopped = since > self.patience
            if bool(stopped.all()):
                break
            kept = [parameter.detach().clone() for parameter in parameters]
            optimizer.step()
            with torch.no_grad():
                for parameter, old in zip(parameters, kept, strict=True):
                    parameter[stopped.to(parameter.device)] = old[stopped.to(old.device)]


def descent_study(
    episodes: StudyEpisodes,
    descent: Descent,
    starts: int = 20,
    spread: float = 25.0,
    samples: int = 4,
    sampler: str = "t",
    nu: int = 5,
) -> list[StudyRow]:
    """Find prompts of single queries by gradient descent with a frozen SAM (ProSAM §9).

    ``deterministic`` are prompts of one token, each by itself, that start from a Gaussian; ``variational`` are as many
    draws of one distribution, whose draws had the loss.

    Args:
        episodes: frozen ones, of which the queries count.
        descent: how the loss is minimised.
        starts: deterministic prompts, and draws that are measured.
        spread: standard deviation of the starts (the paper's 25).
        samples: K draws of a step.
        sampler: of the distribution, see :class:`monai_ext.prompts.distribution.Sampler`.
        nu: likewise.

    Returns:
        For each prompt its IoU (panel ``IoU``) and its binary cross-entropy (panel ``BCE``).
    """
    network, draws, objective = episodes.network, Sampler(sampler, nu), SampledMaskLoss()
    channels = int(network.prompt_encoder.embed_dim)
    rows = []
    for number, _, batch in episodes.batches("descent"):
        with torch.no_grad():
            embeddings = network.encode(batch["query_image"])
        mask, valid = batch["query_mask"], batch["query_valid"]

        def losses(tokens: Tensor, e: Embeddings = embeddings, m: Tensor = mask, v: Tensor = valid) -> Tensor:
            logits = _decode(network, e, tokens)
            return torch.stack([objective(one[None, None], m, v) for one in logits])

        generator = torch.Generator().manual_seed(episodes.seed * 1_000_003 + number)
        tokens = (spread * torch.randn(starts, 1, channels, generator=generator)).to(episodes.device)
        mean, log_std = tokens[:1].clone(), torch.zeros_like(tokens[:1])
        found = {"deterministic": tokens}

        def of_starts(step: int, t: Tensor = tokens) -> Tensor:
            return losses(t)

        descent([tokens], of_starts)

        def drawn(count: int, m: Tensor = mean, s: Tensor = log_std, g: torch.Generator = generator) -> Tensor:
            return draws.draw(PromptDistribution(m, s.exp()), count, g)[:, 0]

        descent([mean, log_std], lambda step: losses(drawn(samples)).mean()[None])
        found["variational"] = drawn(starts)
        for series, prompts in found.items():
            with torch.no_grad():
                logits = _decode(network, embeddings, prompts)
            for panel, values in (("IoU", _ious(logits, batch)), ("BCE", _entropies(logits, batch))):
                rows += [episodes.row(number, panel=panel, series=series, x=number, value=value) for value in values]
    return rows


def _mean_prompts(
    objective: ProsamObjective, net: PromptDistributionNet, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Embeddings]:
    """Return the mean prompts [1, N, C] of a batch of one, and SAM's embeddings of its query."""
    distribution, embeddings = objective.distribution(net, batch, np.random.default_rng(objective.seed))
    return distribution.mean, embeddings


def _decode(network: PromptableSam, embeddings: Embeddings, tokens: Tensor) -> Tensor:
    """Decode sets of prompts [P, N, C] of one image: logits [P, S, S]."""
    repeated = Embeddings(embeddings.features.expand(len(tokens), -1, -1, -1), embeddings.size)
    low, _ = network.decode_tokens(repeated, tokens)
    return network.to_image(low, embeddings.size)[:, 0]


def _ious(logits: Tensor, batch: Mapping[str, Tensor]) -> list[float]:
    """Return the IoU of masks [P, S, S] with the query's, where its class is known; 1 where both are empty."""
    valid = batch["query_valid"][0]
    truth, found = (batch["query_mask"][0] > 0) & valid, (logits > 0) & valid
    union = (found | truth).flatten(1).sum(dim=1)
    shared = (found & truth).flatten(1).sum(dim=1)
    return torch.where(union > 0, shared / union.clamp(min=1), torch.ones_like(union, dtype=torch.float)).tolist()


def _entropies(logits: Tensor, batch: Mapping[str, Tensor]) -> list[float]:
    """Return the mean binary cross-entropy of masks [P, S, S], where the query's class is known."""
    valid = batch["query_valid"][0].float()
    truth = batch["query_mask"][0].expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid
    return (entropy.flatten(1).sum(dim=1) / valid.sum().clamp(min=1)).tolist()
