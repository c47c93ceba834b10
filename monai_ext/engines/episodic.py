"""Training and validation on episodes, for every few-shot method.

A method brings a network and two callables: ``step(network, batch, generator)`` returns the loss of a batch and its
terms, ``predict(network, batch)`` segments the queries. The content of a batch is described at
:class:`monai_ext.data.episodes.EpisodeDataset`. Engines are MONAI's.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_ext import processes
from monai_ext.data.episodes import Episode
from monai_ext.errors import UserError
from monai_ext.files import PathLike, atomic_path
from monai_ext.metrics.episodes import EpisodeCounts

Batch = Mapping[str, Any]
Step = Callable[[Any, Batch, torch.Generator], Mapping[str, Tensor]]
"""(network, batch, source of noise on the CPU) -> ``loss``, which is minimised, and further numbers for the log."""

Predict = Callable[[Any, Batch], Tensor]
"""(network, batch) -> logits [B, S, S] of the queries, above 0 where the structure is."""


SELECTION = ("val_mean", "val_dice", "val_superpixel_dice", "val_miou", "val_fb_iou")
"""Metrics that can choose weights."""


def check_selection(metric: str | None, episodes: Sequence[Episode]) -> None:
    """Refuse, before the training, a metric of which the frozen episodes tell nothing; warn where there are none.

    Args:
        metric: one of :data:`SELECTION`; None: the last weights stay.
        episodes: frozen ones of the validation.

    Raises:
        UserError: there are no superpixels for ``val_superpixel_dice``, or no classes for another metric.
    """
    if metric is None:
        return
    if not episodes:
        if processes.is_first():
            print("warning: no patient validates, so the last weights stay; see --validation_patients", file=sys.stderr)
        return
    kinds = {episode.is_superpixel for episode in episodes}
    if metric != "val_mean" and (metric == "val_superpixel_dice") not in kinds:
        raise UserError(f"--select {metric}: the validation has no such episodes; choose val_mean.")


class EpisodicIteration:
    """One training iteration: draws of noise by the iteration's number, losses, one step of the optimiser.

    Args:
        step: the method's losses.
        clip: largest norm of the gradient; None: it is not clipped.
        seed: of the noise that network or losses draw.

    Raises:
        UserError: for a norm that is not above 0.
    """

    def __init__(self, step: Step, clip: float | None = None, seed: int = 0) -> None:
        if clip is not None and clip <= 0:
            raise UserError(f"--clip is {clip}: give a number above 0, or null.")
        self.step, self.clip, self.seed = step, clip, seed

    def __call__(self, engine: Engine, batch: Batch) -> dict[str, float]:
        """Train on one batch; return the loss and its terms."""
        trainer: Any = engine
        number = self.seed * 1_000_003 + engine.state.iteration  # so that a resumed run draws the same
        torch.manual_seed(-number)
        network: nn.Module = trainer.network
        network.train()
        trainer.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(number)
        terms = self.step(network, to_device(batch, trainer.state.device), generator)
        terms["loss"].backward()
        if self.clip is not None:
            trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.clip)
        trainer.optimizer.step()
        return {name: float(value.detach()) for name, value in terms.items()}


def to_device(batch: Batch, device: Any) -> dict[str, Any]:
    """Move the tensors of a batch."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


class EpisodicValidation:
    """Segments frozen episodes and counts: Dice of each case, class-wise mIoU and FB-IoU.

    It is the evaluator's iteration and one of its handlers. The metrics of the run stand in the evaluator's state:
    ``val_dice`` (mean over the cases of a class, then over the classes), ``val_miou``, ``val_fb_iou``,
    ``val_superpixel_dice`` (mean over the episodes) where there are such, and ``val_mean``, the mean of the two Dice.

    Args:
        predict: of the method.
        episodes: in the order of the loader, which takes them one by one or in batches.
    """

    def __init__(self, predict: Predict, episodes: Sequence[Episode]) -> None:
        self.predict, self.episodes = predict, list(episodes)
        self.counts = EpisodeCounts()
        self.superpixels: list[float] = []
        self._next = 0

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _begin(self, engine: Engine) -> None:
        self.counts, self.superpixels, self._next = EpisodeCounts(), [], 0

    @torch.no_grad()
    def __call__(self, engine: Engine, batch: Batch) -> dict[str, float]:
        """Segment one batch; the queries' masks only count what was predicted without them."""
        evaluator: Any = engine
        evaluator.network.eval()
        moved = to_device(batch, evaluator.state.device)
        truths, valids = (moved[key].bool().cpu() for key in ("query_mask", "query_valid"))
        shown = {key: value for key, value in moved.items() if key not in ("query_mask", "query_valid")}
        predictions = (self.predict(evaluator.network, shown) > 0).cpu()
        for prediction, truth, valid in zip(predictions, truths, valids, strict=True):
            self._count(self.episodes[self._next], prediction, truth, valid)
            self._next += 1
        return {}

    def _count(self, episode: Episode, prediction: Tensor, truth: Tensor, valid: Tensor) -> None:
        if episode.is_superpixel:
            own = EpisodeCounts()
            own.add("", "", prediction, truth, valid)
            self.superpixels.append(own.mean_dice())
        else:
            self.counts.add(episode.name, (episode.query.dataset, episode.query.case), prediction, truth, valid)

    def _finish(self, engine: Engine) -> None:
        found: dict[str, float] = {}
        if self.counts.classes:
            found |= {
                "val_dice": self.counts.mean_dice(),
                "val_miou": self.counts.mean_iou(),
                "val_fb_iou": self.counts.fb_iou(),
            }
        if self.superpixels:
            found["val_superpixel_dice"] = sum(self.superpixels) / len(self.superpixels)
        dice = [found[key] for key in ("val_dice", "val_superpixel_dice") if key in found]
        engine.state.metrics.update({**found, "val_mean": sum(dice) / len(dice)})


