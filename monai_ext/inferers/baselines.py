"""What P²SAM is compared with, through the same pipeline: copying the reference, no prompt, and a click that knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.inferers.follow_up import BACKGROUND, FollowUpInferer, MatchedSlice, SliceResult, TargetSlice
from monai_ext.inferers.reference import plain
from monai_ext.networks.sam import PromptableSam
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.sampling import centre_click


class CopyReferenceInferer(FollowUpInferer):
    """Give the target the reference's mask of the matched slice: what a follow-up is worth without looking at it.

    The mask is laid over the slice by field of view; several references vote.
    """

    def segment_slice(
        self, network: PromptableSam, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Copy every structure; the network is not used."""
        size = (target.image.shape[-2], target.image.shape[-1])
        results = []
        for value in self.labels.values():
            masks = [_resize(m.label == value, size) for m in matched]
            if any(bool(mask.any()) for mask in masks):
                votes = torch.stack(masks).mean(dim=0) - 0.5
                results.append(SliceResult(votes * -2 * BACKGROUND, "ok", {}))
            else:
                results.append(SliceResult(None, "reference_absent", {}))
        return results


class NoPromptInferer(FollowUpInferer):
    """Segment without a prompt (the paper's direct transfer): one mask, scored against every structure.

    The model was trained to answer no prompt with all structures together, and cannot tell which one is meant.
    Structures that are absent from the matched reference slice are left out, as in the other methods.
    """

    def segment_slice(
        self, network: PromptableSam, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Decode once without a prompt."""
        present = [any(bool((m.label == v).any()) for m in matched) for v in self.labels.values()]
        absent = SliceResult(None, "reference_absent", {})
        if not any(present):
            return [absent] * len(present)
        logits = network(target.image[None].to(network.pixel_mean.device))[0, 0]
        found = SliceResult(logits, "ok" if bool((logits > 0).any()) else "no_foreground", {})
        return [found if here else absent for here in present]


class OracleClickInferer(FollowUpInferer):
    """One positive click at the deepest point of each structure's true mask on each slice: a ceiling, not a method.

    The truth comes from the call's ``oracle_label``, which only an evaluation with ground truth can provide.
    """

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: PromptableSam, *args: Any, oracle_label: Any = None, **extra: Any
    ) -> MetaTensor:
        """Segment one case; ``oracle_label`` is [1, 1, H, W, D] integer in the input frame."""
        if oracle_label is None:
            raise UserError(
                "the oracle click needs the target's label: overlay configs/oracle_click.yaml on evaluate.yaml."
            )
        return super().__call__(inputs, network, *args, oracle_label=oracle_label[0, 0], **extra)

    def segment_slice(
        self, network: PromptableSam, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Click on every structure that the true mask of this slice holds."""
        truth = plain(extra["oracle_label"])[:, :, target.index]
        embeddings = network.encode(target.image[None].to(network.pixel_mean.device))
        results = []
        for value in self.labels.values():
            mask = (truth == value).cpu().numpy()
            if not mask.any():
                results.append(SliceResult(None, "no_foreground", {}))
                continue
            click = torch.tensor([centre_click(mask)], dtype=torch.float32)
            logits, _ = network.decode(embeddings, [Prompt(click, torch.ones(1), None)])
            mask_logits = network.to_image(logits, embeddings.size)[0, 0]
            results.append(
                SliceResult(mask_logits, "ok", {"n_pos": 1, "n_neg": 0, "points": [[*click[0].tolist(), 1.0]]})
            )
        return results


def _resize(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) == size:
        return mask.float()
    return F.interpolate(mask[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]
