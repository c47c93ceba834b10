"""P²SAM's points for a decoder that was tuned on the patient's reference (Tables 1 and 2 have both, apart).

The paper compares them and does not combine them. Chosen here: each structure has its copy of the mask decoder, tuned
as in :mod:`monai_ext.inferers.finetune_prior`, every other step with prompts of P²SAM on the reference itself. On a
target P²SAM chooses a candidate with that copy; ``merge`` says what becomes of it and of the mask without a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.inferers.finetune_prior import FinetunePriorInferer
from monai_ext.inferers.p2sam import ChosenResult, P2SamInferer, ReferenceParts
from monai_ext.inferers.reference import Reference, ReferenceLoader
from monai_ext.inferers.reference_inferer import BACKGROUND, MatchedSlice, SliceResult, TargetSlice
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.place import CUT, within
from monai_ext.prompts.prompt import Prompt

MERGE = ("mean", "points")


class TunedP2SamInferer(P2SamInferer):
    """Segment follow-ups by P²SAM with a decoder that is tuned on the reference.

    Args:
        labels: name -> value of the structures.
        load_reference: loads references.
        steps: of the optimiser, for each patient and structure; every other one with prompts.
        learning_rate: of AdamW, constant.
        weight_decay: of AdamW.
        batch_size: slices a step.
        merge: ``mean``: the mean of the chosen candidate's logits and those without a prompt; ``points``: the chosen
            candidate alone.
        options: of :class:`P2SamInferer`; ``mode: paper`` and ``attention: none`` only.

    Raises:
        UserError: for an unknown ``merge``, or options that do not go with a tuned decoder.
    """

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        steps: int = 50,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.05,
        batch_size: int = 4,
        merge: str = "mean",
        **options: Any,
    ) -> None:
        super().__init__(labels, load_reference, **options)
        if merge not in MERGE:
            raise UserError(f"merge {merge!r} is unknown: choose one of {', '.join(MERGE)}.")
        if self.mode != "paper" or self.attention != "none":
            raise UserError("a tuned decoder needs --mode paper and --attention none.")
        self.merge = merge
        self.tuner = FinetunePriorInferer(
            labels,
            load_reference,
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            slice_match=self.slice_match,
            seed=self.seed,
        )
        self._tuned_on: list[Reference] = []
        self._tuned: dict[int, PromptableNetwork] = {}

    def _network_of(self, network: PromptableNetwork, value: int) -> PromptableNetwork:
        """Return the copy tuned to a structure: tuned at its first use for a patient."""
        references = self.load_reference.loaded
        if self._tuned_on is not references:
            self._tuned_on, self._tuned = references, {}
        if value not in self._tuned:
            if not any(bool((reference.label == value).any()) for reference in references):
                return network

            def place(reference: Reference, k: int) -> Sequence[Prompt]:
                return self._own_prompts(network, reference, k, value)

            self._tuned[value] = self.tuner.tune(network, references, value, place)
        return self._tuned[value]

    def _own_prompts(self, network: PromptableNetwork, reference: Reference, k: int, value: int) -> list[Prompt]:
        """Prompts that P²SAM places on a slice of a reference with the parts of that same slice."""
        parts = self._cluster(network, [MatchedSlice(reference, k)], value)
        if parts is None:
            raise ValueError("a slice to be tuned on must hold the structure")
        plane = reference.image.as_tensor()[..., k]
        target = TargetSlice(plane, (plane.shape[-2], plane.shape[-1]), k, (), reference.frame)
        expected = reference.label[0, :, :, k] == value if self.place else None
        embeddings = reference.embed(network, k)
        return [c.prompt for c in self._candidates(network, target, embeddings, parts, None, expected)]

    def _segment(
        self,
        network: PromptableNetwork,
        target: TargetSlice,
        embeddings: Embeddings,
        parts: ReferenceParts,
        clicked: Prompt,
        box: Tensor | None = None,
        expected: Tensor | None = None,
    ) -> SliceResult:
        result = super()._segment(network, target, embeddings, parts, clicked, box, expected)
        if self.merge == "points" or result.logits is None or len(clicked.points):
            return result
        plain = network.to_image(network.decode_without_prompt(embeddings)[0], embeddings.size)[0, 0]
        reached = torch.ones_like(plain, dtype=torch.bool)
        if expected is not None and "cut" in self.place:
            reached = within(expected, network.stride, CUT).to(plain.device)

        def merge(one: SliceResult) -> SliceResult:
            merged = ((cast(Tensor, one.logits) + plain) / 2).masked_fill(~reached, BACKGROUND)
            return replace(one, logits=merged, status="ok" if bool(torch.any(merged > 0)) else "no_foreground")

        if isinstance(result, ChosenResult) and (link := result.link) is not None:
            result = replace(result, link=replace(link, choose=lambda index: merge(link.choose(index))))
        return merge(result)
