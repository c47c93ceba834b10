"""Matcher (Liu et al. 2024) in the setting of P²SAM's comparison: SAM's own features, and FSS-1000's numbers (§4.1).

Step of Matcher's paper -> code:

* patch-level matching, forward and back -> :func:`monai_ext.prompts.matching.match_both_ways`
* robust prompt sampler, global prompts  -> :func:`~monai_ext.prompts.matching.cluster_centres`, ``point_subsets``
* instance-level matching                -> :func:`~monai_ext.prompts.matching.mask_scores`
* controllable masks merging             -> :func:`monai_ext.inferers.proposals.union_of`

Left out, as in that setting: part- and instance-level prompts, boxes, SAM's automatic proposals, filters by threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.inferers.proposals import decode_in_chunks, union_of
from monai_ext.inferers.reference import ReferenceLoader
from monai_ext.inferers.reference_inferer import (
    MatchedSlice,
    ReferenceInferer,
    SliceResult,
    TargetSlice,
    segment_present,
    serving,
)
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.masks import valid_cells
from monai_ext.prompts.matching import cluster_centres, mask_scores, match_both_ways, point_subsets
from monai_ext.prompts.parts import foreground_features
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.retrieval import retrieve_masks
from monai_ext.prompts.shares import touched_cells
from monai_ext.prompts.ties import from_largest


@dataclass(frozen=True)
class ReferencePatches:
    """Patches of a structure's references, of all together.

    Attributes:
        features: [n, C] of the cells that hold image.
        inside: [n] bool, the structure.
    """

    features: Tensor
    inside: Tensor


class MatcherInferer(ReferenceInferer):
    """Segment by matched patches, many sampled prompts and a score of their masks (Matcher).

    The candidates' distances are exact; masks with the same cells are computed once. Of equal scores
    (:mod:`monai_ext.prompts.ties`) the first prompt.

    Args:
        labels: name -> value of the structures.
        load_reference: loads references.
        centres: clusters of the matched points.
        sizes: fewest and most centres in one prompt.
        alpha: weight of 1 - EMD in the score.
        beta: weight of purity and coverage in the score.
        exponent: of coverage.
        merged: number of best masks that are united.
        slice_match: see :class:`ReferenceInferer`.
        seed: of k-means++.

    Raises:
        UserError: for numbers below 1, or a range that runs backwards.
    """

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        centres: int = 8,
        sizes: Sequence[int] = (4, 6),
        alpha: float = 0.8,
        beta: float = 0.2,
        exponent: float = 1.0,
        merged: int = 10,
        slice_match: str = "position",
        seed: int = 0,
    ) -> None:
        super().__init__(labels, load_reference, slice_match)
        for name, number in (("matcher_centres", centres), ("matcher_merged", merged)):
            if not isinstance(number, int) or number < 1:
                raise UserError(f"{name} is {number}: give a whole number, 1 or more.")
        if len(sizes) != 2 or not all(isinstance(n, int) for n in sizes) or not 1 <= sizes[0] <= sizes[1]:
            raise UserError(f"matcher_sizes is {list(sizes)}: give the fewest and the most points, such as [4, 6].")
        self.centres, self.sizes, self.merged, self.seed = centres, (sizes[0], sizes[1]), merged, seed
        self.alpha, self.beta, self.exponent = alpha, beta, exponent

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: object
    ) -> list[SliceResult]:
        """Segment every structure on one slice; see :class:`ReferenceInferer`."""
        references = [self._patches(network, serving(matched, value), value) for value in self.labels.values()]
        return segment_present(network, target, references, partial(self._segment, network))

    def _patches(
        self, network: PromptableNetwork, matched: Sequence[MatchedSlice], value: int
    ) -> ReferencePatches | None:
        masks = [m.label == value for m in matched]
        if not any(bool(mask.any()) for mask in masks):
            return None
        features, inside = [], []
        for m, mask in zip(matched, masks, strict=True):
            embeddings = m.reference.embed(network, m.index)
            valid = _valid(network, embeddings)
            touched = touched_cells(mask[None], network.stride, (network.grid, network.grid))[0].to(valid.device)
            valid = valid | touched  # a structure on the last half cell of the image is kept
            features.append(foreground_features(embeddings.features[0], valid))
            inside.append(touched[valid])
        return ReferencePatches(torch.cat(features), torch.cat(inside))

    def _segment(self, network: PromptableNetwork, embeddings: Embeddings, reference: ReferencePatches) -> SliceResult:
        valid = _valid(network, embeddings)
        cells = valid.flatten().nonzero()[:, 0]
        found = match_both_ways(
            reference.features, reference.inside, foreground_features(embeddings.features[0], valid)
        )
        matched = torch.zeros_like(valid)
        matched.view(-1)[cells[found]] = True
        points = self._centres(network, embeddings, matched)
        subsets = point_subsets(len(points), self.sizes)
        if not subsets:
            return SliceResult(None, "no_foreground", {})
        prompts = [Prompt.from_points(points[list(subset)]) for subset in subsets]
        logits = decode_in_chunks(network, embeddings, prompts)
        masks = self._cells(network, logits, embeddings.size) & valid
        return self._merge(network, embeddings, reference, prompts, logits, masks, matched)

    def _merge(
        self,
        network: PromptableNetwork,
        embeddings: Embeddings,
        reference: ReferencePatches,
        prompts: list[Prompt],
        logits: Tensor,
        masks: Tensor,
        matched: Tensor,
    ) -> SliceResult:
        tokens = reference.features[reference.inside]
        exact = retrieve_masks(tokens, embeddings.features[0], masks, "cosine", prune=False).distances
        distances = torch.tensor(exact, dtype=torch.float64) / 2  # cost (1 - cos) / 2
        scores = mask_scores(
            distances, masks.flatten(1).cpu(), matched.flatten().cpu(), self.alpha, self.beta, self.exponent
        )
        chosen = [int(k) for k in from_largest(scores)[: self.merged] if bool(scores[k].isfinite())]
        if not chosen:
            return SliceResult(None, "no_foreground", {})
        best = prompts[chosen[0]]
        points = torch.cat([best.points, best.labels[:, None].to(best.points)], dim=1)
        details = {
            "n_pos": len(best.points),
            "n_neg": 0,
            "distance": float(distances[chosen[0]]),
            "points": points.tolist(),
        }
        return SliceResult(union_of(network, logits[chosen], embeddings.size), "ok", details)

    def _centres(self, network: PromptableNetwork, embeddings: Embeddings, matched: Tensor) -> Tensor:
        """Cluster centres of the matched cells' centres: [k, 2] (x, y) in the input frame."""
        rows_columns = matched.nonzero()
        points = rows_columns.flip(1).float() * network.stride + (network.stride - 1) / 2
        height, width = embeddings.size
        return cluster_centres(points.minimum(points.new_tensor([width - 1, height - 1])), self.centres, self.seed)

    def _cells(self, network: PromptableNetwork, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Cells that each mask touches, [K, g, g]; a mask at a time, for the sake of memory."""
        grid = (network.grid, network.grid)
        parts = [touched_cells(network.to_image(one[None, None], size)[0] > 0, network.stride, grid) for one in logits]
        return torch.cat(parts)


def _valid(network: PromptableNetwork, embeddings: Embeddings) -> Tensor:
    valid = valid_cells(embeddings.size, network.stride, (network.grid, network.grid))
    return valid.to(embeddings.features.device)
