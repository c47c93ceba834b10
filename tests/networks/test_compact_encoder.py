"""Tests of monai_ext.networks.compact_encoder."""

from __future__ import annotations

import pytest
import torch

from monai_ext.networks.compact_encoder import CompactImageEncoder, ResidualBlock

SMALL = {"channels": (16, 16, 32, 32), "blocks": (1, 2, 1), "out_channels": 24}


@pytest.mark.parametrize(("size", "stride"), [(64, 4), (64, 8), (64, 16), (48, 8)])
def test_one_embedding_for_each_cell(size: int, stride: int) -> None:
    encoder = CompactImageEncoder(size, stride, **SMALL)
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, 24, size // stride, size // stride)
    assert encoder.img_size == size


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_every_parameter_learns(stride: int) -> None:
    encoder = CompactImageEncoder(64, stride, **SMALL)
    (encoder(torch.randn(2, 3, 64, 64)) * torch.randn(24, 1, 1)).square().sum().backward()
    idle = [name for name, p in encoder.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert idle == []


def test_under_autocast_the_pyramid_stays_in_float32() -> None:
    torch.manual_seed(0)
    encoder, image, seen = CompactImageEncoder(64, 8, **SMALL).eval(), torch.randn(1, 3, 64, 64), []
    for module in (encoder.stages[0][0].conv2, encoder.smooth.conv1, encoder.neck[0]):
        module.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(image)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]
    with torch.no_grad():
        exact = encoder(image)
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.02


def test_images_of_a_batch_do_not_mix_in_training_mode() -> None:
    encoder = CompactImageEncoder(64, 8, **SMALL).train()
    images = torch.rand(3, 3, 64, 64)
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(encoder(images), alone, atol=1e-5, rtol=1e-5)


def test_cells_move_with_the_image() -> None:
    """A pattern shifted by one coarse cell gives the features shifted by as much."""
    torch.manual_seed(0)
    encoder = CompactImageEncoder(256, 8, **SMALL).eval()
    image = torch.zeros(1, 3, 256, 256)
    image[..., 112:128, 112:128] = torch.randn(3, 16, 16)
    shifted = image.roll(16, dims=3)
    with torch.no_grad():
        here, there = encoder(image), encoder(shifted)
    moved, same = there[..., 14:18, 15:19], there[..., 14:18, 13:17]
    before = here[..., 14:18, 13:17]
    assert (moved - before).abs().max() < 0.03 * (same - before).abs().max()  # not 0: the border is in the norms


def test_residual_block_adds_its_input() -> None:
    block = ResidualBlock(8, 8)
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize("wrong", [{"image_size": 100}, {"stride": 2}, {"stride": 32}])
def test_other_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="multiple of 16 and stride 4, 8 or 16"):
        CompactImageEncoder(**wrong)
