"""GF-SAM (Zhang et al. 2024, "Bridge the Points") in the setting of P²SAM's comparison: SAM's own features.

Step of GF-SAM's paper -> code, all in :mod:`monai_ext.prompts.gating`:

* positive-negative alignment (§4.1) -> ``similarity_maps``, ``select_points``
* point-mask clustering (§4.2)       -> ``clusters_by_coverage``
* positive gating (§4.3, A.1)        -> ``polarity``, ``grow_masks``
* overshooting gating (§4.3)         -> ``self_consistent``
* mask merging                       -> :func:`monai_ext.inferers.proposals.union_of`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ext.inferers.proposals import decode_in_chunks, union_of
from monai_ext.inferers.reference_inferer import (
    MatchedSlice,
    ReferenceInferer,
    SliceResult,
    TargetSlice,
    segment_present,
    serving,
)
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.gating import (
    clusters_by_coverage,
    grow_masks,
    polarity,
    select_points,
    self_consistent,
    similarity_maps,
)
from monai_ext.prompts.masks import background_cells, paper_tokens, valid_cells
from monai_ext.prompts.parts import foreground_features
from monai_ext.prompts.prompt import Prompt


@dataclass(frozen=True)
class ReferenceCells:
    """Features of a structure's references, of all together.

    Attributes:
        foreground: [n, C].
        background: [b, C], of the cells that hold image.
        recovered: the structure was too small for the feature grid and was recovered by area.
    """

    foreground: Tensor
    background: Tensor
    recovered: bool


class GfSamInferer(ReferenceInferer):
    """Segment by one mask a point, grouped by which masks cover which points, and two gates (GF-SAM); no parameters."""

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: object
    ) -> list[SliceResult]:
        """Segment every structure on one slice; see :class:`ReferenceInferer`."""
        references = [self._cells(network, serving(matched, value), value) for value in self.labels.values()]
        return segment_present(network, target, references, partial(self._segment, network))

    def _cells(self, network: PromptableNetwork, matched: Sequence[MatchedSlice], value: int) -> ReferenceCells | None:
        foreground, background, recovered = [], [], False
        grid = (network.grid, network.grid)
        for m in matched:
            embeddings = m.reference.embed(network, m.index)
            features, mask = embeddings.features[0], m.label == value
            inside = torch.zeros(grid, dtype=torch.bool)
            if bool(mask.any()):
                inside, small = paper_tokens(mask, network.stride, grid)
                recovered |= small
            outside = background_cells(inside, valid_cells(embeddings.size, network.stride, grid))
            foreground.append(foreground_features(features, inside.to(features.device)))
            background.append(foreground_features(features, outside.to(features.device)))
        tokens = torch.cat(foreground) if foreground else torch.zeros(0)
        return ReferenceCells(tokens, torch.cat(background), recovered) if len(tokens) else None

    def _segment(self, network: PromptableNetwork, embeddings: Embeddings, reference: ReferenceCells) -> SliceResult:
        features, grid = embeddings.features[0], network.grid
        valid = valid_cells(embeddings.size, network.stride, (grid, grid)).to(features.device)
        cells = valid.flatten().nonzero()[:, 0]
        mean, greatest, negative = similarity_maps(
            foreground_features(features, valid), reference.foreground, reference.background
        )
        points = cells[select_points(mean, greatest, negative)]
        if not len(points):
            return SliceResult(None, "no_foreground", {"recovered": reference.recovered})
        xy = _places(network, embeddings, points)
        logits = decode_in_chunks(network, embeddings, [Prompt.from_points(point[None]) for point in xy])
        signs = features.new_zeros(grid * grid)
        signs[cells] = polarity(mean, negative)
        kept = gate(logits, points, signs.view(grid, grid), valid, features).nonzero()[:, 0]
        if not len(kept):
            return SliceResult(None, "no_foreground", {"recovered": reference.recovered})
        details = {
            "recovered": reference.recovered,
            "n_pos": len(kept),
            "n_neg": 0,
            "points": [[*place, 1.0] for place in xy[kept].tolist()],
        }
        return SliceResult(union_of(network, logits[kept], embeddings.size), "ok", details)


def gate(logits: Tensor, points: Tensor, signs: Tensor, valid: Tensor, features: Tensor) -> Tensor:
    """Cluster the points by their masks and keep those that pass both gates.

    Args:
        logits: [N, 4g, 4g], the low-resolution mask of each point.
        points: [N] cells, row by row.
        signs: [g, g] of :func:`monai_ext.prompts.gating.polarity`, 0 on padding.
        valid: [g, g] bool, cells that hold image.
        features: [C, g, g] of the target.

    Returns:
        [N] bool.
    """
    factor = logits.shape[-1] // valid.shape[-1]
    fine = valid.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)
    masks = (logits > 0) & fine
    clusters = clusters_by_coverage(_at_centres(logits, valid.shape[-1]).flatten(1)[:, points] > 0)
    unions = torch.stack([masks[clusters == p].any(dim=0) for p in range(int(clusters.max()) + 1)])
    shares = F.avg_pool2d(unions.float()[None], factor)[0]
    return grow_masks(masks, clusters, signs) & self_consistent(features, shares, points, clusters)


def _at_centres(logits: Tensor, grid: int) -> Tensor:
    """Logits at the cells' centres, [N, g, g]: between the four pixels there (bilinear)."""
    factor = logits.shape[-1] // grid
    start = factor // 2 - 1
    return F.avg_pool2d(logits[None, :, start:, start:], 2, stride=factor)[0][..., :grid, :grid]


def _places(network: PromptableNetwork, embeddings: Embeddings, cells: Tensor) -> Tensor:
    """Centres of cells, moved onto the image where they lie beyond it: [N, 2] (x, y) in the input frame."""
    columns_rows = torch.stack([cells % network.grid, cells // network.grid], dim=1).float()
    places = columns_rows * network.stride + (network.stride - 1) / 2
    height, width = embeddings.size
    return places.minimum(places.new_tensor([width - 1, height - 1]))
