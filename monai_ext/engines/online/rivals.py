"""Methods that AuxOL is compared with in the same stream: simple ones, one that remembers, one that tunes SAM.

A box alone tells much. An ellipse in it, and the mean of all masks corrected so far, show how much AuxOL has learned
beyond that. The methods that need corrections give SAM's mask until the first one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.engines.online.auxiliary import refuse_diverged, refuse_gradients, refuse_nan
from monai_ext.engines.online.batch import OnlineBatch, Sample
from monai_ext.engines.online.view import Answer, Correction, CroppedView
from monai_ext.losses.structure import StructureLoss
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.boxes import tight_box
from monai_ext.prompts.crops import Crop, grow, shrink, shrink_mask
from monai_ext.prompts.masks import paper_tokens
from monai_ext.prompts.parts import foreground_features, part_sets
from monai_ext.prompts.points import cosine_maps
from monai_ext.prompts.prompt import Prompt

SURE = 20.0
"""Size of the logits of methods that only know inside and outside."""


class _Unlearned:
    """A method that learns nothing."""

    name = ""
    with_features = False

    def describe(self) -> dict[str, Any]:
        return {"method": self.name}

    def serve(self) -> Answer:
        return self._answer

    def _answer(self, view: CroppedView) -> tuple[Tensor, dict[str, Any]]:
        raise NotImplementedError

    def absorb(self, correction: Correction) -> dict[str, Any]:
        return {}

    def step(self) -> dict[str, Any]:
        return {}

    def reset(self) -> None:
        pass

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        pass


class SamAlone(_Unlearned):
    """SAM's own logits."""

    name = "sam"

    def _answer(self, view: CroppedView) -> tuple[Tensor, dict[str, Any]]:
        return view.sam, {}


class InscribedEllipse(_Unlearned):
    """The ellipse inscribed in the prompt's box; after a point, in the box of SAM's mask."""

    name = "ellipse"

    def _answer(self, view: CroppedView) -> tuple[Tensor, dict[str, Any]]:
        box = torch.tensor(view.prompt["box"]) if "box" in view.prompt else tight_box(view.sam > 0)
        if box is None:
            return view.sam, {}
        if "box" in view.prompt:
            box = box - torch.tensor([view.crop.x0, view.crop.y0] * 2)
        return SURE * (inscribed_ellipse(box, view.crop.size).float() * 2 - 1), {}


