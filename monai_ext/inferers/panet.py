"""PANet's non-parametric segmentation (Wang et al. 2019) on the promptable model's features, without its decoder.

PANet's "align" is a regularisation of training (its §3.4): a frozen encoder has nothing to align, and what is left of
the method at inference are its prototypes (its §3.3). P²SAM's paper names the method and gives no details.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_ext.inferers.reference_inferer import BACKGROUND, MatchedSlice, ReferenceInferer, SliceResult, TargetSlice
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.prototypes import SCALE, lead, prototype, prototype_scores
from monai_ext.prompts.shares import covered_share
from monai_ext.prompts.ties import TOLERANCE


def class_shares(network: PromptableNetwork, label: Tensor, values: Sequence[int]) -> Tensor:
    """Share of each cell that the background and each structure cover, [1 + L, g, g]; padding counts as none.

    Args:
        network: the promptable model.
        label: [H, W] integer, in the input frame.
        values: of the structures; what has none of them is background.
    """
    masks = [label == value for value in values]
    masks = [~torch.stack(masks).any(dim=0), *masks]
    return covered_share(torch.stack(masks), network.stride, (network.grid, network.grid))


def classes_to_results(
    network: PromptableNetwork,
    scores: Tensor,
    size: tuple[int, int],
    present: Sequence[bool],
    tolerance: float = TOLERANCE,
) -> list[SliceResult]:
    """Upsample scores of the present classes and give each structure its lead over all others.

    Args:
        network: the promptable model.
        scores: [N, g, g], background first where there is any, then the structures that are present.
        size: (H, W) of the image in the input frame.
        present: whether each structure of the call is among the scores, in order.
        tolerance: scores that differ by no more count as equal.
    """
    upsampled = network.to_image(scores[:, None], size)[:, 0]
    ahead = lead(upsampled, tolerance) if len(upsampled) > 1 else torch.full_like(upsampled, -BACKGROUND)
    remaining = iter(ahead[len(scores) - sum(present) :])
    results = []
    for here in present:
        if not here:
            results.append(SliceResult(None, "reference_absent", {}))
            continue
        logits = next(remaining)
        found = bool((logits > 0).any())
        results.append(SliceResult(logits if found else None, "ok" if found else "no_foreground", {}))
    return results


class PanetInferer(ReferenceInferer):
    """Segment by the nearest of the class prototypes: background and all structures in one softmax (N-way).

    Several references are shots: their prototypes are averaged, a structure's over those that hold it.
    """

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: object
    ) -> list[SliceResult]:
        """Segment every structure on one slice; see :class:`ReferenceInferer`."""
        values = list(self.labels.values())
        present = [any(m.shows(v) for m in matched) for v in values]
        if not any(present):
            return [SliceResult(None, "reference_absent", {}) for _ in values]
        shots = [self._prototypes(network, m.reference.embed(network, m.index), m.label, values) for m in matched]
        means = [_mean([shot[0] for shot in shots])]
        for k, v in enumerate(values, start=1):
            means.append(_mean([shot[k] for shot, m in zip(shots, matched, strict=True) if m.shows(v)]))
        embeddings = target.encode(network)
        prototypes = torch.stack([mean for mean in means if mean is not None])
        scores = prototype_scores(prototypes, embeddings.features[0])
        return classes_to_results(network, scores, embeddings.size, present, SCALE * TOLERANCE)

    def _prototypes(
        self, network: PromptableNetwork, embeddings: Embeddings, label: Tensor, values: Sequence[int]
    ) -> list[Tensor | None]:
        shares = class_shares(network, label, values).to(embeddings.features.device)
        return [prototype(embeddings.features[0], share) for share in shares]


def _mean(prototypes: Sequence[Tensor | None]) -> Tensor | None:
    given = [p for p in prototypes if p is not None]
    return torch.stack(given).mean(dim=0) if given else None
