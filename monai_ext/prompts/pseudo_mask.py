"""What the features of an annotated reference say of a target before anything is learned (VRP-SAM §3.2, PFENet)."""

from __future__ import annotations

from torch import Tensor

EMPTY = 5e-4
"""Added to the area of a mask by which a sum of features is divided, as in VRP-SAM's code."""
SHORTEST = 1e-7
"""Added to the product of two lengths by which an inner product is divided, likewise."""


def pseudo_mask(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """Give each cell of the query its largest cosine similarity to a cell of the annotated object.

    The support's features are multiplied by the mask, so a cell outside the object is a vector of zeros, to which
    everything has similarity 0; an empty mask gives zeros everywhere. VRP-SAM's code does not stretch the result to
    [0, 1], of which ProSAM's §8.1 speaks; behind a ReLU it lies there anyway.

    Args:
        query: [B, E, g, g], features of the last stage.
        support: [B, E, g, g], features of the last stage of the masked reference.
        mask: [B, 1, g, g] in [0, 1].

    Returns:
        [B, 1, g, g].
    """
    batch, _, rows, columns = query.shape
    of_query = query.flatten(2).transpose(1, 2)
    of_support = (support * mask).flatten(2)
    lengths = of_query.norm(dim=2, keepdim=True) @ of_support.norm(dim=1, keepdim=True)
    similarity = of_query @ of_support / (lengths + SHORTEST)
    return similarity.amax(dim=2).reshape(batch, 1, rows, columns)


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Average features over the annotated object.

    Args:
        features: [B, C, g, g].
        mask: [B, 1, g, g] in [0, 1].

    Returns:
        [B, C, 1, 1]; zeros where the mask is empty.
    """
    total = (features * mask).sum(dim=(2, 3), keepdim=True)
    return total / (mask.sum(dim=(2, 3), keepdim=True) + EMPTY)
