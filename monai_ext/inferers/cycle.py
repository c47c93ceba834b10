"""The cycle: the reference segmented back from the prediction, which needs no further label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.inferers.reference import Reference
from monai_ext.inferers.reference_inferer import MatchedSlice, SliceResult, TargetSlice
from monai_ext.inferers.slice_features import dice
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.transforms.sam_input import plane_size

Segment = Callable[[PromptableNetwork, TargetSlice, Sequence[MatchedSlice]], list[SliceResult]]


@dataclass(frozen=True)
class ReferenceSlice(TargetSlice):
    """A slice of a reference that is to be segmented; it is encoded once."""

    source: Reference | None = None

    def encode(self, network: PromptableNetwork) -> Embeddings:
        """Take the reference's own embeddings."""
        return super().encode(network) if self.source is None else self.source.embed(network, self.index)


def cycle_dice(
    segment: Segment,
    network: PromptableNetwork,
    image: MetaTensor,
    logits: Tensor,
    values: Sequence[int],
    served: Mapping[int, Sequence[MatchedSlice]],
) -> dict[tuple[int, int], float]:
    """Segment reference slices back from the slices that they served, and compare with what was annotated.

    Args:
        segment: the method, for one slice.
        network: the promptable model.
        image: the target ``[C, H, W, D]`` in the input frame.
        logits: ``[L, H, W, D]``, its segmentation.
        values: of the structures in the references' labels, one a channel.
        served: slice of the target -> slices of a reference.

    Returns:
        Channel and slice of the target -> Dice on the reference slice, where the structure was annotated; 0 where none
        was predicted.
    """
    highest, channel_of = logits.max(dim=0)
    label = torch.where(highest > 0, torch.as_tensor(list(values))[channel_of], 0)[None]
    predicted, found = Reference(image, label), {}
    for k, matched in ((k, one) for k, slices in served.items() for one in slices):
        source, there = matched.reference, matched.label.cpu()
        asked = [channel for channel, value in enumerate(values) if matched.shows(value)]
        if not asked:
            continue
        plane = source.image.as_tensor()[..., matched.index]
        target = ReferenceSlice(plane, plane_size(source.image), matched.index, (), source.frame, source)
        results = segment(network, target, [MatchedSlice(predicted, k)])
        for channel in asked:
            back = results[channel].logits
            found[channel, k] = 0.0 if back is None else dice(back.cpu() > 0, there == values[channel])
    return found
