"""Interactive training of a promptable model (P²SAM §3.3 and Appendices A, B), as MONAI iteration functions.

One training batch walks through SAM's interactive loop: a first prompt (nothing, points or a box), then points from
the error region with the previous mask fed back, and iterations that see the previous mask alone. P²SAM's changes:
the no-prompt case is trained, one exact mask is asked for throughout, and the not-a-point and no-mask embeddings
get no gradient.

Declared deviations:

* With several structures on an image, the target of the no-prompt case is their union.
* The first prompt is drawn once a batch, and so are the numbers of points, so that all prompts of a batch have one
  length and decode together without padding.
* Loss, error regions and prompts are taken at the decoder's resolution (a quarter of an embedding cell), on masks
  averaged down to it, as SAM itself was trained; the authors' code upsamples to the input first.
* The encoder learns from every iteration of the loop and the optimiser steps once a batch; the authors' code steps
  after each iteration and shows the encoder the first one only.

Several processes may share the batches out (:mod:`monai_ext.engines.lockstep`). Every loss is a mean, over targets or
over images with known classes; each process weights its own by its share of these, so that the sum of the gradients
is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.data.slice_store import IGNORE
from monai_ext.engines.lockstep import ProcessGroup
from monai_ext.losses.correspondence import CorrespondenceLoss
from monai_ext.losses.promptable import DenseClassLoss, PromptableLoss
from monai_ext.networks.sam import PromptableSam
from monai_ext.prompts.sampling import centre_click, noisy_boxes, sample_correction, sample_points
from monai_ext.transforms.augment import BatchAugment

FIRST_PROMPTS = ("none", "points", "box")
SURELY_OUTSIDE = -20.0
"""Logit of pixels whose class is not known: no loss counts it as a mistake."""


def autocast(device: torch.device, dtype: str | None) -> AbstractContextManager:
    """Mixed precision on ``device`` in ``dtype`` ("bfloat16", "float16"), or full precision for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=getattr(torch, dtype))


def stop_no_prompt_gradients(network: PromptableSam) -> None:
    """Freeze the not-a-point and the no-mask embedding (P²SAM, Appendix B, modification 2)."""
    network.prompt_encoder.not_a_point_embed.weight.requires_grad_(False)
    network.prompt_encoder.no_mask_embed.weight.requires_grad_(False)


def trained_parameters(network: PromptableSam, auxiliary: nn.Module | None = None) -> list[nn.Parameter]:
    """Freeze what the paper freezes and return the parameters that the optimiser is to train."""
    stop_no_prompt_gradients(network)
    modules: list[nn.Module] = [network] if auxiliary is None else [network, auxiliary]
    return [p for module in modules for p in module.parameters() if p.requires_grad]


class Draws(NamedTuple):
    """Sources of randomness, on the CPU: one that all processes of a training share, and this process's own.

    What decides the course of a batch (kind and number of prompts, length of the loop) is drawn by the first, what
    concerns single images (augmentation, structures, points, boxes) by the second. For one process both are the same.
    """

    shared: torch.Generator
    own: torch.Generator


