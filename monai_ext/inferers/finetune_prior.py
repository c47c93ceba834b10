"""Fine-tuning on the one prior: what P²SAM calls *fine-tune* in Tables 1 and 2 (§4.2).

The paper names the baseline and says that it overfits; it does not say what is trained, how long, or how the network is
prompted. Chosen here: the mask decoder (or the encoder, too), a fixed number of AdamW steps with the rate and decay of
§4.1 and SAM's loss at the decoder's resolution, no augmentation, no prompt (P²SAM's no-prompt case), which is how the
tuned network is then applied. One prompt-free network can mean one structure only, so each structure has its own copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.inferers.encoding import encode_slice
from monai_ext.inferers.reference import Paths, Reference, ReferenceLoader
from monai_ext.inferers.reference_inferer import MatchedSlice, ReferenceInferer, SliceResult, TargetSlice
from monai_ext.losses.promptable import PromptableLoss
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.prompt import Prompt

TUNED = ("decoder", "all")


class FinetunePriorInferer(ReferenceInferer):
    """Tune a copy of the network on a patient's annotated slices, then segment later visits without a prompt.

    The network handed in is not changed, neither weights nor gradients, and every patient and structure starts from it;
    the same seed gives the same copy. Gradients are enabled in here, whatever the caller has set (but for
    ``torch.inference_mode``, which cannot be left).

    Args:
        labels: name -> value of the structures.
        load_reference: loads references; all slices of all of them that hold the structure are trained on.
        tuned: ``decoder``, or ``all``: the image encoder as well, with a copy of it a structure in memory. The prompt
            encoder has nothing to learn: the embeddings of the no-prompt case get no gradient (P²SAM, Appendix B).
        steps: of the optimiser; 0 leaves the network as it is.
        learning_rate: of AdamW, constant.
        weight_decay: of AdamW.
        batch_size: slices a step, drawn without replacement; all where there are fewer.
        slice_match: see :class:`ReferenceInferer`; structures absent from the matched slice are left out.
        seed: of the draws.
        reference_image: see :class:`ReferenceInferer`.
        reference_label: see :class:`ReferenceInferer`.

    Raises:
        UserError: for an unknown part of the network or impossible numbers.

    Example:
        >>> inferer = FinetunePriorInferer({"LV": 3}, ReferenceLoader(transform, {"LV": 3}), steps=50)
        >>> logits = inferer(image[None], sam, "visit_1.nii.gz", "visit_1_label.nii.gz")  # [1, 1, H, W, D]
    """

    checks_reference = True

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        tuned: str = "decoder",
        steps: int = 50,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.05,
        batch_size: int = 4,
        slice_match: str = "position",
        seed: int = 0,
        reference_image: Paths | None = None,
        reference_label: Paths | None = None,
    ) -> None:
        super().__init__(labels, load_reference, slice_match, reference_image, reference_label)
        if tuned not in TUNED:
            raise UserError(f"tuned {tuned!r} is unknown: choose one of {', '.join(TUNED)}.")
        if steps < 0 or batch_size < 1 or learning_rate <= 0:
            raise UserError(
                f"{steps} steps of {batch_size} slices at rate {learning_rate} cannot be trained: "
                "give 0 steps or more, 1 slice or more and a rate above 0."
            )
        self.tuned, self.steps, self.batch_size, self.seed = tuned, steps, batch_size, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.loss = PromptableLoss()
        self._loaded: list[Reference] = []
        self._networks: dict[int, PromptableNetwork] = {}

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Segment every structure with the copy that was tuned to it; see :class:`ReferenceInferer`."""
        if self._loaded is not self.load_reference.loaded:
            self._loaded, self._networks = self.load_reference.loaded, {}
        shared = None
        results = []
        for value in self.labels.values():
            if not any(m.shows(value) for m in matched):
                results.append(SliceResult(None, "reference_absent", {}))
                continue
            if value not in self._networks:
                self._networks[value] = self.tune(network, self._loaded, value)
            own = self._networks[value]
            if self.tuned == "all":
                embeddings = target.encode(own)
            else:
                embeddings = shared = target.encode(network) if shared is None else shared
            logits = own.to_image(own.decode_without_prompt(embeddings)[0], embeddings.size)[0, 0]
            results.append(SliceResult(logits, "ok" if bool((logits > 0).any()) else "no_foreground", {}))
        return results

    def tune(
        self,
        network: PromptableNetwork,
        references: Sequence[Reference],
        value: int,
        prompts_of: Callable[[Reference, int], Sequence[Prompt]] | None = None,
    ) -> PromptableNetwork:
        """Return a copy of ``network`` tuned to one structure of the references; parts not trained are shared.

        Args:
            network: to start from.
            references: all of their slices that hold the structure are trained on.
            value: of the structure.
            prompts_of: prompts for a reference's slice. Every other step is then trained with one of each slice's,
                drawn at random; None: all steps are without a prompt.
        """
        held = [(r, k) for r in references for k in range(r.label.shape[-1]) if bool((r.label[..., k] == value).any())]
        own = _copy(network, self.tuned)
        images = [(r.image.as_tensor()[..., k], r.frame) for r, k in held]
        shares = torch.stack([_on_decoder_grid(r.label[0, ..., k] == value, network) for r, k in held])
        shares = shares.to(network.device)
        square = (network.image_size, network.image_size)  # what is trained on fills it
        features = None if self.tuned == "all" else torch.cat([r.embed(network, k).features for r, k in held])
        modules: list[nn.Module] = [own.mask_decoder, *([own.image_encoder] if features is None else [])]
        parameters = [p.requires_grad_(True) for module in modules for p in module.parameters()]
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=self.weight_decay)
        generator = torch.Generator().manual_seed(self.seed)
        prompts = None if prompts_of is None else [prompts_of(r, k) for r, k in held]
        for step in range(self.steps):
            drawn = torch.randperm(len(held), generator=generator)[: self.batch_size].tolist()
            with torch.enable_grad():
                seen = (
                    features[drawn]
                    if features is not None
                    else torch.cat([encode_slice(own, *images[i]).features for i in drawn])
                )
                if prompts is None or step % 2 == 0:
                    logits, quality = own.decode_without_prompt(Embeddings(seen, square))
                else:
                    logits, quality = _decode_each(own, seen, [prompts[i] for i in drawn], generator)
                masks = shares[drawn]
                loss = self.loss(logits, quality, masks, _cells(masks))
                # not backward(): what is shared with the network handed in shall keep its gradients
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        return own


