"""Low-rank adaptation (LoRA, Hu et al. 2021) of SAM's image encoder, as P²SAM uses it (§3.3, Appendix B).

Each linear layer of the attention, W x + b, becomes W x + b + (alpha / r) B A x with A [r, in] and B [out, r]; W and b
stay as they are. SAM computes q, k and v in one layer: each of the three has its own A and B here, as three layers
would (the authors' ``MergedLinear``). That is why the layer is written here: the package `peft` takes the fused layer
for one, with a single A for all three. A is drawn as a linear layer's weight, B is 0, so that the training starts from
SAM.

The trained parameters are those of the authors' code: besides LoRA and the mask decoder, which the paper names, the
prompt encoder, and the patch embedding and the neck of the image encoder. Only with them the sum is the paper's 5.5 M
(base) and 5.9 M (large); LoRA and the mask decoder alone are 4.1 M and 4.3 M.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.networks.sam import CHECKPOINTS, PromptableSam

WAYS = ("full", "lora")
"""Ways of adapting: all parameters, or LoRA."""

FULLY_TRAINED = ("patch_embed", "neck")
"""Parts of the image encoder that are trained beside LoRA."""


class LoraLinear(nn.Linear):
    """A linear layer W x + b with a low-rank update of W; ``weight`` and ``bias`` keep their names and values.

    Args:
        layer: the layer that is adapted; its tensors are taken over and frozen.
        rank: r.
        alpha: the update is scaled by ``alpha / rank``.
        parts: layers that are fused along the output (q, k and v: 3), each with an own update.
        generator: source of randomness of A, on the CPU.
    """

    def __init__(
        self, layer: nn.Linear, rank: int, alpha: float, parts: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        for given in (self.weight, self.bias):
            if given is not None:
                given.requires_grad_(False)
        bound = 1 / math.sqrt(layer.in_features)
        a = torch.empty(parts, rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(a.to(layer.weight))
        self.lora_b = nn.Parameter(layer.weight.new_zeros(parts, layer.out_features // parts, rank))
        self.lora_scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        low = F.linear(x, self.lora_a.flatten(0, 1)).unflatten(-1, self.lora_a.shape[:2])
        update = torch.einsum("...pr,por->...po", low, self.lora_b).flatten(-2)
        return super().forward(x) + self.lora_scale * update

    def merged_weight(self) -> Tensor:
        """Return W + (alpha / r) B A, [out, in]: the weight of a plain layer that does the same."""
        return self.weight + self.lora_scale * (self.lora_b @ self.lora_a).flatten(0, 1)


def adapt(network: PromptableSam, way: str = "full", rank: int = 1, alpha: float = 1.0, seed: int = 0) -> PromptableSam:
    """Make ``network`` ready to be adapted, in place: ``full`` trains all of it, ``lora`` a small part.

    Args:
        network: SAM, its weights loaded.
        way: ``full`` or ``lora``.
        rank: r of LoRA, on q, k, v and the projection of each block; the paper has 1.
        alpha: the update's scale is ``alpha / rank``; the paper's is 1.
        seed: draws A.

    Returns:
        The same network.

    Raises:
        UserError: for another way, a rank below 1, or LoRA without a ViT.

    Example:
        >>> sam = adapt(build_sam("vit_b", "sam_vit_b_01ec64.pth"), "lora", rank=1)
    """
    blocks: Any = getattr(network.image_encoder, "blocks", None)
    _check(way, rank, is_vit=blocks is not None)
    if way == "full":
        return network
    generator = torch.Generator().manual_seed(seed)
    network.image_encoder.requires_grad_(False)
    for name in FULLY_TRAINED:
        getattr(network.image_encoder, name).requires_grad_(True)
    for block in blocks:
        block.attn.qkv = LoraLinear(block.attn.qkv, rank, alpha, 3, generator)
        block.attn.proj = LoraLinear(block.attn.proj, rank, alpha, 1, generator)
    return network


def check_adaptation(way: str, rank: int, variant: str) -> None:
    """Refuse what :func:`adapt` would refuse, before a network is built.

    Args:
        way: see :func:`adapt`.
        rank: see :func:`adapt`.
        variant: of the network.
    """
    _check(way, rank, is_vit=variant in CHECKPOINTS)


def _check(way: str, rank: int, is_vit: bool) -> None:
    if way not in WAYS:
        raise UserError(f"adapt {way!r} is unknown: choose {' or '.join(WAYS)}.")
    if way == "lora" and not is_vit:
        raise UserError("--adapt lora needs a ViT: set --sam_variant vit_b, or --adapt full for the compact model.")
    if way == "lora" and rank < 1:
        raise UserError(f"--rank {rank} is impossible: LoRA's rank is 1 or more.")


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's state dict with LoRA merged into the weights: that of the plain network, key by key."""
    state = dict(network.state_dict())
    for name, module in network.named_modules():
        if isinstance(module, LoraLinear):
            state[f"{name}.weight"] = module.merged_weight().detach()
            del state[f"{name}.lora_a"], state[f"{name}.lora_b"]
    return state


def count_trained(network: PromptableSam, trained: Iterable[nn.Parameter]) -> dict[str, int]:
    """Return how many of the network's parameters are trained, by part; parts without any are left out.

    Args:
        network: SAM.
        trained: what the optimiser is given, of :func:`monai_ext.engines.interactive.trained_parameters`; parameters of
            other modules are not counted.

    Returns:
        Numbers of the parts ``LoRA``, ``image encoder`` (what is trained of it besides), ``prompt encoder`` and ``mask
        decoder``.
    """
    learning = {id(parameter) for parameter in trained}
    counts = dict.fromkeys(("LoRA", "image encoder", "prompt encoder", "mask decoder"), 0)
    for name, parameter in network.named_parameters():
        if id(parameter) in learning:
            part = "LoRA" if ".lora_" in name else name.split(".")[0].replace("_", " ")
            counts[part] += parameter.numel()
    return {part: number for part, number in counts.items() if number}
