"""Tests of monai_ext.inferers.embedding_cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ext.inferers.embedding_cache import EmbeddingCache, encoder_sha256, to_sam_frame
from monai_ext.networks.sam import PromptableSam, build_compact


@pytest.fixture
def network() -> PromptableSam:
    torch.manual_seed(0)
    return build_compact(image_size=32, stride=8, channels=(8, 8, 16, 16), blocks=(1, 1, 1), width=16).eval()


def planes(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 24), dtype=np.uint8)


def test_embeddings_are_the_encoders_in_half_precision(network, tmp_path) -> None:
    found = EmbeddingCache(tmp_path, network).embed(planes())
    with torch.no_grad():
        expected = torch.cat([network.encode(torch.from_numpy(p)[None, None].float()).features for p in planes()])
    assert found.dtype == torch.float16
    assert torch.equal(found, expected.half())


def test_what_is_there_is_read_not_encoded_again_and_the_same(network, tmp_path, monkeypatch) -> None:
    first = EmbeddingCache(tmp_path, network).embed(planes())
    cache = EmbeddingCache(tmp_path, network)
    monkeypatch.setattr(network, "encode", None)
    again = cache.embed(planes())
    assert torch.equal(first, again)
    assert first.stride() == again.stride()  # another layout may be summed in another order
    assert len(list(tmp_path.iterdir())) == 2


def test_another_image_or_encoder_has_another_file_a_tuned_decoder_the_same(network, tmp_path) -> None:
    EmbeddingCache(tmp_path, network).embed(planes(1))
    with torch.no_grad():
        next(network.mask_decoder.parameters()).add_(1)
    EmbeddingCache(tmp_path, network).embed(planes(1))
    assert len(list(tmp_path.iterdir())) == 1
    EmbeddingCache(tmp_path, network).embed(planes(1) ^ 1)
    assert len(list(tmp_path.iterdir())) == 2
    before = encoder_sha256(network)
    with torch.no_grad():
        next(network.image_encoder.parameters()).add_(1)
    assert encoder_sha256(network) != before
    EmbeddingCache(tmp_path, network).embed(planes(1))
    assert len(list(tmp_path.iterdir())) == 3


def test_slices_fill_the_networks_frame_with_their_longer_side() -> None:
    assert to_sam_frame(torch.zeros(16, 12), 32).shape == (32, 24)
    assert to_sam_frame(torch.zeros(64, 7), 32).shape == (32, 4)
    same = torch.rand(32, 24)
    assert to_sam_frame(same, 32) is same
