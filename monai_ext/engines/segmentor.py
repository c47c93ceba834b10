"""Training of the dual-branch segmentor on scribbles and pseudo-labels (DMPLS; SAM-SP), and SAM's fine-tuning.

Both are MONAI's SupervisedTrainer with an iteration of their own; :mod:`monai_ext.engines.rounds` calls them in turn.
All draws of an iteration depend on the seed and its number alone, so that a training goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, PolynomialLR
from torch.utils.data import DataLoader

from monai_ext.data.scribble_slices import ScribbleDataset, ShuffledSampler
from monai_ext.data.slice_store import IGNORE
from monai_ext.engines.held_out import HeldOutSelection
from monai_ext.engines.interactive import autocast
from monai_ext.errors import UserError
from monai_ext.inferers.embedding_cache import EmbeddingCache
from monai_ext.inferers.prompted_sam import PromptedSamInferer
from monai_ext.losses.partial import PartialCrossEntropy, PseudoLabelDice, ScribbleMaskLoss, mix_pseudo_labels
from monai_ext.losses.semantic_alignment import SemanticAlignment
from monai_ext.networks.dual_branch_unet import BranchOutputs, DualBranchUNet
from monai_ext.networks.precision import PRECISIONS
from monai_ext.networks.sam import PromptableSam
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.ties import likeliest_label
from monai_ext.transforms.augment import ScribbleAugment

VARIANTS = ("pce", "dmpls", "sam_sp", "full")

MakeHandlers = Callable[..., Sequence[Any]]
"""(folder, states, sampler, scheduler) -> handlers; see :func:`monai_ext.handlers.training.stage_handlers`."""


class SegmentorIteration:
    """One training step of the segmentor.

    * ``pce``: cross-entropy on scribbles of the output that inference uses.
    * ``dmpls``: 0.5 (CE(main) + CE(aux)) on scribbles + 0.5 * 0.5 (Dice(main) + Dice(aux)) against the mixture of the
      branches, one weight beta an iteration. Of a network with a joint output, this is a third one in both means.
    * ``sam_sp``: CE + SCA + SSA; CE on scribbles and SCA, Dice against SAM's pseudo-labels, are summed over the three
      outputs (the authors' code counts aux twice in SCA and leaves main out), SSA is the semantic alignment.
    * ``full``: cross-entropy and Dice with dense labels, of the output that inference uses: the upper bound.

    Args:
        variant: one of the four.
        weights: of CE, SCA and SSA.
        temperature: of SSA.
        augment: maps image and label maps, or None.
        precision: of the network, ``float32`` or ``bfloat16``; losses and weights stay in float32. See
            :func:`monai_ext.networks.precision.choose_precision`.
        seed: of all draws.

    Raises:
        UserError: for an unknown variant or precision, or another number of weights.
    """

    def __init__(
        self,
        variant: str = "sam_sp",
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        temperature: float = 1.0,
        augment: ScribbleAugment | None = None,
        precision: str = "float32",
        seed: int = 0,
    ) -> None:
        if variant not in VARIANTS:
            raise UserError(f"variant {variant!r} is unknown: choose one of {', '.join(VARIANTS)}.")
        if precision not in PRECISIONS:
            raise UserError(f"--precision {precision!r} is unknown: choose one of {', '.join(PRECISIONS)}.")
        if not isinstance(weights, Sequence) or len(weights) != 3:
            raise UserError(f"--loss_weights is {weights}: give three numbers, such as [1.0, 1.0, 1.0].")
        self.variant, self.weights, self.augment, self.seed = variant, tuple(weights), augment, seed
        self.precision = precision
        self.partial, self.dice = PartialCrossEntropy(IGNORE), PseudoLabelDice(IGNORE)
        self.alignment = SemanticAlignment(temperature, IGNORE)

    @property
    def needs_targets(self) -> bool:
        """Whether items bring a target: pseudo-labels or dense labels."""
        return self.variant in ("sam_sp", "full")

    def __call__(self, engine: Engine, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Train on one batch of :class:`ScribbleDataset`; return the losses."""
        trainer: Any = engine
        number = self.seed * 1_000_003 + engine.state.iteration
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(-number)  # dropout draws from torch's own generator
        image = batch["image"].to(trainer.state.device)
        maps = torch.stack([batch[key] for key in ("scribble", "target") if key in batch], dim=1).to(image.device)
        if self.augment is not None:
            image, maps = self.augment(image, maps, generator)
        network: DualBranchUNet = trainer.network
        network.train()
        trainer.optimizer.zero_grad()
        beta = float(torch.rand(1, generator=generator)) + 1e-10
        losses = self.losses(self._branches(network, image), maps[:, 0], maps[:, -1], beta)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        trainer.optimizer.step()
        return {"loss": total.item(), **{name: value.item() for name, value in losses.items()}}

    def _branches(self, network: DualBranchUNet, image: Tensor) -> BranchOutputs:
        if self.precision == "float32":
            return network.branches(image)
        with autocast(image.device, self.precision):
            outputs = network.branches(image)
        main = outputs.main.float()
        out = main if outputs.out is outputs.main else outputs.out.float()
        return BranchOutputs(out, main, outputs.aux.float(), outputs.latent.float())

    def predict(self, network: nn.Module, image: Tensor) -> Tensor:
        """Return the logits of inference, in the precision of the training."""
        with autocast(image.device, None if self.precision == "float32" else self.precision):
            return network(image).float()

    def losses(self, outputs: BranchOutputs, scribble: Tensor, target: Tensor, beta: float) -> dict[str, Tensor]:
        """Return the weighted terms by name.

        Args:
            outputs: of the network.
            scribble: [B, S, S] class indices or :data:`IGNORE`.
            target: the same of pseudo-labels or dense labels; not read by ``pce`` and ``dmpls``.
            beta: weight of the main branch in the mixture of ``dmpls``.
        """
        out, main, aux = outputs.out, outputs.main, outputs.aux
        if self.variant == "pce":
            return {"ce": self.partial(out, scribble)}
        if self.variant == "full":
            return {"ce": self.partial(out, target), "dice": self.dice(out.softmax(1), target)}
        if self.variant == "dmpls":
            trained = (main, aux) if out is main else (out, main, aux)
            mixed = mix_pseudo_labels(main.softmax(1), aux.softmax(1), beta)
            return {
                "ce": torch.stack([self.partial(x, scribble) for x in trained]).mean(),
                "pl": 0.5 * torch.stack([self.dice(x.softmax(1), mixed) for x in trained]).mean(),
            }
        three, (ce, sca, ssa) = (out, main, aux), self.weights
        return {
            "ce": ce * torch.stack([self.partial(x, scribble) for x in three]).sum(),
            "sca": sca * torch.stack([self.dice(x.softmax(1), target) for x in three]).sum(),
            "ssa": ssa * self.alignment(outputs.latent, target, out.shape[1]),
        }


class SegmentorTraining:
    """Trains a fresh segmentor: SGD with momentum, the rate falling as (1 - i / n)^0.9 with each iteration.

    Args:
        network: its weights are the start of every training.
        iteration: the training step.
        make_handlers: resume, progress and curves.
        device: of the training.
        iterations: n, rounded up to whole epochs.
        epoch_length: iterations between two checkpoints.
        batch_size: slices of an iteration.
        learning_rate: at the start.
        momentum: of SGD.
        weight_decay: of SGD.
        seed: of the order of the slices.

    Raises:
        UserError: for numbers below 1.
    """

    def __init__(
        self,
        network: DualBranchUNet,
        iteration: SegmentorIteration,
        make_handlers: MakeHandlers,
        device: str | torch.device = "cpu",
        iterations: int = 30000,
        epoch_length: int = 100,
        batch_size: int = 16,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        if iterations < 1 or epoch_length < 1:
            raise UserError("--iterations and --epoch_length must be 1 or more.")
        self.network, self.iteration, self.make_handlers, self.device = network, iteration, make_handlers, device
        self.epoch_length = min(epoch_length, iterations)
        self.max_epochs = -(-iterations // self.epoch_length)
        self.batch_size, self.seed = batch_size, seed
        self.sgd: dict[str, Any] = {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay}

    def run(self, dataset: ScribbleDataset, folder: Path, validation: ScribbleDataset | None = None) -> DualBranchUNet:
        """Train, or go on with what ``folder`` holds; return the network.

        Args:
            dataset: slices to train on.
            folder: of checkpoints and curves.
            validation: slices of patients that are not trained on: their scribbles choose the epoch that is kept. None:
                the last one is.
        """
        network = deepcopy(self.network).to(self.device)
        network = network.to(memory_format=torch.channels_last)  # in which oneDNN's kernels are fastest
        selection = None
        if validation is not None:
            predict = self.iteration.predict
            selection = HeldOutSelection(network, validation, predict, self.device, self.batch_size)
        self.trainer(network, dataset, folder, selection).run()
        if selection is not None:
            selection.finish(folder, self.epoch_length)
        return network.eval()

    def trainer(
        self,
        network: DualBranchUNet,
        dataset: ScribbleDataset,
        folder: Path,
        selection: HeldOutSelection | None = None,
    ) -> SupervisedTrainer:
        """Build the trainer of one training; its checkpoint lies in ``folder`` while it runs."""
        optimizer = torch.optim.SGD(network.parameters(), **self.sgd)
        total = self.max_epochs * self.epoch_length
        scheduler = PolynomialLR(optimizer, total, power=0.9)
        sampler = ShuffledSampler(len(dataset), self.epoch_length * self.batch_size, self.seed)
        states = {"network": network, "optimizer": optimizer, "lr_scheduler": scheduler, "selection": selection}
        handlers = self.make_handlers(folder, states, sampler, scheduler)
        return SupervisedTrainer(
            device=torch.device(self.device),
            max_epochs=self.max_epochs,
            train_data_loader=DataLoader(dataset, batch_size=self.batch_size, sampler=sampler),
            network=network,
            optimizer=optimizer,
            loss_function=self.iteration.partial,
            iteration_update=self.iteration,
            decollate=False,
            train_handlers=[*([] if selection is None else [selection]), *handlers],
        )


@torch.no_grad()
def segment_slices(network: nn.Module, planes: np.ndarray, dataset: ScribbleDataset, device: Any) -> np.ndarray:
    """Segment stored slices: [n, H, W] uint8 -> class indices of the same shape, on the grid of the slices."""
    result = np.zeros(planes.shape, np.uint8)
    for k, plane in enumerate(planes):
        image, (height, width) = dataset.prepare(torch.from_numpy(np.array(plane)))
        logits = network(image[None].to(device))[..., :height, :width]
        if (height, width) != plane.shape:
            logits = nn.functional.interpolate(logits, plane.shape, mode="bilinear", align_corners=False)
        result[k] = likeliest_label(logits[0, 1:] - logits[0, :1]).cpu().numpy()
    return result


class PromptedSlices(torch.utils.data.Dataset):
    """Slices for SAM's fine-tuning: embedding, prompts, the segmentor's masks and the scribble.

    A structure takes part on slices where it is scribbled on and the segmentor finds it; there may be none.

    Args:
        dataset: of all slices.
        masks: case -> [n, H, W], the segmentor's class indices.
        previous: case -> [n, H, W], the pseudo-labels that the segmentor learned from.
        inferer: places the prompts, the same that made the pseudo-labels.
        cache: of embeddings.
        keep: share of the slices that are kept, those on which the segmentor and the pseudo-labels agree most (the
            authors' code has such a ratio; its measure is not published). The mean Dice over the classes decides.
    """

    def __init__(
        self,
        dataset: ScribbleDataset,
        masks: Mapping[str, np.ndarray],
        previous: Mapping[str, np.ndarray],
        inferer: PromptedSamInferer,
        cache: EmbeddingCache,
        keep: float = 0.9,
    ) -> None:
        self.dataset, self.masks, self.cache = dataset, masks, cache
        prompts: dict[tuple[int, int], list[tuple[int, Prompt]]] = {}
        for n, case in enumerate(dataset.data):
            for k, own, prompt in inferer.prompts(np.asarray(dataset.scribbles[n]), case.case):
                if (masks[case.case][k] == own).any():
                    prompts.setdefault((n, k), []).append((own, prompt))
        scores = {key: self._agreement(key, previous) for key in prompts}
        kept = sorted(prompts, key=lambda key: (-scores[key], key))[: max(1, round(keep * len(prompts)))]
        self.items = [(key, prompts[key]) for key in sorted(kept)]

    def _agreement(self, key: tuple[int, int], previous: Mapping[str, np.ndarray]) -> float:
        case = self.dataset.data[key[0]].case
        one, other = self.masks[case][key[1]], previous[case][key[1]]
        classes = (set(np.unique(one)) | set(np.unique(other))) - {0}
        dice = [2 * ((one == c) & (other == c)).sum() / ((one == c).sum() + (other == c).sum()) for c in classes]
        return float(np.mean(dice)) if dice else 1.0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict[str, Any]:
        (n, k), prompts = self.items[number]
        plane = np.array(self.dataset.images[n][k])
        return {
            "features": self.cache.embed(plane[None])[0],
            "prompts": prompts,
            "mask": torch.from_numpy(self.masks[self.dataset.data[n].case][k]),
            "scribble": torch.from_numpy(np.array(self.dataset.scribbles[n][k])),
        }


class SamTuning:
    """Tunes SAM's mask decoder on the segmentor's masks: AdamW, 30 epochs, cosine over the epochs (appendix).

    Encoder and prompt encoder stay as they are. The last epoch counts; nothing is selected.

    Args:
        inferer: places the prompts and decodes.
        make_handlers: resume, progress and curves.
        epochs: of a tuning.
        batch_size: slices of an iteration.
        learning_rate: at the start.
        weight_decay: 1e-4 as the appendix has it (the authors' code: 1e-2).
        keep: see :class:`PromptedSlices`.
        seed: of the order of the slices.
    """

    def __init__(
        self,
        inferer: PromptedSamInferer,
        make_handlers: MakeHandlers,
        epochs: int = 30,
        batch_size: int = 4,
        learning_rate: float = 5e-6,
        weight_decay: float = 1e-4,
        keep: float = 0.9,
        seed: int = 0,
    ) -> None:
        if not 0 < keep <= 1:
            raise UserError(f"--keep {keep} is no share: give a number above 0, at most 1.")
        self.inferer, self.make_handlers, self.loss = inferer, make_handlers, ScribbleMaskLoss()
        self.epochs, self.batch_size, self.keep, self.seed = epochs, batch_size, keep, seed
        self.adam: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}

    def run(self, network: PromptableSam, slices: PromptedSlices, folder: Path) -> PromptableSam:
        """Tune ``network`` in place, or go on with what ``folder`` holds."""
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith("mask_decoder."))
        optimizer = torch.optim.AdamW(network.mask_decoder.parameters(), **self.adam)
        batches = -(-len(slices) // self.batch_size)
        scheduler = CosineAnnealingLR(optimizer, self.epochs * batches)
        sampler = ShuffledSampler(len(slices), batches * self.batch_size, self.seed)
        states = {"decoder": network.mask_decoder, "optimizer": optimizer, "lr_scheduler": scheduler}
        trainer = SupervisedTrainer(
            device=network.device,
            max_epochs=self.epochs,
            train_data_loader=DataLoader(slices, batch_size=self.batch_size, sampler=sampler, collate_fn=list),
            network=network,
            optimizer=optimizer,
            loss_function=self.loss,
            iteration_update=self._update,
            decollate=False,
            train_handlers=self.make_handlers(folder, states, sampler, scheduler),
        )
        trainer.run()
        return network.eval()

    def _update(self, engine: Engine, batch: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        trainer: Any = engine
        trainer.optimizer.zero_grad()
        count, total = sum(len(item["prompts"]) for item in batch), 0.0
        for item in batch:  # slices of one case are of one size, those of others are not
            classes = torch.tensor([own for own, _ in item["prompts"]])
            features = item["features"].expand(len(classes), -1, -1, -1)
            size = tuple(item["mask"].shape)
            logits = self.inferer.decode(trainer.network, features, [p for _, p in item["prompts"]], size)
            target = (item["mask"] == classes[:, None, None]).float()
            scribble = (item["scribble"] == classes[:, None, None]).float().where(item["scribble"] != IGNORE, -1)
            loss = self.loss(logits, target.to(logits.device), scribble.to(logits.device)) * len(classes) / count
            loss.backward()
            total += loss.item()
        trainer.optimizer.step()
        return {"loss": total}
