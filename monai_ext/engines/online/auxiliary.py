"""AuxOL's method: an auxiliary network on the crop, fused with SAM, one step a correction (Listing 1)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_ext.engines.online.batch import OnlineBatch, Sample
from monai_ext.engines.online.fusion import best_alpha, check_alpha, current_alpha, fuse
from monai_ext.engines.online.view import Correction, CroppedView
from monai_ext.errors import UserError
from monai_ext.losses.structure import StructureLoss
from monai_ext.networks.online_unet import build_online_unet
from monai_ext.prompts.crops import grow, shrink, shrink_mask

SAM_CHANNELS = ("none", "mask", "probability")


@dataclass(frozen=True)
class AuxiliarySettings:
    """Hyperparameters of :class:`AuxiliaryFusion`; the paper's where no other reason is given.

    Attributes:
        base: channels of the network's first level; the paper's is 64, ours is what a CPU trains in half a second.
        encoder: ``unet`` or ``imagenet``.
        crop: side of the resampled crop in pixels, a multiple of 16 from 32; the authors' is 128.
        batch: k, most samples of the online batch; the paper's is 32.
        policy: see :class:`~monai_ext.engines.online.batch.OnlineBatch`.
        max_age: see there.
        learning_rate: of AdamW; the paper's is 5e-4.
        weight_decay: of AdamW, the authors' code's.
        steps_per_feedback: optimiser steps after each correction; the paper's is 1.
        alpha: a fixed weight of SAM; None: learned (Eq. 3).
        sam_channel: what the network sees of SAM: ``none``, ``mask`` (the paper's with boxes; binary, as in the
            authors' code) or ``probability``.
        official_loss: see :class:`~monai_ext.losses.structure.StructureLoss`.
        seed: of the random weights.

    Raises:
        UserError: for an impossible value.
    """

    base: int = 16
    encoder: str = "unet"
    crop: int = 64
    batch: int = 8
    policy: str = "smallest_loss"
    max_age: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    steps_per_feedback: int = 2
    alpha: float | None = None
    sam_channel: str = "none"
    official_loss: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        OnlineBatch(self.batch, self.policy, self.max_age)  # refuses what it cannot do
        if self.sam_channel not in SAM_CHANNELS:
            raise UserError(f"sam_channel {self.sam_channel!r} is unknown: choose one of {', '.join(SAM_CHANNELS)}.")
        if not isinstance(self.crop, int) or self.crop < 32 or self.crop % 16:
            raise UserError(f"crop is {self.crop}: give the side of the crop in pixels, a multiple of 16 from 32.")
        if not isinstance(self.steps_per_feedback, int) or self.steps_per_feedback < 1:
            raise UserError(f"steps_per_feedback is {self.steps_per_feedback}: give a whole number from 1.")


class AuxiliaryFusion:
    """What learns: the auxiliary network with its optimiser, online batch and optimal alphas.

    Args:
        settings: see :class:`AuxiliarySettings`.
        device: where it computes.
        imagenet: with ``encoder: imagenet``, start from ImageNet's weights.

    Example:
        >>> method = AuxiliaryFusion(AuxiliarySettings(base=8, sam_channel="mask"))
        >>> logits, said = method.serve()(view)  # SAM's own until five corrections have been absorbed
    """

    with_features = False

    def __init__(self, settings: AuxiliarySettings, device: torch.device | str = "cpu", imagenet: bool = True) -> None:
        self.settings, self.device, self._imagenet = settings, torch.device(device), imagenet
        self.loss = StructureLoss(settings.official_loss)
        self.reset()

    def describe(self) -> dict[str, Any]:
        """Return name and settings."""
        return {"method": "auxiliary", **asdict(self.settings)}

    def reset(self) -> None:
        """Begin anew, with the weights of the seed."""
        s = self.settings
        channels = 3 if s.sam_channel == "none" else 4
        network = build_online_unet(channels, s.base, s.encoder, s.seed, self._imagenet)
        self.network = network.to(self.device)
        self._optimiser = self._new_optimiser()
        self.batch = OnlineBatch(s.batch, s.policy, s.max_age)
        self.alphas: list[tuple[str, float]] = []
        self.corrections = 0

    @property
    def alpha(self) -> float:
        """Weight of SAM for the next view."""
        return current_alpha([alpha for _, alpha in self.alphas], self.settings.alpha)

    def serve(self) -> FusedAnswer:
        """Return a copy that answers while this one learns."""
        return FusedAnswer(deepcopy(self.network).requires_grad_(False), self.alpha, self.settings)

    def absorb(self, correction: Correction) -> dict[str, Any]:
        """Insert the corrected sample and train on the whole batch (Listing 1, lines 10 to 19).

        u, its loss and the optimal alpha come from the weights before the step. A pseudo-label gives no alpha: it would
        be the one that made it.

        Returns:
            ``loss`` of the sample before the step, ``kept`` in the batch or not, ``mean_loss`` of the ``batch`` samples
            in the step, and ``best_alpha``.
        """
        view = correction.view
        image = network_input(view, self.settings).to(self.device)
        truth = shrink_mask(correction.truth, self.settings.crop)[None].to(self.device)
        own = self._look(image)
        loss = float(self.loss(own[None], truth[None]))
        refuse_nan(loss, correction.key)
        batch = self.batch.insert(Sample(correction.key, image, truth, loss, self.corrections))
        said: dict[str, Any] = {"loss": loss, "kept": any(s.key == correction.key for s in batch.samples)}
        before = self._copy()
        try:
            for _ in range(self.settings.steps_per_feedback):
                batch = self._train(batch)
            refuse_diverged(self._look(image), correction.key)
        except BaseException:
            self._restore(before)
            raise
        self.batch, self.corrections = batch, self.corrections + 1
        if correction.source == "expert":
            found = best_alpha(correction.sam, grow(own[0].cpu(), view.crop.size), correction.truth)
            self.alphas = [one for one in self.alphas if one[0] != correction.key][-self._kept_alphas :]
            self.alphas.append((correction.key, found))
            said["best_alpha"] = found
        losses = [sample.loss for sample in self.batch.samples]
        return {**said, "mean_loss": sum(losses) / len(losses), "batch": len(losses)}

    _kept_alphas = 64
    """Optimal alphas that are kept: more than are averaged, so that a replaced one does not leave a gap."""

    def step(self) -> dict[str, Any]:
        """Train on the batch as it is (the authors' code does so where no correction is given)."""
        if not self.batch.samples:
            return {}
        before = self._copy()
        try:
            batch = self._train(self.batch)
            for sample in batch.samples:
                refuse_diverged(self._look(sample.image), sample.key)
        except BaseException:
            self._restore(before)
            raise
        self.batch = batch
        return {"mean_loss": sum(s.loss for s in self.batch.samples) / len(self.batch.samples)}

    def _look(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(image[None])[0]

    def _train(self, batch: OnlineBatch) -> OnlineBatch:
        """Take one step on the mean loss of the batch; returns it with the losses of this pass."""
        images, truths = batch.stacked()
        with torch.enable_grad():
            losses = self.loss(self.network(images), truths)
            mean = losses.mean()
            refuse_nan(float(mean.detach()), "the batch")
            self._optimiser.zero_grad(set_to_none=True)
            mean.backward()
            refuse_gradients(self.network)
            self._optimiser.step()
        return batch.with_losses(losses.detach().tolist())

    def _new_optimiser(self) -> torch.optim.AdamW:
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, self.settings.learning_rate, weight_decay=self.settings.weight_decay)

    def _copy(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Copy weights and optimiser, to return to them where a step fails or diverges."""
        return deepcopy(self.network.state_dict()), deepcopy(self._optimiser.state_dict())

    def _restore(self, before: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self.network.load_state_dict(before[0])
        self._optimiser.load_state_dict(before[1])

    # ---- state -------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return weights, moments of the optimiser and samples as tensors; alphas, losses and counts as JSON."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for number, moments in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{number}/{name}": value for name, value in moments.items()}
        for number, sample in enumerate(self.batch.samples):
            tensors |= {f"batch/{number}/image": sample.image, f"batch/{number}/truth": sample.truth}
        samples = [{"key": s.key, "loss": s.loss, "born": s.born} for s in self.batch.samples]
        return tensors, {"alphas": self.alphas, "samples": samples, "corrections": self.corrections}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Become what :meth:`state` returned; the settings have to be the same.

        Raises:
            UserError: weights of another network.
        """
        self.reset()
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimiser": {}, "batch": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        own = self.network.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in parts["network"].items()}:
            raise UserError("the state holds weights of another network: give the settings that it was made with.")
        self.network.load_state_dict(parts["network"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimiser"].items():
            number, _, which = name.partition("/")
            moments.setdefault(int(number), {})[which] = value.clone()
        self._optimiser = self._new_optimiser()
        fresh = self._optimiser.state_dict()
        self._optimiser.load_state_dict({"state": moments, "param_groups": fresh["param_groups"]})
        samples = tuple(
            Sample(
                one["key"],
                parts["batch"][f"{number}/image"].to(self.device),
                parts["batch"][f"{number}/truth"].to(self.device),
                one["loss"],
                one["born"],
            )
            for number, one in enumerate(values["samples"])
        )
        self.batch = OnlineBatch(self.settings.batch, self.settings.policy, self.settings.max_age, samples)
        self.alphas = [(key, alpha) for key, alpha in values["alphas"]]
        self.corrections = values["corrections"]


@dataclass(frozen=True)
class FusedAnswer:
    """AuxOL at one moment: Eq. 1 with weights and alpha that never change."""

    network: nn.Module
    alpha: float
    settings: AuxiliarySettings

    @torch.no_grad()
    def __call__(self, view: CroppedView) -> tuple[Tensor, dict[str, Any]]:
        """Return fused logits [h, w], and ``alpha`` and ``own``, the network's logits [h, w]."""
        image = network_input(view, self.settings).to(next(self.network.parameters()).device)
        own = self.network(image[None])[0, 0].cpu()
        own = grow(own, view.crop.size)
        return fuse(view.sam, own, self.alpha), {"alpha": self.alpha, "own": own}


def network_input(view: CroppedView, settings: AuxiliarySettings) -> Tensor:
    """Make the network's input of a crop: [3 or 4, S, S] in [0, 1], SAM last (paper §3.3, box prompts)."""
    image = shrink(view.image, settings.crop).expand(3, -1, -1) / 255
    if settings.sam_channel == "none":
        return image.contiguous()
    if settings.sam_channel == "mask":
        sam = shrink_mask(view.sam > 0, settings.crop)
    else:
        sam = shrink(view.sam.sigmoid()[None], settings.crop)[0]
    return torch.cat([image, sam[None]])


def refuse_nan(loss: float, what: str) -> None:
    """Refuse a loss that is not a number.

    Raises:
        UserError: names what it is of.
    """
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise UserError(f"the loss of {what} is not a number: nothing is learned from it; look at its image and mask.")


def refuse_gradients(network: nn.Module) -> None:
    """Refuse gradients whose squares, which AdamW keeps, are not finite: they would stay in its moments for good.

    Raises:
        UserError: one of them is.
    """
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if not all(bool(gradient.square().isfinite().all()) for gradient in gradients):
        raise UserError("the gradients of the batch are not finite: nothing is learned from it; lower learning_rate.")


def refuse_diverged(logits: Tensor, what: str) -> None:
    """Refuse weights whose answer is not finite: its mask would be empty where a structure is.

    Raises:
        UserError: names what the answer is of.
    """
    if not bool(logits.isfinite().all()):
        raise UserError(
            f"after the step the answer for {what} is not finite: nothing is learned from it; lower learning_rate."
        )
