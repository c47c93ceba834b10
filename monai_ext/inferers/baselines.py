"""What P²SAM is compared with, through the same pipeline: copying the reference, no prompt, and a click that knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from monai_ext.data.case_details import CaseDetails
from monai_ext.errors import UserError
from monai_ext.inferers.reference import ReferenceLoader, plain
from monai_ext.inferers.reference_inferer import (
    BACKGROUND,
    MatchedSlice,
    ReferenceInferer,
    SliceResult,
    TargetSlice,
    serving,
)
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.sampling import centre_click


class CopyReferenceInferer(ReferenceInferer):
    """Give the target the reference's mask of the matched slice: what a follow-up is worth without looking at it.

    The mask is laid over the slice by field of view; several references vote.
    """

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Copy every structure; the network is not used."""
        size = (target.image.shape[-2], target.image.shape[-1])
        results = []
        for value in self.labels.values():
            masks = [_resize(m.label == value, size) for m in serving(matched, value)]
            if any(bool(mask.any()) for mask in masks):
                votes = torch.stack(masks).mean(dim=0) - 0.5
                results.append(SliceResult(votes * -2 * BACKGROUND, "ok", {}))
            else:
                results.append(SliceResult(None, "reference_absent", {}))
        return results


class NoPromptInferer(ReferenceInferer):
    """Segment without a prompt (the paper's direct transfer): one mask, scored against every structure.

    The model was trained to answer no prompt with all structures together, and cannot tell which one is meant.
    Structures that are absent from the matched reference slice are left out, as in the other methods.
    """

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Decode once without a prompt."""
        present = [any(m.shows(v) for m in matched) for v in self.labels.values()]
        absent = SliceResult(None, "reference_absent", {})
        if not any(present):
            return [absent] * len(present)
        embeddings = target.encode(network)
        decoded, _ = network.decode_without_prompt(embeddings)
        logits = network.to_image(decoded, embeddings.size)[0, 0]
        found = SliceResult(logits, "ok" if bool((logits > 0).any()) else "no_foreground", {})
        return [found if here else absent for here in present]


class OracleClickInferer(ReferenceInferer):
    """Clicks of someone who knows the answer: a ceiling for one click, a curve for several, not a method.

    On each slice and for each structure that the true mask of the slice holds, apart from each other: the first click
    is positive, at the deepest point of the true mask. Each further one is :func:`correction_click` on the mask that
    the clicks before it gave; the network is given all clicks so far and its last mask, as in SAM's interactive
    training (Kirillov et al. 2023; P²SAM, Appendix A). A slice that is right needs no further click and keeps its mask.
    Slices without the structure stay background, so false positives there do not occur. The truth comes from the call's
    ``oracle_label``, which only an evaluation with ground truth can provide.

    The details of a case have ``steps``: the logits [L, H, W, D] after 1, 2, ... ``clicks`` clicks on every such slice;
    the last are those of the mask.

    Args:
        labels: name -> value of the structures.
        load_reference: loads references.
        slice_match: see :class:`ReferenceInferer`; slices without a matched reference slice are left out.
        clicks: on each slice and structure, 1 or more.

    Raises:
        UserError: for an impossible number of clicks.
    """

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        slice_match: str = "position",
        clicks: int = 1,
    ) -> None:
        super().__init__(labels, load_reference, slice_match)
        if not isinstance(clicks, int) or clicks < 1:
            raise UserError(f"clicks is {clicks}: give a whole number of clicks a slice and structure, 1 or more.")
        self.clicks = clicks
        self._steps: list[Tensor] = []

    def segment_case(
        self, inputs: Tensor, network: PromptableNetwork, *args: Any, **entries: Any
    ) -> tuple[MetaTensor, CaseDetails]:
        """Segment one case; see :class:`ReferenceInferer`."""
        logits, details = super().segment_case(inputs, network, *args, **entries)
        return logits, replace(details, steps=self._steps)

    def begin_case(
        self, image: MetaTensor, modality: str | None, oracle_label: Any = None, **entries: Any
    ) -> dict[str, Any]:
        """Begin with background; ``oracle_label`` is [1, 1, H, W, D] integer in the input frame."""
        if oracle_label is None:
            raise UserError(
                "the oracle click needs the target's label: overlay configs/oracle_click.yaml on evaluate.yaml."
            )
        shape = (len(self.labels), *image.shape[1:])
        self._steps = [torch.full(shape, BACKGROUND) for _ in range(self.clicks)]
        return {**super().begin_case(image, modality, **entries), "oracle_label": oracle_label[0, 0]}

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Click on every structure that the true mask of this slice holds."""
        truth = plain(extra["oracle_label"])[:, :, target.index]
        embeddings = target.encode(network)
        results = []
        for channel, value in enumerate(self.labels.values()):
            mask = (truth == value).cpu().numpy()
            if not mask.any():
                results.append(SliceResult(None, "no_foreground", {}))
                continue
            logits, points = self._click(network, embeddings, mask)
            for step, of_step in zip(self._steps, logits, strict=True):
                step[channel, :, :, target.index] = of_step.float().cpu()
            positive = sum(int(sign) for *_, sign in points)
            details = {"n_pos": positive, "n_neg": len(points) - positive, "points": points}
            results.append(SliceResult(logits[-1], "ok", details))
        return results

    def _click(
        self, network: PromptableNetwork, embeddings: Embeddings, truth: np.ndarray
    ) -> tuple[list[Tensor], list[list[float]]]:
        """Return the logits [H, W] after each click, and the clicks [x, y, 1 or 0]."""
        x, y = centre_click(truth)
        points = [[float(x), float(y), 1.0]]
        masks: list[Tensor] = []
        previous: Tensor | None = None
        for number in range(self.clicks):
            if number:
                click = correction_click(truth, (masks[-1] > 0).cpu().numpy(), points)
                if click is None:
                    masks += [masks[-1]] * (self.clicks - number)
                    break
                points.append([float(coordinate) for coordinate in click])
            given = torch.tensor(points, dtype=torch.float32)
            previous, _ = network.decode(embeddings, [Prompt(given[:, :2], given[:, 2])], mask_input=previous)
            masks.append(network.to_image(previous, embeddings.size)[0, 0])
        return masks, points


def correction_click(
    truth: np.ndarray, predicted: np.ndarray, clicked: Sequence[Sequence[float]] = ()
) -> tuple[int, int, int] | None:
    """Place the click that corrects a mask at the centre of the largest error, as interactive methods are evaluated.

    The largest error region is the one that reaches deepest, and its centre is the pixel of the greatest Euclidean
    distance to what is not part of that error (the image border counts as outside): the rule of RITM (Sofiiuk et al.
    2022). It is a positive click where the structure was missed, a negative one on a false positive; at equal depth
    negative. Pixels that were clicked before are not clicked again.

    Args:
        truth: [H, W] bool.
        predicted: [H, W] bool.
        clicked: earlier clicks, x and y first.

    Returns:
        x, y and 1 (positive) or 0 (negative); None where nothing is left to correct.
    """
    free = np.ones(truth.shape, dtype=bool)
    for column, row, *_ in clicked:
        free[int(row), int(column)] = False
    missed, false = (_depth(error) * free for error in (truth & ~predicted, predicted & ~truth))
    positive = missed.max() > false.max()
    depth = missed if positive else false
    if not depth.any():
        return None
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y), int(positive)


def _depth(region: np.ndarray) -> np.ndarray:
    """Euclidean distance of each pixel of a region [H, W] to the outside."""
    return ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]


def _resize(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) == size:
        return mask.float()
    return F.interpolate(mask[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]