def _copy(network: PromptableNetwork, tuned: str) -> PromptableNetwork:
    """Copy the parts that are trained and share the others."""
    shared = [network.prompt_encoder, *([network.image_encoder] if tuned == "decoder" else [])]
    return copy.deepcopy(network, {id(module): module for module in shared})


def _decode_each(
    network: PromptableNetwork, features: Tensor, prompts: Sequence[Sequence[Prompt]], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Decode each slice with one of its prompts: logits [B, 1, 4g, 4g] and predicted IoU [B, 1]."""
    square = (network.image_size, network.image_size)
    found = []
    for one, own in zip(features, prompts, strict=True):
        chosen = own[int(torch.randint(len(own), (1,), generator=generator))]
        found.append(network.decode(Embeddings(one[None], square), [chosen]))
    return torch.cat([logits for logits, _ in found]), torch.cat([quality for _, quality in found])


def _on_decoder_grid(mask: Tensor, network: PromptableNetwork) -> Tensor:
    """Covered share of each cell of the decoder's masks: [H, W] bool -> [1, 4g, 4g]."""
    side = network.image_size
    square = F.pad(mask.float(), (0, side - mask.shape[1], 0, side - mask.shape[0]))
    return F.avg_pool2d(square[None], side // (4 * network.grid))


def _cells(shares: Tensor) -> Tensor:
    """Cells covered by half, or by anything where a mask covers half of none: [K, 1, 4g, 4g] bool."""
    cells = shares >= 0.5
    return torch.where(cells.flatten(1).any(dim=1)[:, None, None, None], cells, shares > 0)
