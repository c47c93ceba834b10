"""Learned queries that attend first to the reference and then to the target (VRP-SAM's prompt encoder; ProSAM §8.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TEMPERATURE = 10000.0
"""Ratio of the longest to the shortest wave of a position's encoding, about."""


def sine_positions(rows: int, columns: int, channels: int) -> Tensor:
    """Encode the places of a grid by sines and cosines, as DETR does with normalised places (Carion et al. 2020).

    The first half of the channels tells the row, the second the column. Row r (1, 2, ...) of R stands at the angle
    ``2 pi r / R``, divided by a wave length; sine and cosine alternate.

    Args:
        rows: R.
        columns: likewise.
        channels: C, a multiple of 4.

    Returns:
        [R * columns, C], row by row.
    """
    half = channels // 2
    waves = TEMPERATURE ** (2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half)
    along = [_encode(torch.arange(1, cells + 1) / cells, waves) for cells in (rows, columns)]
    by_row = along[0][:, None].expand(rows, columns, half)
    by_column = along[1][None].expand(rows, columns, half)
    return torch.cat([by_row, by_column], dim=-1).reshape(rows * columns, channels)


def _encode(places: Tensor, waves: Tensor) -> Tensor:
    angles = 2 * math.pi * places[:, None] / waves
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)


class AttentionBlock(nn.Module):
    """Attention with a shortcut and layer normalisation behind it: no feed-forward network, no dropout.

    Args:
        channels: of queries, keys and values.
        heads: of the attention.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the queries [B, N, C] after they have read values [B, L, C] at their positions [L, C]."""
        keys = values if positions is None else values + positions
        read, _ = self.attention(queries, keys, values, need_weights=False)
        return self.norm(queries + read)


class PromptTransformer(nn.Module):
    """Queries -> reference -> one another -> target -> one another.

    Args:
        channels: C.
        count: learned queries N.
        heads: of each attention.
    """

    def __init__(self, channels: int, count: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Embedding(count, channels)
        self.from_support = AttentionBlock(channels, heads)
        self.among_support_queries = AttentionBlock(channels, heads)
        self.from_query = AttentionBlock(channels, heads)
        self.among_query_queries = AttentionBlock(channels, heads)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.startswith("queries"):
                nn.init.xavier_uniform_(parameter)

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Return prompts [B, N, C] from the enhanced features of reference and target, [B, C, g, g] each."""
        batch, channels, rows, columns = query.shape
        positions = sine_positions(rows, columns, channels).to(query)
        prompts = self.queries.weight.expand(batch, -1, -1)
        prompts = self.from_support(prompts, support.flatten(2).transpose(1, 2), positions)
        prompts = self.among_support_queries(prompts, prompts)
        prompts = self.from_query(prompts, query.flatten(2).transpose(1, 2), positions)
        return self.among_query_queries(prompts, prompts)