class InteractiveIteration:
    """One batch of interactive training; give it to a MONAI ``SupervisedTrainer`` as ``iteration_update``.

    Args:
        loss: of logits, predicted IoU and mask.
        iterations: length of the interactive loop; SAM has 11.
        random_length: draw each batch's length of the loop from 1 to ``iterations``.
        first_prompt: weight of each kind of first prompt; the paper's code draws uniformly.
        first_points: most positive and most negative points of a first point prompt; SAM has one positive. The
            compact model is trained with several at once, for that is how P²SAM will prompt it.
        corrections: most points drawn from the error region in a follow-up.
        near_border: see :func:`monai_ext.prompts.sampling.sample_points`; the band is 12 image pixels wide.
        objects: structures drawn from each image.
        auxiliary: dense loss on the embedding, or None.
        auxiliary_weight: its weight.
        auxiliary_sources: indices of the sources whose labels are the auxiliary loss's classes.
        promptless_sources: indices of the sources that the no-prompt case is trained on, None for all: the union of
            regions that nobody labelled is no target.
        dense_first: iterations at the start that train the encoder by the auxiliary loss alone, which is cheap.
        dtype: precision of the encoder and decoder ("bfloat16"), or None.
        augment: augmentation of the batch, or None.
        clip: largest gradient norm, or None.
        seed: seeds prompts and augmentation; iteration i depends on (seed, i), and on the process where there are
            several, alone, so that a run can be resumed.
        group: the processes that share the batches out; None: there is one.
        correspondence: loss on the embeddings of two views of each slice, or None; the batches then have to hold two.
        correspondence_weight: its weight.

    Raises:
        ValueError: for an unknown first prompt.
    """

    def __init__(
        self,
        loss: PromptableLoss,
        iterations: int = 11,
        random_length: bool = False,
        first_prompt: Mapping[str, float] | None = None,
        first_points: Sequence[int] = (1, 0),
        corrections: int = 1,
        near_border: float = 0.0,
        objects: int = 1,
        auxiliary: DenseClassLoss | None = None,
        auxiliary_weight: float = 1.0,
        auxiliary_sources: Sequence[int] = (0,),
        promptless_sources: Sequence[int] | None = None,
        dense_first: int = 0,
        dtype: str | None = None,
        augment: BatchAugment | None = None,
        clip: float | None = None,
        seed: int = 0,
        group: ProcessGroup | None = None,
        correspondence: CorrespondenceLoss | None = None,
        correspondence_weight: float = 1.0,
    ) -> None:
        weights = first_prompt if first_prompt is not None else dict.fromkeys(FIRST_PROMPTS, 1.0)
        if unknown := set(weights) - set(FIRST_PROMPTS):
            raise ValueError(f"unknown first prompts {sorted(unknown)}: choose among {', '.join(FIRST_PROMPTS)}")
        self.loss, self.iterations, self.random_length, self.objects = loss, iterations, random_length, objects
        self.first_weights = torch.tensor([float(weights.get(kind, 0.0)) for kind in FIRST_PROMPTS])
        self.first_points, self.corrections, self.near_border = first_points, corrections, near_border
        self.auxiliary, self.auxiliary_weight = auxiliary, auxiliary_weight
        self.auxiliary_sources, self.dense_first = torch.tensor(auxiliary_sources), dense_first
        self.promptless_sources = None if promptless_sources is None else torch.tensor(promptless_sources)
        self.dtype, self.augment, self.clip, self.seed = dtype, augment, clip, seed
        self.group = ProcessGroup() if group is None else group
        self.correspondence, self.correspondence_weight = correspondence, correspondence_weight

    def __call__(self, engine: Engine, batch: dict[str, Any]) -> dict[str, float]:
        """Train on {"image": [B, 3, S, S], "label": [B, 1, S, S], "valid": [B, 1, S, S], "source": [B]}.

        With V views of each slice, the first three are [B, V, ...].

        Returns:
            The losses of the batch; of the whole batch where processes share it out.
        """
        trainer = cast(SupervisedTrainer, engine)
        network = cast(PromptableSam, trainer.network)
        device = network.device
        draws = self._draws(engine.state.iteration)
        image, label, valid, sources = _one_by_one(batch)
        image, label, valid = (x.to(device) for x in (image, label, valid))
        if self.augment is not None:
            image, label, valid = self.augment(image, label, valid, draws.own)
        labels, undecided = split_undecided(label)
        inside = (valid[:, 0] > 0.5) & ~undecided

        network.train()
        trainer.optimizer.zero_grad(set_to_none=True)
        with autocast(device, self.dtype):
            features = network.encode(image).features
        kind, owners, masks = "", labels.new_zeros(0), labels.new_zeros(0)
        if engine.state.iteration > self.dense_first:
            kind = FIRST_PROMPTS[int(torch.multinomial(self.first_weights, 1, generator=draws.shared))]
            targets = labels
            if kind == "none" and self.promptless_sources is not None:
                fit = torch.isin(sources, self.promptless_sources).to(device)
                targets = labels * fit[:, None, None]
            owners, masks = draw_targets(targets, self.objects, kind == "none", draws.own)
        known = torch.zeros(0, dtype=torch.bool)
        if self.auxiliary is not None:
            known = torch.isin(sources, self.auxiliary_sources)
        found = features.new_zeros(0)
        if self.correspondence is not None:
            found = self.correspondence(features, labels, inside, draws.own)
        all_targets, all_known, all_found = self.group.total([len(owners), int(known.sum()), len(found)])
        total = masked = dense = matched = features.new_zeros(())
        if len(owners):  # augmentation may have moved every structure out of the image
            masked = self._interact(network, features, owners, masks, inside, undecided, kind, draws)
            total = masked = masked * (len(owners) / all_targets)
        if self.auxiliary is not None:
            dense = self.auxiliary(features, labels, known.to(device), ~undecided)
            dense = dense * (int(known.sum()) / max(all_known, 1))
            total = total + self.auxiliary_weight * dense
        if len(found):
            matched = found.sum() / all_found
            total = total + self.correspondence_weight * matched
        if total.requires_grad:  # else the batch, or this process's part, holds nothing to learn from
            total.backward()
        parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        self.group.add_gradients(parameters)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        trainer.optimizer.step()
        losses = self.group.total([float(part.detach()) for part in (masked, dense, matched, total)])
        output = dict(zip(("mask_loss", "auxiliary_loss", "correspondence_loss", "loss"), losses, strict=True))
        if not all_targets:
            del output["mask_loss"]
        if self.auxiliary is None:
            del output["auxiliary_loss"]
        if not all_found:
            del output["correspondence_loss"]
        return output

    def _draws(self, iteration: int) -> Draws:
        """Seed the sources of randomness of an iteration, and torch's own, from which drop path draws."""
        number = self.seed * 1_000_003 + iteration
        shared = torch.Generator().manual_seed(number)
        if self.group.size == 1:
            torch.manual_seed(-number)
            return Draws(shared, shared)
        own, global_seed = np.random.SeedSequence([self.seed, iteration, self.group.rank]).generate_state(2).tolist()
        torch.manual_seed(global_seed)
        return Draws(shared, torch.Generator().manual_seed(own))

    def _interact(
        self,
        network: PromptableSam,
        features: Tensor,
        owners: Tensor,
        masks: Tensor,
        valid: Tensor,
        undecided: Tensor,
        kind: str,
        draws: Draws,
    ) -> Tensor:
        """Walk through the interactive loop; return the mean loss of its iterations."""
        features = features[owners]
        shares, cells, inside = to_decoder_grid(masks, valid[owners], 4 * network.grid)
        unscored = F.max_pool2d(undecided[owners, None].float(), masks.shape[-1] // cells.shape[-1]) > 0.5
        unscored &= ~cells[:, None]
        pixels = masks.shape[-1] / cells.shape[-1]
        points, labels, boxes = self._first(cells, inside, kind, pixels, draws)
        length = int(torch.randint(1, self.iterations + 1, (), generator=draws.shared)) if self.random_length else None
        length = length or self.iterations
        alone = mask_only_steps(length, draws.shared)
        previous: Tensor | None = None
        total = features.new_zeros(())
        for step in range(length):
            given: tuple[Tensor, Tensor, Tensor | None] = (points[:, :0], labels[:, :0], None)
            if step not in alone:
                boxed = None if boxes is None else (boxes + 0.5) * pixels - 0.5
                given = ((points + 0.5) * pixels - 0.5, labels, boxed)
            with autocast(features.device, self.dtype):
                logits, quality = network.decode_batch(features, *given, mask_input=previous)
            logits = logits.float()
            scored = logits.masked_fill(unscored, SURELY_OUTSIDE)
            total = total + self.loss(scored, quality.float(), shares[:, None], cells[:, None])
            previous = logits.detach()
            if step + 1 < length and step + 1 not in alone:
                count = int(torch.randint(1, self.corrections + 1, (), generator=draws.shared))
                more = sample_correction(cells, scored.detach()[:, 0] > 0, count, draws.own)
                points, labels = torch.cat([points, more[0]], dim=1), torch.cat([labels, more[1]], dim=1)
        return total / length

    def _first(
        self, masks: Tensor, valid: Tensor, kind: str, pixels: float, draws: Draws
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw the first prompt on the decoder's grid, whose cells are ``pixels`` wide."""
        positives = negatives = 0
        if kind == "points":
            positives = int(torch.randint(1, self.first_points[0] + 1, (), generator=draws.shared))
            negatives = int(torch.randint(0, self.first_points[1] + 1, (), generator=draws.shared))
        points, labels = sample_points(masks, valid, positives, negatives, draws.own, self.near_border, 12 / pixels)
        return points, labels, noisy_boxes(masks, draws.own, most=20 / pixels) if kind == "box" else None


def _one_by_one(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return image, label, valid and source of a batch, the views of a slice one after the other.

    Slices that do not name their source are of the first.
    """
    image, label, valid = (torch.as_tensor(batch[key]) for key in ("image", "label", "valid"))
    source = torch.as_tensor(batch.get("source", torch.zeros(len(image), dtype=torch.long)))
    if image.ndim == 5:
        source = source.repeat_interleave(image.shape[1])
        image, label, valid = (x.flatten(0, 1) for x in (image, label, valid))
    return image, label, valid, source


def split_undecided(label: Tensor) -> tuple[Tensor, Tensor]:
    """Return classes [B, S, S], 0 where they are not known, and where that is, of a label [B, 1, S, S]."""
    classes = label[:, 0].round().long()
    undecided = classes == IGNORE
    return classes.masked_fill(undecided, 0), undecided


def mask_only_steps(length: int, generator: torch.Generator) -> set[int]:
    """Steps that see the previous mask alone (P²SAM, Appendix A): the last, and one random other of 5 or more.

    Loops of one or two steps have none.
    """
    if length < 3:
        return set()
    steps = {length - 1}
    if length >= 5:
        steps.add(int(torch.randint(1, length - 1, (), generator=generator)))
    return steps


def draw_targets(labels: Tensor, objects: int, union: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the structures to segment from each image that holds any.

    Args:
        labels: [B, H, W] integer, 0 for background.
        objects: structures drawn from each image, with replacement.
        union: take all structures of the image together instead (the no-prompt case), once an image.
        generator: source of randomness, on the CPU.

    Returns:
        The image of each target, [K], and the targets, [K, H, W] bool; K = 0 where no image holds a structure.
    """
    owners, masks = [], []
    for index, label in enumerate(labels):
        present = label.unique()
        present = present[present > 0]
        if not len(present):
            continue
        if union:
            owners.append(index)
            masks.append(label > 0)
            continue
        for pick in torch.randint(len(present), (objects,), generator=generator).tolist():
            owners.append(index)
            masks.append(label == present[pick])
    rows = torch.tensor(owners, dtype=torch.long, device=labels.device)
    return rows, torch.stack(masks) if masks else labels.new_zeros((0, *labels.shape[1:]), dtype=torch.bool)


def to_decoder_grid(masks: Tensor, valid: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Average masks down to the decoder's grid.

    Args:
        masks: [K, S, S] bool, none empty.
        valid: [K, S, S] bool, where there is image.
        side: side of the decoder's masks, a divisor of S.

    Returns:
        The covered share of each cell [K, side, side]; the cells of the mask, bool: those covered by half, or by
        anything where a mask is too small to cover half of any; the cells that hold image.
    """
    factor = masks.shape[-1] // side
    shares = F.avg_pool2d(masks[:, None].float(), factor)[:, 0]
    cells = shares >= 0.5
    cells = torch.where(cells.flatten(1).any(dim=1)[:, None, None], cells, shares > 0)
    return shares, cells, F.max_pool2d(valid[:, None].float(), factor)[:, 0] > 0.5


class PromptedValidation:
    """Dice of one click that knows the answer, and of no prompt; ``iteration_update`` of a ``SupervisedEvaluator``.

    ``click_dice`` is the mean over slices and structures, with the click at the deepest point of the structure;
    ``no_prompt_dice`` compares the promptless mask with the union of the structures. Slice-wise and in the input
    frame: figures to steer a training by, not results.

    Args:
        dtype: see :class:`InteractiveIteration`.
    """

    def __init__(self, dtype: str | None = None) -> None:
        self.dtype = dtype
        self.scores: dict[str, list[float]] = {}

    def attach(self, engine: Engine) -> None:
        """Collect over an epoch of ``engine`` and leave the means in ``engine.state.metrics``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._clear)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _clear(self, engine: Engine) -> None:
        self.scores = {"click_dice": [], "no_prompt_dice": []}

    def _finish(self, engine: Engine) -> None:
        for name, values in self.scores.items():
            engine.state.metrics[name] = sum(values) / max(len(values), 1)

    @torch.no_grad()
    def __call__(self, engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        """Score one batch; its keys are those of :class:`InteractiveIteration`."""
        network = cast(PromptableSam, cast(Any, engine).network)
        device = network.device
        labels, undecided = split_undecided(torch.as_tensor(batch["label"]).to(device))
        network.eval()
        with autocast(device, self.dtype):
            features = network.encode(torch.as_tensor(batch["image"]).to(device)).features
        owners = [(b, v) for b, label in enumerate(labels) for v in label.unique().tolist() if v > 0]
        masks = torch.stack([labels[b] == v for b, v in owners])
        clicks = torch.tensor([centre_click(m.cpu().numpy()) for m in masks], device=device).float()[:, None]
        rows = torch.tensor([b for b, _ in owners], device=device)
        self._score("click_dice", network, features[rows], clicks, masks, undecided[rows])
        self._score("no_prompt_dice", network, features, clicks.new_zeros(len(labels), 0, 2), labels > 0, undecided)
        return {}

    def _score(
        self, name: str, network: PromptableSam, features: Tensor, points: Tensor, masks: Tensor, undecided: Tensor
    ) -> None:
        with autocast(features.device, self.dtype):
            logits, _ = network.decode_batch(features, points, torch.ones_like(points[..., 0]))
        predicted = network.to_image(logits.float(), (masks.shape[-2], masks.shape[-1]))[:, 0] > 0
        predicted &= ~undecided
        overlap = (predicted & masks).sum((1, 2))
        total = (predicted.sum((1, 2)) + masks.sum((1, 2))).clamp(min=1)
        self.scores[name] += (2 * overlap / total).tolist()
