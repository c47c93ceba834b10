"""Tests of monai_ext.networks.fast_encoder against segment_anything's encoder."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from monai_ext.networks import fast_encoder
from monai_ext.networks.fast_encoder import FastImageEncoder, is_onednn_exact, onednn_matmul

GRID = 10


def their_encoder(window: int, rel_pos: bool = True, bias: bool = True, blocks: int = 3) -> ImageEncoderViT:
    """A ViT on 10 x 10 tokens, the last block global, with weights large enough that every part of it matters."""
    torch.manual_seed(window)
    encoder = ImageEncoderViT(
        img_size=8 * GRID,
        patch_size=8,
        embed_dim=24,
        depth=blocks,
        num_heads=3,
        out_chans=16,
        qkv_bias=bias,
        use_rel_pos=rel_pos,
        window_size=window,
        global_attn_indexes=(blocks - 1,),
    ).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "rel_pos" in name or "pos_embed" in name or "qkv" in name or "norm" in name:
                parameter += 0.5 * torch.randn_like(parameter)
    return encoder


def pixels(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8 * GRID, 8 * GRID, generator=torch.Generator().manual_seed(7))


# windows of 5 fill the grid of 10; of 4 leave half a window; of 7 less; of 14 one window larger than the grid
@pytest.mark.parametrize("window", [5, 4, 7, 14, 0])
@pytest.mark.parametrize("rel_pos", [True, False])
@torch.no_grad()
def test_embeddings_are_those_of_segment_anything(window, rel_pos) -> None:
    theirs = their_encoder(window, rel_pos)
    expected = theirs(pixels())
    torch.testing.assert_close(FastImageEncoder(theirs)(pixels()), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


@pytest.mark.parametrize("limit", [1, 150, 1500])
@torch.no_grad()
def test_the_size_of_the_chunks_is_of_no_matter(limit, monkeypatch) -> None:
    theirs = their_encoder(4)
    monkeypatch.setattr(fast_encoder, "_MOST_LOGITS_CPU", limit)
    monkeypatch.setattr(fast_encoder, "_MLP_TOKENS", 33)
    torch.testing.assert_close(FastImageEncoder(theirs)(pixels()), theirs(pixels()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 7, 9), (2, 3, 12), (1, 1, 4), (1, 11, 5)])
@pytest.mark.parametrize("window", [4, 0])
@torch.no_grad()
def test_blocks_take_odd_grids(shape, window) -> None:
    block = their_encoder(window).blocks[0]
    x = torch.randn(*shape, 24)
    torch.testing.assert_close(fast_encoder.FastBlock(block)(x), block(x), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_layer_without_bias_still_attends_to_its_padding() -> None:
    theirs = their_encoder(4, bias=False)
    torch.testing.assert_close(FastImageEncoder(theirs)(pixels()), theirs(pixels()), atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_changes_the_result() -> None:
    block = fast_encoder.FastBlock(their_encoder(4).blocks[0])
    x = torch.randn(1, 6, 6, 24)
    alone = fast_encoder.FastBlock(their_encoder(4).blocks[0])
    alone.window_size = 2
    assert (block(x) - alone(x))[:, 4:, 4:].abs().max() > 0.05  # the corner's window holds the same 2 x 2 tokens


@torch.no_grad()
def test_input_is_left_as_it_is() -> None:
    block = fast_encoder.FastBlock(their_encoder(4).blocks[0])
    x = torch.randn(1, 24, 6, 6).permute(0, 2, 3, 1)
    before = x.clone()
    expected = block(x.contiguous())
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(x, before, atol=0, rtol=0)


@pytest.mark.parametrize("window", [4, 7])
def test_gradients_are_those_of_segment_anything(window) -> None:
    theirs = their_encoder(window)
    ours = FastImageEncoder(copy.deepcopy(theirs))
    weights = torch.randn(2, 16, GRID, GRID, generator=torch.Generator().manual_seed(3))
    for encoder in (theirs, ours):
        (encoder(pixels()) * weights).sum().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert gradient is not None
        torch.testing.assert_close(found[name], gradient, atol=2e-4 * float(gradient.abs().max()), rtol=0, msg=name)
        assert float(gradient.abs().max()) > 0, name


def test_state_dicts_load_strictly_both_ways() -> None:
    theirs, other = their_encoder(4), their_encoder(7)
    ours = FastImageEncoder(their_encoder(4))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(other.state_dict(), strict=True)


@torch.no_grad()
def test_a_copy_is_independent() -> None:
    ours = FastImageEncoder(their_encoder(4))
    before = ours(pixels())
    changed = copy.deepcopy(ours)
    changed.blocks[0].attn.qkv.weight *= 2
    torch.testing.assert_close(ours(pixels()), before)
    assert (changed(pixels()) - before).abs().max() > 1e-2


class Adapted(nn.Module):
    """A linear layer with something beside it, as LoRA puts it in place of qkv or proj."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.beside = layer, nn.Linear(layer.in_features, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.beside(x)


