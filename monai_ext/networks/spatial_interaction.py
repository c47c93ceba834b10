"""The spatial interaction module of APSCL (SIM, §3.2, Eqs. 3 to 6): how alike two images are, place by place.

Of training alone: the relevance of pairs of images is what the contrast of
:mod:`monai_ext.losses.spatial_contrast` compares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Projected(NamedTuple):
    """Queries, keys and values of images (Eq. 3), each [n, g * g, E']."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class SpatialInteraction(nn.Module):
    """Align the values of one image with those of another by attention, and compare them cell by cell.

    Eq. 5 as printed weights V_s by W_{s,q}, whose columns are places of the query. The loss goes back to Ouali et al.
    (2021, Spatial Contrastive Learning), whose attention of one image over another weights the values of the other;
    with it, Eq. 6 compares values that belong to the same place. That is ``values: other``; ``values: printed`` is
    Eq. 5 to the letter.

    One set of convolutions serves both images.

    Args:
        channels: of the features.
        width: E'; not stated in the paper.
        values: ``other`` or ``printed``.
    """

    def __init__(self, channels: int = 256, width: int = 256, values: str = "other") -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Conv2d(channels, width, 1) for _ in range(3))
        self.of_other = values == "other"

    def forward(self, features: Tensor) -> Projected:
        """Project enriched features [n, C, g, g] (Eq. 3)."""
        parts = (layer(features).flatten(2).transpose(1, 2) for layer in (self.queries, self.keys, self.values))
        return Projected(*parts)

    def relevance(self, images: Projected, weights: Tensor, anchors: int | None = None) -> Tensor:
        """Compare images with one another and with themselves (Eqs. 4 to 6).

        Args:
            images: n images.
            weights: [n, g * g] not negative: where an image is compared, a class's share of each cell. Each of the two
                terms of Eq. 6 is averaged over the mask of the image whose values it holds, where the paper averages
                over all places: a slice shows many organs, and two slices are alike in one of them. An image without
                weight is compared everywhere.
            anchors: compare the first so many images alone with all; None: all.

        Returns:
            [anchors, n], in [-2, 2].
        """
        count = len(images.values)
        first = count if anchors is None else anchors
        weights = torch.where(weights.sum(dim=1, keepdim=True) == 0, 1.0, weights)
        weights = weights / weights.sum(dim=1, keepdim=True)
        to_all = torch.stack([self._agreement(images, k, slice(None), weights[k]) for k in range(first)])
        to_anchors = [self._agreement(images, k, slice(first), weights[k]) for k in range(first, count)]
        return to_all + torch.stack([*to_all[:, :first], *to_anchors]).T

    def _agreement(self, images: Projected, k: int, others: slice, weights: Tensor) -> Tensor:
        """Compare the values of image k with those of others, aligned to its places: one number for each other.

        Only places with weight are computed: of an organ, a twentieth of all.
        """
        places = weights.nonzero()[:, 0]
        queries, keys, values = (part[others] for part in images)
        if self.of_other:  # V_{o|k} = softmax(Q_k K_o^T) V_o
            affinity = images.queries[k, places] @ keys.transpose(1, 2)
        else:  # V_{o|k} = softmax(Q_o K_k^T) V_o
            affinity = queries[:, places] @ images.keys[k].T
        aligned = torch.softmax(affinity / values.shape[-1] ** 0.5, dim=-1) @ values
        return F.cosine_similarity(images.values[k, places], aligned, dim=-1) @ weights[places]
