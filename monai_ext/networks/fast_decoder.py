"""SAM's mask decoder for inference on a CPU, with the same weights and the same result, within the processor's cache.

Segment Anything (Kirillov et al. 2023) decodes all prompts at once, so every map of image tokens is several times the
cache, and most of the time goes into moving it. Here one prompt is decoded after the other, and of the maps as few
are made as can be. For image tokens x (with their positions), tokens q and one head of an attention:

* ``(q Wq + bq) (x Wk + bk)^T`` is ``((q Wq + bq) Wk^T) x^T`` plus what is the same for all keys, which the softmax
  drops: tokens are few, so it is they that go through the key's weights and not the image;
* values likewise: ``A (x Wv + bv) = (A x) Wv + bv``, the rows of A summing to 1;
* from image to tokens, the values go through the output's weights before they are spread over the image;
* the transposed convolutions of the upscaling do not overlap, so they are products with a matrix, channels last; only
  the masks that are asked for are made.

Weights are those of the decoder that is handed over, read from its layers: where one of them is another module, or has
a hook, segment_anything's own way is taken. So it is with gradients and autocast: :func:`fits`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.networks.fast_encoder import onednn_matmul
from monai_ext.networks.packed_linear import is_listened_to, pack


def fits(decoder: Any, features: Tensor) -> bool:
    """Whether ``decoder`` may run here for these embeddings: plain layers, on a CPU, without gradients, in float32."""
    if features.device.type != "cpu" or features.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    blocks = decoder.transformer.layers
    attentions = [decoder.transformer.final_attn_token_to_image]
    attentions += [part for b in blocks for part in (b.cross_attn_token_to_image, b.cross_attn_image_to_token)]
    layers = [layer for a in attentions for layer in (a.q_proj, a.k_proj, a.v_proj, a.out_proj)]
    layers += [decoder.output_upscaling[0], decoder.output_upscaling[3]]
    if any(type(layer) not in (nn.Linear, nn.ConvTranspose2d) for layer in layers):
        return False
    layers += [decoder.output_upscaling[i] for i in (1, 2, 4)]
    return not any(is_listened_to(layer) for layer in layers)


def decode(
    decoder: Any, features: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor, chosen: slice
) -> tuple[Tensor, Tensor]:
    """Decode K prompts.

    Args:
        decoder: segment_anything's ``MaskDecoder`` of width C.
        features: [K, C, g, g] embeddings.
        positions: [1, C, g, g], their positional encoding.
        sparse: [K, N, C] embeddings of points and boxes.
        dense: [K or 1, C, g, g] embeddings of earlier masks, or of none.
        chosen: which of the decoder's masks.

    Returns:
        Logits [K, M, 4g, 4g] and predicted IoU [K, M].
    """
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    image_pe = positions[0].flatten(1).T.contiguous()
    numbers = range(decoder.num_mask_tokens)[chosen]
    height, width = features.shape[-2:]
    masks = features.new_empty(len(features), len(numbers), 4 * height, 4 * width)
    quality = features.new_empty(len(features), len(numbers))
    upscale = _prepared_upscaling(decoder.output_upscaling, height * width)
    with onednn_matmul():
        for k, (image, prompt, earlier) in enumerate(zip(features, sparse, dense.expand_as(features), strict=True)):
            keys = (image + earlier).flatten(1).T.contiguous()
            tokens, keys = _transform(decoder.transformer, keys, image_pe, torch.cat([output_tokens, prompt]))
            weights = torch.stack([decoder.output_hypernetworks_mlps[i](tokens[1 + i]) for i in numbers])
            masks[k] = _image(upscale(keys), weights, height)
            quality[k] = decoder.iou_prediction_head(tokens[0])[chosen]
    return masks, quality


def _transform(transformer: Any, keys: Tensor, key_pe: Tensor, point_embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Run a `TwoWayTransformer`: image [P, C], its positions [P, C], tokens [T, C] -> tokens and image."""
    queries = point_embedding
    for block in transformer.layers:
        q = queries if block.skip_first_layer_pe else queries + point_embedding
        attended = block.self_attn(q=q[None], k=q[None], v=queries[None])[0]
        queries = block.norm1(attended if block.skip_first_layer_pe else queries + attended)
        placed = keys + key_pe
        attended = _tokens_to_image(block.cross_attn_token_to_image, queries + point_embedding, placed, keys)
        queries = block.norm2(queries + attended)
        queries = block.norm3(queries + block.mlp(queries))
        keys = block.norm4(
            _add_image_to_tokens(block.cross_attn_image_to_token, keys, placed, queries + point_embedding, queries)
        )
    attended = _tokens_to_image(transformer.final_attn_token_to_image, queries + point_embedding, keys + key_pe, keys)
    return transformer.norm_final_attn(queries + attended), keys


