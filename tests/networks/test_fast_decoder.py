"""SAM's mask decoder without its detours: the same masks as segment_anything's own, which runs where gradients do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from monai_ext.networks import fast_decoder
from monai_ext.networks.sam import PromptableSam, build_compact

K, C, G = 3, 32, 4


@pytest.fixture(scope="module")
def network() -> PromptableSam:
    torch.manual_seed(3)
    network = build_compact(image_size=32, stride=8, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=C).eval()
    with torch.no_grad():
        for parameter in network.mask_decoder.parameters():  # biases and norms are 0 and 1 else: nothing to get wrong
            parameter += 0.3 * torch.randn(parameter.shape)
    return network


def prompts(points: int, box: bool, mask: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {
        "features": torch.randn(K, C, G, G, generator=generator),
        "points": torch.rand(K, points, 2, generator=generator) * 32,
        "labels": (torch.rand(K, points, generator=generator) < 0.5).long(),
    }
    if box:
        corner = torch.rand(K, 2, generator=generator) * 16
        given["boxes"] = torch.cat([corner, corner + 12], dim=1)
    if mask:
        given["mask_input"] = torch.randn(K, 1, 4 * G, 4 * G, generator=generator) * 5
    return given


def both(network: PromptableSam, monkeypatch, **given: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Decode with and without gradients; check that it is the former that goes segment_anything's way."""
    calls: list[int] = []
    usual = fast_decoder.decode
    monkeypatch.setattr(fast_decoder, "decode", lambda *arguments: calls.append(1) or usual(*arguments))
    theirs = network.decode_batch(**given)
    assert not calls
    with torch.no_grad():
        ours = network.decode_batch(**given)
    assert calls
    return ours, (theirs[0].detach(), theirs[1].detach())


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("points", "box"), [(1, False), (5, False), (2, True), (0, True), (0, False)])
def test_masks_and_quality_are_those_of_segment_anything(network, monkeypatch, points, box, mask, multimask) -> None:
    ours, theirs = both(network, monkeypatch, **prompts(points, box, mask), multimask=multimask)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.slow
def test_every_weight_of_the_decoder_counts(network) -> None:
    generator = torch.Generator().manual_seed(0)
    image, positions, dense = (torch.randn(1, C, 2, 2, generator=generator) for _ in range(3))
    sparse = torch.randn(1, 3, C, generator=generator)

    def outputs() -> Tensor:
        found = fast_decoder.decode(network.mask_decoder, image, positions, sparse, dense, slice(None))
        return torch.cat([x.flatten() for x in found])

    idle = []
    with torch.no_grad():
        before = outputs()
        for name, parameter in network.mask_decoder.named_parameters():
            kept = parameter.clone()
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            if torch.equal(outputs(), before):
                idle.append(name)
            parameter.copy_(kept)
    assert all(name.endswith("k_proj.bias") for name in idle)  # the same for all keys: the softmax drops it


def test_grids_need_not_be_square_and_there_may_be_no_prompt(network) -> None:
    generator = torch.Generator().manual_seed(0)
    decoder, chosen = network.mask_decoder, slice(0, 1)
    image, positions = (torch.randn(n, C, 3, 5, generator=generator) for n in (2, 1))
    sparse, dense = torch.randn(2, 4, C, generator=generator), torch.randn(1, C, 3, 5, generator=generator)
    theirs = decoder.predict_masks(image, positions, sparse, dense.expand_as(image))
    with torch.no_grad():
        ours = fast_decoder.decode(decoder, image, positions, sparse, dense, chosen)
        none = fast_decoder.decode(decoder, image[:0], positions, sparse[:0], dense, chosen)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other[:, chosen], rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))
    assert (none[0].shape, none[1].shape) == ((0, 1, 12, 20), (0, 1))


def test_other_precisions_and_guidance_go_segment_anythings_way(network, monkeypatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("not made for this")

    monkeypatch.setattr(fast_decoder, "decode", refuse)
    given = prompts(1, False, False)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            network.decode_batch(**given)
        network.decode_batch(**given, target_embedding=torch.zeros(1, C))
        with network.mask_decoder.output_upscaling[3].register_forward_hook(lambda *_: None):
            network.decode_batch(**given)
        with pytest.raises(AssertionError, match="not made for this"):
            network.decode_batch(**given)