def inscribed_ellipse(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Fill the ellipse inscribed in a box [4] (x0, y0, x1, y1), corners pixels inside: [H, W] bool for ``size``."""
    x0, y0, x1, y1 = box.tolist()
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in size)
    y = (rows - (y0 + y1) / 2) / ((y1 - y0 + 1) / 2)
    x = (columns - (x0 + x1) / 2) / ((x1 - x0 + 1) / 2)
    return y[:, None] ** 2 + x[None] ** 2 <= 1


class MeanCrop(_Unlearned):
    """The mean of all corrected masks, each resampled to a square: where in a crop the structure usually is.

    Args:
        side: of the square in pixels.
    """

    name = "mean_crop"

    def __init__(self, side: int = 64) -> None:
        self.side = side
        self.reset()

    def describe(self) -> dict[str, Any]:
        return {"method": self.name, "side": self.side}

    def reset(self) -> None:
        self._total, self._count = torch.zeros(self.side, self.side), 0

    def serve(self) -> Answer:
        total, count = self._total.clone(), self._count

        def answer(view: CroppedView) -> tuple[Tensor, dict[str, Any]]:
            return (grow(SURE * (2 * total / count - 1), view.crop.size) if count else view.sam), {}

        return answer

    def absorb(self, correction: Correction) -> dict[str, Any]:
        self._total = self._total + shrink_mask(correction.truth, self.side)
        self._count += 1
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"total": self._total}, {"count": self._count}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._total, self._count = tensors["total"], values["count"]


class Remembering(_Unlearned):
    """Parts of the structure and of what is around it, pooled over all corrected cases: remembers and trains nothing.

    The idea is MultiverSeg's, a context that grows with each finished case, by P²SAM's means (Eq. 1 and 2): a cell of
    the encoder's grid is inside where it looks more like a remembered part of the structure than like one of the rest.

    Args:
        image_size: side of the network's input square in pixels.
        grid: cells along one side.
        parts: of the structure and of the rest, from each correction.
    """

    name = "memory"
    with_features = True

    def __init__(self, image_size: int, grid: int, parts: int = 3) -> None:
        self.image_size, self.grid, self.parts = image_size, grid, parts
        self.reset()

    def describe(self) -> dict[str, Any]:
        return {"method": self.name, "parts": self.parts}

    def reset(self) -> None:
        self._inside: tuple[Tensor, ...] = ()
        self._outside: tuple[Tensor, ...] = ()

    def serve(self) -> Answer:
        inside, outside = self._inside, self._outside

        def answer(view: CroppedView) -> tuple[Tensor, dict[str, Any]]:
            if not inside or not outside or view.features is None:
                return view.sam, {}
            maps = [cosine_maps(torch.cat(known), view.features).amax(dim=0) for known in (inside, outside)]
            return self._to_crop(SURE * (maps[0] - maps[1]), view), {}

        return answer

    def absorb(self, correction: Correction) -> dict[str, Any]:
        features = correction.extra["features"]
        stride, cells = self.image_size // self.grid, (self.grid, self.grid)
        mask, seen = torch.zeros(correction.size, dtype=torch.bool), torch.zeros(correction.size, dtype=torch.bool)
        correction.crop.of(mask).copy_(correction.truth)
        correction.crop.of(seen).fill_(True)
        inside = paper_tokens(mask, stride, cells)[0]
        outside = paper_tokens(seen, stride, cells)[0] & ~inside
        self._inside = (*self._inside, *self._means(features, inside))
        self._outside = (*self._outside, *self._means(features, outside))
        return {}

    def _means(self, features: Tensor, cells: Tensor) -> list[Tensor]:
        """Cluster the features of some cells: [n, C] with n at most ``parts``; nothing for no cells."""
        sets = part_sets(foreground_features(features, cells), range(1, self.parts + 1), n_init=1)
        return [sets[max(sets)]] if sets else []

    def _to_crop(self, cells: Tensor, view: CroppedView) -> Tensor:
        square = (self.image_size, self.image_size)
        full = F.interpolate(cells[None, None], square, mode="bilinear", align_corners=False)[0, 0]
        return view.crop.of(full[: view.size[0], : view.size[1]])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        named = {f"inside/{n:06d}": t for n, t in enumerate(self._inside)}
        return {**named, **{f"outside/{n:06d}": t for n, t in enumerate(self._outside)}}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._inside = tuple(tensors[name] for name in sorted(tensors) if name.startswith("inside/"))
        self._outside = tuple(tensors[name] for name in sorted(tensors) if name.startswith("outside/"))


class DirectOnline(_Unlearned):
    """DirectOL (paper §4.3): the same loop, batch and loss, but it is SAM's own mask decoder that learns.

    The paper's DirectOL tunes adapters in the image encoder; the decoder is what can be tuned without encoding every
    stored image again at each step. The network that is given stays as it is.

    Args:
        network: SAM.
        batch: k.
        policy: of the batch.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        crop: side of the resampled crop on which the loss is taken.
        official_loss: see :class:`~monai_ext.losses.structure.StructureLoss`.
        steps: optimiser steps after each correction.
    """

    name = "direct"
    with_features = True

    def __init__(
        self,
        network: PromptableNetwork,
        batch: int = 8,
        policy: str = "smallest_loss",
        learning_rate: float = 5e-4,
        weight_decay: float = 5e-4,
        crop: int = 64,
        official_loss: bool = False,
        steps: int = 1,
    ) -> None:
        self._original = network
        self._numbers: dict[str, Any] = {
            "batch": batch, "policy": policy, "learning_rate": learning_rate, "weight_decay": weight_decay,
            "crop": crop, "official_loss": official_loss, "steps": steps,
        }  # fmt: skip
        self.loss, self.crop = StructureLoss(official_loss), crop
        self.reset()

    def describe(self) -> dict[str, Any]:
        return {"method": self.name, **self._numbers}

    def reset(self) -> None:
        self.network = with_own_decoder(self._original)
        self._optimiser = self._new_optimiser()
        self.batch = OnlineBatch(self._numbers["batch"], self._numbers["policy"])
        self._kept: dict[str, Correction] = {}
        self._corrections = 0

    def _new_optimiser(self) -> torch.optim.AdamW:
        parameters = self.network.mask_decoder.requires_grad_(True).parameters()
        numbers = self._numbers
        return torch.optim.AdamW(parameters, numbers["learning_rate"], weight_decay=numbers["weight_decay"])

    def serve(self) -> Answer:
        network = with_own_decoder(self.network)
        network.mask_decoder.requires_grad_(False)

        @torch.no_grad()
        def answer(view: CroppedView) -> tuple[Tensor, dict[str, Any]]:
            return decode_crop(network, view).cpu(), {}

        return answer

    def absorb(self, correction: Correction) -> dict[str, Any]:
        with torch.no_grad():
            loss = float(self._losses([correction]))
        refuse_nan(loss, correction.key)
        truth = shrink_mask(correction.truth, self.crop)[None]
        before = self.batch, self._kept, *self._copy()
        self.batch = self.batch.insert(Sample(correction.key, truth, truth, loss, self._corrections))
        everything = {**self._kept, correction.key: correction}
        self._kept = {sample.key: everything[sample.key] for sample in self.batch.samples}
        said: dict[str, Any] = {"loss": loss}
        try:
            for _ in range(self._numbers["steps"]):
                said |= self._train()
        except BaseException:
            self.batch, self._kept = before[:2]
            self.network.mask_decoder.load_state_dict(before[2])
            self._optimiser.load_state_dict(before[3])
            raise
        self._corrections += 1
        return said

    def _copy(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Copy weights and optimiser, to return to them where a step fails."""
        return copy.deepcopy(self.network.mask_decoder.state_dict()), copy.deepcopy(self._optimiser.state_dict())

    def step(self) -> dict[str, Any]:
        if not self._kept:
            return {}
        before = self.batch, *self._copy()
        try:
            return self._train()
        except BaseException:
            self.batch = before[0]
            self.network.mask_decoder.load_state_dict(before[1])
            self._optimiser.load_state_dict(before[2])
            raise

    def _train(self) -> dict[str, Any]:
        """Take one step; what it leaves where it fails is for the caller to take back."""
        with torch.enable_grad():
            losses = self._losses(list(self._kept.values()))
            mean = losses.mean()
            refuse_nan(float(mean.detach()), "the batch")
            self._optimiser.zero_grad(set_to_none=True)
            mean.backward()
            refuse_gradients(self.network.mask_decoder)
            self._optimiser.step()
        with torch.no_grad():
            for key, kept in self._kept.items():
                refuse_diverged(decode_crop(self.network, kept.view), key)
        self.batch = self.batch.with_losses(losses.detach().tolist())
        return {"mean_loss": float(mean.detach()), "batch": len(losses)}

    def _losses(self, corrections: list[Correction]) -> Tensor:
        """Loss of each sample, decoded with the decoder as it is: [n]."""
        logits = [shrink(decode_crop(self.network, c.view)[None], self.crop) for c in corrections]
        device = logits[0].device
        truths = torch.stack([shrink_mask(c.truth, self.crop)[None] for c in corrections]).to(device)
        return self.loss(torch.stack(logits), truths)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"network/{name}": value for name, value in self.network.mask_decoder.state_dict().items()}
        for number, moments in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{number}/{name}": value for name, value in moments.items()}
        samples = []
        for number, sample in enumerate(self.batch.samples):
            kept = self._kept[sample.key]
            tensors |= {
                f"batch/{number}/truth": kept.truth.to(torch.uint8),
                f"batch/{number}/image": kept.image,
                f"batch/{number}/sam": kept.sam,
                f"batch/{number}/features": kept.extra["features"],
            }
            about = {"crop": list(kept.crop), "size": list(kept.size), "prompt": dict(kept.prompt)}
            samples.append({"key": sample.key, "loss": sample.loss, "born": sample.born, **about})
        return tensors, {"samples": samples, "corrections": self._corrections}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.reset()
        weights = {k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")}
        self.network.mask_decoder.load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser/"):
                _, parameter, which = name.split("/", 2)
                moments.setdefault(int(parameter), {})[which] = value.clone()
        self._optimiser = self._new_optimiser()
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": moments, "param_groups": groups})
        samples = []
        for number, one in enumerate(values["samples"]):
            part = {name: tensors[f"batch/{number}/{name}"] for name in ("truth", "image", "sam", "features")}
            self._kept[one["key"]] = Correction(
                one["key"], part["image"], part["sam"], part["truth"].bool(), Crop(*one["crop"]),
                (one["size"][0], one["size"][1]), prompt=one["prompt"], extra={"features": part["features"]},
            )  # fmt: skip
            truth = shrink_mask(part["truth"], self.crop)[None]
            samples.append(Sample(one["key"], truth, truth, one["loss"], one["born"]))
        self.batch = OnlineBatch(self._numbers["batch"], self._numbers["policy"], samples=tuple(samples))
        self._corrections = values["corrections"]


def with_own_decoder(network: PromptableNetwork) -> PromptableNetwork:
    """Return the network with a mask decoder of its own; all other parts are shared."""
    other = copy.copy(cast(nn.Module, network))
    other._modules = dict(other._modules)
    other.mask_decoder = copy.deepcopy(network.mask_decoder)
    return cast(PromptableNetwork, other)


def decode_crop(network: PromptableNetwork, view: CroppedView) -> Tensor:
    """Decode a view's prompt anew: logits [h, w] of its crop."""
    if view.features is None:
        raise ValueError("a view without features cannot be decoded")
    embeddings = Embeddings(view.features[None].to(network.device), view.size)
    points = torch.tensor(view.prompt.get("points") or [], dtype=torch.float32).reshape(-1, 3)
    box = torch.tensor(view.prompt["box"]) if "box" in view.prompt else None
    decoded, _ = network.decode(embeddings, [Prompt(points[:, :2], points[:, 2], box)])
    return view.crop.of(network.to_image(decoded, view.size)[0, 0].float())