class ValidationTable:
    """Writes what each validation found to ``validation.csv``, a line an epoch.

    Its lines are a state of the training, so that a training that goes on writes the same table.

    Args:
        folder: of the table.
    """

    def __init__(self, folder: PathLike) -> None:
        self.path = Path(folder) / "validation.csv"
        self.lines: list[dict[str, float]] = []

    def note(self, epoch: int, iteration: int, metrics: Mapping[str, float]) -> None:
        """Add a line and write the table whole."""
        self.lines = [line for line in self.lines if line["epoch"] < epoch]
        self.lines.append({"epoch": epoch, "iteration": iteration, **{k: round(v, 6) for k, v in metrics.items()}})
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.lines[0]))
            writer.writeheader()
            writer.writerows(self.lines)

    def state_dict(self) -> dict[str, Any]:
        """Return the lines."""
        return {"lines": self.lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the lines of an earlier start."""
        self.lines = list(state["lines"])


class EpisodicSelection:
    """Validates after each epoch or so and keeps the weights of the best one, which the network gets at the end.

    Attach it before what writes checkpoints and weights; its state belongs to the checkpoint's.

    Args:
        evaluator: on frozen episodes, with :class:`EpisodicValidation`.
        network: that is trained.
        folder: of ``validation.csv``, where each validation is noted.
        metric: of the evaluator, larger is better; None: the last weights stay.
        interval: epochs between validations.

    Raises:
        UserError: for an interval below 1.
    """

    def __init__(
        self,
        evaluator: Engine,
        network: nn.Module,
        folder: PathLike,
        metric: str | None = "val_mean",
        interval: int = 1,
    ) -> None:
        if interval < 1:
            raise UserError(f"--val_interval is {interval}: give 1 or more.")
        self.evaluator, self.network, self.table = evaluator, network, ValidationTable(folder)
        self.metric, self.interval = metric, interval
        self.best, self.epoch = -1.0, 0
        self.weights: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._validate)
        engine.add_event_handler(Events.COMPLETED, self._restore)

    def _validate(self, engine: Engine) -> None:
        evaluator: Any = self.evaluator
        if not evaluator.state.epoch_length:  # there are no validation patients
            return
        evaluator.run(engine.state.epoch)
        metrics = dict(evaluator.state.metrics)
        self.table.note(engine.state.epoch, engine.state.iteration, metrics)
        if self.metric is not None and metrics[self.metric] > self.best:
            self.best, self.epoch = float(metrics[self.metric]), engine.state.epoch
            self.weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def _restore(self, engine: Engine) -> None:
        if self.weights:
            self.network.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights so far and the lines of the table."""
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights, "table": self.table.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take those of an earlier start."""
        self.best, self.epoch, self.weights = float(state["best"]), int(state["epoch"]), dict(state["weights"])
        self.table.load_state_dict(state["table"])


def parameter_groups(network: nn.Module, learning_rate: float, trunk_rate: float) -> list[dict[str, Any]]:
    """Divide the trained parameters in two: the pretrained trunk's learn at a rate of their own.

    The trunk is the network's part ``trunk``; its reducing convolution ``trunk.reduce`` starts from random numbers and
    learns as everything else does. A rate of 0 freezes the trunk.

    Args:
        network: with a part ``trunk``.
        learning_rate: of all else.
        trunk_rate: of the trunk.

    Returns:
        The groups as torch's optimisers take them.
    """
    trunk: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        of_trunk = name.startswith("trunk.") and not name.startswith("trunk.reduce.")
        if of_trunk and trunk_rate == 0:
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            (trunk if of_trunk else rest).append(parameter)
    groups: list[dict[str, Any]] = [{"params": rest, "lr": learning_rate}]
    return groups + ([{"params": trunk, "lr": trunk_rate}] if trunk else [])


def count_epochs(steps: int, epoch_length: int) -> int:
    """Return how many epochs make at least so many steps."""
    return -(-steps // epoch_length)
