"""Target-guided attention and target-semantic prompting against a slow reference: loops over tokens and heads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from monai_ext.networks.sam import PromptableSam, build_compact
from monai_ext.prompts.prompt import Prompt

G, C = 4, 32
PROMPTS = [
    Prompt(torch.tensor([[5.0, 9.0]]), torch.tensor([1])),
    Prompt(torch.tensor([[20.0, 3.0], [8.0, 30.0]]), torch.tensor([1, 0])),
    Prompt(torch.tensor([[1.0, 2.0]]), torch.tensor([0])),
]


@pytest.fixture(scope="module")
def network() -> PromptableSam:
    torch.manual_seed(3)
    return build_compact(image_size=32, stride=8, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=C).eval()


@pytest.fixture
def embeddings(network):
    with torch.no_grad():
        return network.encode(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255)


@pytest.fixture
def bias() -> Tensor:
    return torch.rand(1, G, G, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def target() -> Tensor:
    return torch.randn(1, C, generator=torch.Generator().manual_seed(2))


def slow_attention(layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """[N, C], [M, C], [M, C] and a bias [M] -> [N, C]: token by token, head by head."""
    q, k, v = layer.q_proj(q), layer.k_proj(k), layer.v_proj(v)
    width = q.shape[1] // layer.num_heads
    rows = []
    for token in q:
        heads = []
        for h in range(layer.num_heads):
            part = slice(h * width, (h + 1) * width)
            scores = torch.stack([token[part] @ key[part] / math.sqrt(width) for key in k])
            weights = scores.exp() / scores.exp().sum()
            if bias is not None:
                weights = (weights + bias).exp() / (weights + bias).exp().sum()
            heads.append(sum(w * value[part] for w, value in zip(weights, v, strict=True)))
        rows.append(torch.cat(heads))
    return layer.out_proj(torch.stack(rows))


def slow_transformer(transformer, image, image_pe, tokens, bias, target) -> tuple[Tensor, Tensor]:
    """One image, with the in-place addition that the released code has: ``queries`` begins as the tokens themselves."""
    keys, key_pe, tokens = image.flatten(1).T, image_pe.flatten(1).T, tokens.clone()
    queries = tokens
    for number, block in enumerate(transformer.layers):
        if target is not None:
            queries += target
        if number == 0:
            queries = slow_attention(block.self_attn, queries, queries, queries, None)
        else:
            q = queries + tokens
            queries = queries + slow_attention(block.self_attn, q, q, queries, None)
        queries = block.norm1(queries)
        attention = block.cross_attn_token_to_image
        queries = block.norm2(queries + slow_attention(attention, queries + tokens, keys + key_pe, keys, bias))
        queries = block.norm3(queries + block.mlp(queries))
        k = queries + tokens
        keys = block.norm4(keys + slow_attention(block.cross_attn_image_to_token, keys + key_pe, k, queries, None))
    last = slow_attention(transformer.final_attn_token_to_image, queries + tokens, keys + key_pe, keys, None)
    return transformer.norm_final_attn(queries + last), keys


def slow_masks(network: PromptableSam, features: Tensor, prompt: Prompt, bias, target) -> Tensor:
    decoder = network.mask_decoder
    sparse, dense = network.prompt_encoder((prompt.points[None], prompt.labels[None]), None, None)
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, sparse[0]])
    image_pe = network.prompt_encoder.get_dense_pe()[0]
    flat = None if bias is None else bias.flatten()
    tokens, image = slow_transformer(decoder.transformer, features + dense[0], image_pe, tokens, flat, target)
    upscaled = decoder.output_upscaling(image.T.reshape(1, C, G, G))[0]
    return torch.stack(
        [
            (mlp(tokens[1 + i])[:, None, None] * upscaled).sum(0)
            for i, mlp in enumerate(decoder.output_hypernetworks_mlps)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("guided", "prompted"), [(True, True), (True, False), (False, True)])
def test_guided_masks_are_those_of_the_slow_reference(network, embeddings, bias, target, guided, prompted):
    with torch.no_grad():
        given = (bias if guided else None, target if prompted else None)
        logits, _ = network.decode(
            embeddings, PROMPTS, multimask=True, attention_bias=given[0], target_embedding=given[1]
        )
        plain, _ = network.decode(embeddings, PROMPTS, multimask=True)
        for mask, prompt in zip(logits, PROMPTS, strict=True):
            expected = slow_masks(network, embeddings.features[0], prompt, *given)[1:]
            torch.testing.assert_close(mask, expected, atol=2e-5, rtol=1e-4)
    assert (logits - plain).abs().max() > 1e-3


def test_nothing_changes_without_guidance(network, embeddings, monkeypatch):
    """The path of SAM's own transformer is taken, not ours with a bias of nothing."""
    monkeypatch.setattr("monai_ext.networks.sam.guided_transformer", None)
    with torch.no_grad():
        logits, _ = network.decode(embeddings, PROMPTS, attention_bias=None, target_embedding=None)
        assert torch.equal(logits, network.decode(embeddings, PROMPTS)[0])


def test_each_prompt_may_have_its_own_guidance(network, embeddings, bias, target):
    """Prompts of different lengths decode in groups: each must keep its own row."""
    biases, targets = torch.cat([bias, bias.flip(1), 2 * bias]), torch.cat([target, -target, 2 * target])
    with torch.no_grad():
        together, quality = network.decode(embeddings, PROMPTS, attention_bias=biases, target_embedding=targets)
        for k, prompt in enumerate(PROMPTS):
            alone, iou = network.decode(
                embeddings, [prompt], attention_bias=biases[k : k + 1], target_embedding=targets[k : k + 1]
            )
            torch.testing.assert_close(together[k : k + 1], alone, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(quality[k : k + 1], iou, atol=1e-5, rtol=1e-4)


def test_an_equal_bias_everywhere_flattens_the_attention_alone(network, embeddings):
    """Softmax of (softmax + a constant) is that of the softmax: flatter than the unguided attention, whatever a is."""
    one, other = torch.zeros(1, G, G), torch.full((1, G, G), 3.0)
    with torch.no_grad():
        first, _ = network.decode(embeddings, PROMPTS, attention_bias=one)
        second, _ = network.decode(embeddings, PROMPTS, attention_bias=other)
        unguided, _ = network.decode(embeddings, PROMPTS)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    assert (first - unguided).abs().max() > 1e-4