@torch.no_grad()
def test_layers_can_be_replaced() -> None:
    theirs = their_encoder(4)
    ours = FastImageEncoder(theirs)
    plain = ours(pixels())
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        mine.attn.qkv = other.attn.qkv = Adapted(other.attn.qkv)
        mine.attn.proj = other.attn.proj = Adapted(other.attn.proj)
    torch.testing.assert_close(ours(pixels()), theirs(pixels()), atol=1e-4, rtol=0)
    assert (ours(pixels()) - plain).abs().max() > 1e-2


@torch.no_grad()
def test_bfloat16_is_close() -> None:
    theirs = their_encoder(4)
    expected = theirs(pixels())
    with torch.autocast("cpu", torch.bfloat16):
        found = FastImageEncoder(theirs)(pixels()).float()
    assert 1e-4 < (found - expected).abs().mean() / expected.abs().mean() < 0.05


# ---- oneDNN ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def probe_anew():
    is_onednn_exact.cache_clear()
    yield
    is_onednn_exact.cache_clear()


def test_the_setting_is_as_it_was_afterwards(probe_anew) -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    with contextlib.suppress(KeyError), onednn_matmul():
        assert setting.fp32_precision == ("bf16" if is_onednn_exact() else before)
        raise KeyError
    assert setting.fp32_precision == before


def test_of_several_threads_the_last_one_puts_the_setting_back(probe_anew) -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    first, second = onednn_matmul(), onednn_matmul()
    for context in (first, second):
        context.__enter__()
    first.__exit__(None, None, None)
    assert setting.fp32_precision == ("bf16" if is_onednn_exact() else before)
    second.__exit__(None, None, None)
    assert setting.fp32_precision == before


def as_amx_multiplies(a: Tensor, b: Tensor) -> Tensor:
    return a.bfloat16().float() @ b.bfloat16().float()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_processor_that_would_round_keeps_float32(probe_anew, monkeypatch) -> None:
    monkeypatch.setattr(fast_encoder, "_allowed_to_round", as_amx_multiplies)
    assert not is_onednn_exact()
    before = torch.backends.mkldnn.matmul.fp32_precision
    with onednn_matmul():
        assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_processor_that_would_not_round_takes_onednn(probe_anew, monkeypatch) -> None:
    monkeypatch.setattr(fast_encoder, "_allowed_to_round", torch.matmul)
    assert is_onednn_exact()
    with onednn_matmul():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


def test_this_processor_multiplies_in_float32(probe_anew) -> None:
    """Whatever it offers: AMX would be 3e-3 off."""
    a, b = (torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(k)) for k in range(2))
    with onednn_matmul():
        product = a @ b
    torch.testing.assert_close(product.double(), a.double() @ b.double(), atol=1e-4, rtol=0)


def test_without_onednn_nothing_is_set(probe_anew, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not is_onednn_exact()
