"""Tests of monai_ext.networks.dual_branch_unet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.networks.dual_branch_unet import ChannelSpatialAttention, DualBranchUNet, SkipFusion, build_segmentor


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))


def test_plain_network_has_the_parameters_of_unet_cct() -> None:
    assert sum(p.numel() for p in build_segmentor(4, "plain").parameters()) == 2_708_184


@pytest.mark.parametrize("architecture", ["plain", "sam_sp"])
@pytest.mark.parametrize("use_gpm", [False, True])
def test_shapes(image, architecture: str, use_gpm: bool) -> None:
    network = build_segmentor(5, architecture, use_gpm=use_gpm)
    assert network(image).shape == (2, 5, 32, 48)
    outputs = network.branches(image)
    assert {t.shape for t in (outputs.out, outputs.main, outputs.aux)} == {(2, 5, 32, 48)}
    assert outputs.latent.shape == (2, 256, 2, 3)
    torch.testing.assert_close(network(image), outputs.out)


def test_plain_output_is_the_main_branch_and_the_joint_one_reads_both(image) -> None:
    plain, joint = build_segmentor(3, "plain"), build_segmentor(3, "sam_sp")
    outputs = plain.branches(image)
    assert torch.equal(outputs.out, outputs.main)
    before = joint(image)
    with torch.no_grad():
        for parameter in joint.aux_decoder.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(before, joint(image))


def test_aux_alone_is_perturbed_and_in_training_alone(image) -> None:
    network = DualBranchUNet(3, activation="leaky_relu").eval()
    assert torch.equal(network(image), network(image))
    network.perturb_at_eval = True
    one, other = network.branches(image), network.branches(image)
    assert torch.equal(one.main, other.main)
    assert not torch.equal(one.aux, other.aux)
    assert not torch.equal(one.out, other.out)
    network.perturb_at_eval = False
    network.train()
    for module in network.modules():  # so that the dropout of the encoder does not hide the branch's
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    one, other = network.branches(image), network.branches(image)
    torch.testing.assert_close(one.main, other.main)
    assert not torch.allclose(one.aux, other.aux)


def test_fusion_modules_are_one_a_skip_and_branch() -> None:
    network = build_segmentor(4)
    modules = [m for m in network.modules() if isinstance(m, SkipFusion)]
    assert len(modules) == 8
    assert len({id(p) for m in modules for p in m.parameters()}) == sum(len(list(m.parameters())) for m in modules)


def test_fusion_is_what_its_description_says() -> None:
    torch.manual_seed(0)
    module = SkipFusion(16).eval()
    skip, deeper = torch.rand(1, 16, 8, 8), torch.rand(1, 32, 4, 4)
    fused, output = module(skip, deeper)
    up = F.interpolate(deeper, (8, 8), mode="bilinear", align_corners=True)
    attention: ChannelSpatialAttention = module.attention
    f = module.fuse(torch.cat([skip, up], 1))
    channel = torch.sigmoid(attention.mlp(f.mean((2, 3), keepdim=True)) + attention.mlp(f.amax((2, 3), keepdim=True)))
    f = f * channel
    f = f * torch.sigmoid(attention.spatial(torch.stack([f[0].mean(0), f[0].max(0).values])[None]))
    torch.testing.assert_close(fused, f)
    torch.testing.assert_close(output, module.output(torch.cat([f, skip], 1)))


def test_weights_load_strictly(tmp_path) -> None:
    torch.save(build_segmentor(4, "plain").state_dict(), tmp_path / "plain.pt")
    assert isinstance(build_segmentor(4, "plain", tmp_path / "plain.pt"), DualBranchUNet)
    for classes, architecture in ((4, "sam_sp"), (5, "plain")):
        with pytest.raises(UserError, match="set --architecture and the number of labels"):
            build_segmentor(classes, architecture, tmp_path / "plain.pt")


@pytest.mark.parametrize("options", [{"skip_fusion": "all"}, {"activation": "relu"}])
def test_unknown_options(options: dict[str, str]) -> None:
    with pytest.raises(UserError, match="unknown: choose"):
        DualBranchUNet(3, **options)
    with pytest.raises(UserError, match="architecture 'big' is unknown"):
        build_segmentor(3, "big")


def test_sizes_that_do_not_halve_four_times_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        build_segmentor(3)(torch.rand(1, 1, 40, 32))