def _tokens_to_image(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from tokens q [T, C] to the image k, v [P, C]: [T, C]."""
    heads = attention.num_heads
    query = attention.q_proj(q).unflatten(1, (heads, -1))
    weight = attention.k_proj.weight.unflatten(0, (heads, -1))
    folded = torch.einsum("thd,hdc->htc", query * query.shape[-1] ** -0.5, weight).flatten(0, 1)
    attended = ((folded @ k.T).softmax(dim=1) @ v).unflatten(0, (heads, -1))
    values = torch.einsum("htc,hdc->thd", attended, attention.v_proj.weight.unflatten(0, (heads, -1)))
    return attention.out_proj(values.flatten(1) + attention.v_proj.bias)


def _add_image_to_tokens(attention: Any, image: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from the image q [P, C] to tokens k, v [T, C] and add the result to ``image`` [P, C], in its place."""
    heads = attention.num_heads
    key = attention.k_proj(k).unflatten(1, (heads, -1))
    key = key * key.shape[-1] ** -0.5
    folded = torch.einsum("thd,hdc->htc", key, attention.q_proj.weight.unflatten(0, (heads, -1)))
    same = torch.einsum("thd,hd->ht", key, attention.q_proj.bias.unflatten(0, (heads, -1)))
    logits = torch.addmm(same.flatten()[:, None], folded.flatten(0, 1), q.T)  # [heads * T, P]
    weights = logits.unflatten(0, (heads, -1)).softmax(dim=1).flatten(0, 1)
    value = attention.v_proj(v).unflatten(1, (heads, -1))
    spread = torch.einsum("thd,chd->htc", value, attention.out_proj.weight.unflatten(1, (heads, -1)))
    spread = spread + attention.out_proj.bias / heads  # the weights of each head sum to 1
    return image.addmm_(weights.T, spread.flatten(0, 1))


def _prepared_upscaling(upscaling: nn.Sequential, tokens: int) -> Callable[[Tensor], Tensor]:
    """Make the four-fold upscaling of an image of tokens [h * w, C] ready: -> [h * w * 2 * 2 * 2 * 2, C / 8].

    The 16 pixels of a token are (row, column) of the first upscaling, then of the second. The GELU that ends it is
    applied.
    """
    first, norm, activation, second, last = upscaling
    exact = type(last) is nn.GELU and last.approximate == "none"
    spread = _spread(first, tokens)
    again = _spread(second, 4 * tokens, gelu=exact)

    def upscale(keys: Tensor) -> Tensor:
        x = spread(keys).view(4 * tokens, -1)
        x = activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))  # type: ignore[arg-type]
        x = again(x).view(16 * tokens, -1)
        return x if exact else last(x)

    return upscale


def _spread(convolution: Any, tokens: int, gelu: bool = False) -> Callable[[Tensor], Tensor]:
    """Transposed convolution of size and stride 2 as a product: [n, C] -> [n, 2 * 2 * C'], the 2 x 2 pixels in turn."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return pack(weight.contiguous(), convolution.bias.repeat(4), tokens, gelu)


def _image(pixels: Tensor, weights: Tensor, height: int) -> Tensor:
    """Weigh the channels of an upscaled image [h * w * 16, C'] by [M, C']: [M, 4h, 4w]."""
    grid = (pixels @ weights.T).view(height, -1, 2, 2, 2, 2, len(weights))  # y, x, (row, column) of each upscaling
    return grid.permute(6, 0, 2, 4, 1, 3, 5).reshape(len(weights), 4 * height, -1)
