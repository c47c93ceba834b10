"""Guidance of SAM's mask decoder by a similarity map and a feature of what is sought (Zhang et al. 2023, PerSAM §3.2).

*Target-guided attention*: each token-to-image attention of the two-way blocks, after its softmax, is raised where the
image looks like the reference, and softmaxed again. *Target-semantic prompting*: the mean feature of the reference's
foreground is added to the tokens before each block.

What the released PerSAM does beyond its paper is kept. The bias is added to probabilities, not to logits, so it
outweighs them; the attention of the tokens to the image after the last block is not guided. The feature is added in
place, and in the first block the tokens are also their own positional encoding: that therefore carries the feature,
too, in every later use.

Weights are those of `segment_anything.modeling.TwoWayTransformer`, whose modules are called here one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """What guides a decoder pass.

    Attributes:
        attention_bias: [K or 1, g, g], added to the softmaxed attention of every token and head; None: not guided.
        target_embedding: [K or 1, C], added to every token; None: not prompted.
    """

    attention_bias: Tensor | None
    target_embedding: Tensor | None


def guided_transformer(
    transformer: Any, image: Tensor, image_pe: Tensor, tokens: Tensor, guidance: Guidance
) -> tuple[Tensor, Tensor]:
    """Run a two-way transformer with guidance.

    Args:
        transformer: a `TwoWayTransformer` of width C.
        image: [K, C, g, g] embeddings.
        image_pe: [K, C, g, g] their positional encoding.
        tokens: [K, N, C] output and prompt tokens.
        guidance: see :class:`Guidance`.

    Returns:
        Tokens [K, N, C] and image [K, g * g, C], as the transformer's own ``forward``.
    """
    keys, key_pe = image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2)
    bias = None if guidance.attention_bias is None else guidance.attention_bias.flatten(1)[:, None, None]
    target = None if guidance.target_embedding is None else guidance.target_embedding[:, None]
    query_pe = tokens if target is None else tokens + target
    queries = query_pe
    for number, block in enumerate(transformer.layers):
        if target is not None and number:
            queries = queries + target
        queries, keys = _guided_block(block, queries, keys, query_pe, key_pe, bias)
    attended = transformer.final_attn_token_to_image(q=queries + query_pe, k=keys + key_pe, v=keys)
    return transformer.norm_final_attn(queries + attended), keys


def _guided_block(
    block: Any, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    if block.skip_first_layer_pe:
        queries = block.self_attn(q=queries, k=queries, v=queries)
    else:
        q = queries + query_pe
        queries = queries + block.self_attn(q=q, k=q, v=queries)
    queries = block.norm1(queries)
    attended = _guided_attention(block.cross_attn_token_to_image, queries + query_pe, keys + key_pe, keys, bias)
    queries = block.norm2(queries + attended)
    queries = block.norm3(queries + block.mlp(queries))
    keys = block.norm4(keys + block.cross_attn_image_to_token(q=keys + key_pe, k=queries + query_pe, v=queries))
    return queries, keys


def _guided_attention(attention: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend with a bias [K or 1, 1, 1, g * g] on the softmaxed weights, softmaxed again."""
    if bias is None:
        return attention(q=q, k=k, v=v)
    q, k, v = (
        projection(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection, x in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    )
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
    weights = (weights + bias).softmax(dim=-1)
    return attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
