"""The mutual guidance decoder of APSCL (MGD, §3.3, Eqs. 9 and 10): query features reweighted channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MutualGuidance(nn.Module):
    """Two 1 x 1 convolutions, and attention between the channels of query and support.

    Where the paper cannot be taken to the letter:

    * Eq. 9: the text multiplies the two attentions, the equation adds them; they are added.
    * Eq. 10: alpha (E1 x E1) does not multiply Z_q (M x E1) from the left. As in DANet, each channel becomes a sum over
      channels with the weights of its row: Z_q softmax(alpha)^T + Z_q.
    * A product over M = 1024 cells grows with their number, and no normalisation is stated: see ``normalise``.
    * How the convolutions start: alike. A query is compared with prototypes of the support (Eq. 12), and with two
      random embeddings no training would begin with a comparison.

    Args:
        channels: of the enriched features.
        width: E1; not stated in the paper.
        normalise: ``softmax``: of each row of alpha / sqrt(M); ``mean``: alpha / M; ``none``.
        start: ``alike`` or ``random``.
        share: how much of Z_q alpha^T is added to Z_q. ``whole``, as Eq. 10 has it; ``learned``: times a number that is
            learned from 0, as DANet has it, so that a training begins with the plain comparison.
    """

    def __init__(
        self,
        channels: int = 256,
        width: int = 256,
        normalise: str = "softmax",
        start: str = "alike",
        share: str = "whole",
    ) -> None:
        super().__init__()
        self.support, self.query = nn.Conv2d(channels, width, 1), nn.Conv2d(channels, width, 1)
        self.normalise = normalise
        self.share = nn.Parameter(torch.zeros(())) if share == "learned" else None
        if start == "alike":
            self.query.load_state_dict(self.support.state_dict())

    def attention(self, query: Tensor, support: Tensor) -> Tensor:
        """Relate the channels: alpha = Z_q^T Z_q + Z_s^T Z_q (Eq. 9), normalised, [E1, E1].

        Args:
            query: Z_q, [E1, g, g].
            support: Z_s, [E1, g, g]; of several supports their mean.
        """
        z_query, z_support = query.flatten(1), support.flatten(1)
        alpha = (z_query + z_support) @ z_query.T  # both products of Eq. 9 at the cost of one
        cells = z_query.shape[1]
        if self.normalise == "softmax":
            return torch.softmax(alpha / cells**0.5, dim=-1)
        return alpha / cells if self.normalise == "mean" else alpha

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        """Reweight a query: Z_q alpha^T + Z_q (Eq. 10), [E1, g, g]; arguments as in :meth:`attention`."""
        weighted = self.attention(query, support) @ query.flatten(1)  # [E1, M], the transpose of Z_q alpha^T
        if self.share is not None:
            weighted = self.share * weighted
        return weighted.view_as(query) + query
