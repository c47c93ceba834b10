"""APSCL's training objective (§3.4, Eq. 13) for one step of episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.losses.prior_consistency import CollapseMonitor, PriorConsistencyLoss
from monai_ext.losses.spatial_contrast import ContrastQueue, SpatialContrastLoss
from monai_ext.networks.prototype_net import Episode, PrototypeNet
from monai_ext.networks.spatial_interaction import Projected

UNKNOWN = 255
"""Class of pixels that no loss counts."""


class ApsclObjective:
    """L = L_CE + lambda_KL (L_KL^s + L_KL^q) + lambda_SCL L_SCL, of which each auxiliary term can be switched off.

    A step is one episode. For the contrast of two classes it brings a second one of another class, which is neither
    segmented nor has a KL divergence: the paper trains with one episode a step.

    The objective has a state, the images in the queue and the masks' distributions that are watched:
    :meth:`state_dict`.

    Args:
        lambda_kl: weight of each KL divergence; 0 switches it off. It needs ``fem`` in the network.
        lambda_scl: weight of the contrast; 0 switches it off. It needs ``scl`` in the network.
        lambda_align: weight of PANet's alignment loss, which is not APSCL's: 1 for the rival PANet.
        ce_weight: weights of background and structure; [1, 1] as printed, ALPNet has [0.05, 1].
        scl_pool: see :class:`SpatialContrastLoss`.
        temperature: see :class:`SpatialContrastLoss`.
        kl_direction: see :class:`PriorConsistencyLoss`.
        superpixel_kl: whether episodes of superpixels, whose masks are no anatomy, have a KL divergence, too.
        queue_size: images held for ``scl_pool: queue``.
        window: masks over which the collapse of z_y is watched.

    Raises:
        UserError: ``ce_weight`` is not two numbers above 0.
    """

    def __init__(
        self,
        lambda_kl: float = 0.1,
        lambda_scl: float = 0.07,
        lambda_align: float = 0.0,
        ce_weight: Sequence[float] = (1.0, 1.0),
        scl_pool: str = "two_class",
        temperature: float = 0.1,
        kl_direction: str = "printed",
        superpixel_kl: bool = False,
        queue_size: int = 32,
        window: int = 200,
    ) -> None:
        self.lambda_kl, self.lambda_scl, self.lambda_align = lambda_kl, lambda_scl, lambda_align
        self.ce_weight, self.superpixel_kl = _class_weights(ce_weight), superpixel_kl
        self.consistency = PriorConsistencyLoss(kl_direction)
        self.contrast = SpatialContrastLoss(scl_pool, temperature)
        self.queue, self.monitor = ContrastQueue(queue_size), CollapseMonitor(window)

    @property
    def needs_two_classes(self) -> bool:
        """Whether a step must bring a second episode, of another class."""
        return self.lambda_scl > 0 and self.contrast.pool == "two_class"

    def __call__(
        self, network: PrototypeNet, batch: Mapping[str, Any], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of a step.

        Args:
            network: built with ``auxiliary``, in training mode.
            batch: of :class:`monai_ext.data.episodes.EpisodeDataset`: ``support_image`` and ``query_image``
                [B, 1 or 3, H, W] in [0, 255], ``support_mask`` and ``query_mask`` [B, H, W] of 0 and 1, ``classes``: B
                numbers, each superpixel its own, and ``supervised``: B times whether the class is an annotated one.
                B = 2 where two classes are needed, else 1. ``support_valid`` and ``query_valid`` [B, H, W] bool, where
                they are given, say what is known.
            generator: of the noise of z.

        Returns:
            ``loss`` to minimise, and for the log its terms ``ce``, ``kl``, ``scl``, ``align``, as far as they are on,
            and ``variance_mu_y`` and ``active_units`` of :class:`CollapseMonitor`.
        """
        diverges = bool(self.lambda_kl and network.options.fem and (self.superpixel_kl or bool(batch["supervised"][0])))
        episode = network.run_episodes(
            batch["support_image"],
            batch["support_mask"],
            batch["query_image"],
            batch["query_mask"],
            batch.get("support_valid"),
            batch.get("query_valid"),
            generator,
            segmented=1,
            with_posteriors=diverges,
        )
        terms = {"ce": self._cross_entropy(network, episode.scores[0], batch, "query")}
        loss = terms["ce"]
        if diverges:
            terms["kl"] = self._divergence(episode)
            loss = loss + self.lambda_kl * terms["kl"]
            variance, active = self.monitor.update(_posterior_means(episode))
            terms |= {"variance_mu_y": torch.tensor(variance), "active_units": torch.tensor(float(active))}
        if self.lambda_scl and network.options.scl:
            terms["scl"] = self._contrast(network, episode, [int(c) for c in batch["classes"]])
            loss = loss + self.lambda_scl * terms["scl"]
        if self.lambda_align:
            aligned = network.align(episode)[0]
            if aligned is not None:
                terms["align"] = self._cross_entropy(network, aligned, batch, "support")
                loss = loss + self.lambda_align * terms["align"]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Return what earlier steps left, for a training that goes on later."""
        return {"queue": self.queue.state_dict(), "monitor": self.monitor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.queue.load_state_dict(state["queue"])
        self.monitor.load_state_dict(state["monitor"])

    def _cross_entropy(self, network: PrototypeNet, scores: Tensor, batch: Mapping[str, Any], role: str) -> Tensor:
        """Compare scores [2, g, g] with the first mask at the image's size, where it is known."""
        target = batch[f"{role}_mask"][:1].to(scores.device, torch.long)
        if f"{role}_valid" in batch:
            target = target.masked_fill(~batch[f"{role}_valid"][:1].to(scores.device, torch.bool), UNKNOWN)
        logits = network.to_image(scores[None], (target.shape[-2], target.shape[-1]))
        return F.cross_entropy(logits, target, self.ce_weight.to(logits), ignore_index=UNKNOWN)

    def _divergence(self, episode: Episode) -> Tensor:
        """L_KL^s + L_KL^q of the episode that is segmented."""
        branches = (episode.supports[:1], episode.queries[:1])
        return torch.stack([self.consistency(b.prior, b.posterior) for b in branches if b.prior and b.posterior]).sum()

    def _contrast(self, network: PrototypeNet, episode: Episode, classes: list[int]) -> Tensor:
        projected, shares = network.project(episode)
        parts, of_images = (*projected, shares), classes + classes
        anchors = len(of_images)
        if self.contrast.pool == "queue":
            together, all_classes = self.queue.join(parts, of_images)
            self.queue.push(parts, of_images)
        else:
            together, all_classes = parts, of_images
        relevance = network.relevance(Projected(*together[:3]), together[3], anchors)
        return self.contrast(relevance, all_classes)


def _class_weights(given: Sequence[float]) -> Tensor:
    try:
        weights = torch.tensor(given, dtype=torch.float32)
    except (TypeError, ValueError):
        weights = torch.zeros(0)
    if weights.shape != (2,) or not bool((weights > 0).all() & weights.isfinite().all()):
        raise UserError(f"--ce_weight is {given}: give two numbers above 0, of background and structure.")
    return weights


def _posterior_means(episode: Episode) -> Tensor:
    branches = (episode.supports[:1], episode.queries[:1])
    return torch.cat([b.posterior.mean for b in branches if b.posterior is not None])


def segment_queries(network: PrototypeNet, batch: Mapping[str, Any]) -> Tensor:
    """Segment the queries of episodes: logits [B, H, W], above 0 where the structure is.

    Args:
        network: in evaluation mode.
        batch: as :class:`ApsclObjective` takes it; neither masks of queries nor what is known of them are read.
    """
    episode = network.run_episodes(
        batch["support_image"],
        batch["support_mask"],
        batch["query_image"],
        support_valid=batch.get("support_valid"),
    )
    height, width = batch["query_image"].shape[-2:]
    logits = network.to_image(episode.scores, (height, width))
    return logits[:, 1] - logits[:, 0]
