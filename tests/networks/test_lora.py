"""Tests of monai_ext.networks.lora on linear layers and on SAM's own ViT-B and ViT-L without storage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_ext.engines.interactive import trained_parameters
from monai_ext.errors import UserError
from monai_ext.networks.lora import LoraLinear, adapt, count_trained, merged_state
from monai_ext.networks.sam import build_compact, build_sam


def layer(parts: int, rank: int = 2, alpha: float = 3.0) -> LoraLinear:
    torch.manual_seed(0)
    return LoraLinear(nn.Linear(8, 4 * parts), rank, alpha, parts, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("parts", [1, 3])
def test_each_part_has_its_own_update(parts: int) -> None:
    """Hu et al. 2021, Eq. 3, row by row."""
    given = layer(parts)
    nn.init.normal_(given.lora_b)
    x = torch.randn(2, 5, 8)
    expected = x @ given.weight.T + given.bias
    for p in range(parts):
        expected[..., 4 * p : 4 * p + 4] += 1.5 * (x @ given.lora_a[p].T) @ given.lora_b[p].T
    torch.testing.assert_close(given(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("parts", [1, 3])
def test_merged_layer_does_the_same(parts: int) -> None:
    network = nn.Sequential(layer(parts))
    nn.init.normal_(network[0].lora_b)
    plain = nn.Sequential(nn.Linear(8, 4 * parts))
    plain.load_state_dict(merged_state(network), strict=True)
    x = torch.randn(3, 8)
    torch.testing.assert_close(network(x), plain(x), atol=1e-6, rtol=0)
    assert (plain[0].weight - network[0].weight).abs().max() > 0.1


def test_training_starts_from_the_given_layer_and_leaves_it() -> None:
    plain = nn.Linear(8, 12)
    given = LoraLinear(plain, 1, 1.0, 3)
    x = torch.randn(3, 8)
    assert torch.equal(given(x), plain(x))
    given(x).square().sum().backward()
    assert given.weight.grad is None
    assert given.lora_b.grad is not None
    assert bool(given.lora_b.grad.any())


@pytest.mark.parametrize(("variant", "lora", "total"), [("vit_b", 73_728, 5_515_824), ("vit_l", 196_608, 5_901_104)])
def test_trained_parameters_are_the_papers_number(variant: str, lora: int, total: int) -> None:
    """P²SAM, Tables 1 and 2: 5.5 M and 5.9 M."""
    with torch.device("meta"):
        network = build_sam(variant)
    plain = set(network.state_dict())
    learning = trained_parameters(adapt(network, "lora"))
    counts = count_trained(network)
    assert counts["LoRA"] == lora
    assert sum(counts.values()) == sum(p.numel() for p in learning) == total
    assert set(merged_state(network)) == plain


def test_impossible_options_are_refused() -> None:
    network = build_compact(image_size=64, channels=(16, 16, 32, 32), blocks=(1, 1, 1), width=32)
    assert adapt(network, "full") is network
    with pytest.raises(UserError, match="needs a ViT"):
        adapt(network, "lora")
    with pytest.raises(UserError, match="adapt 'peft' is unknown"):
        adapt(network, "peft")
    with torch.device("meta"):
        sam = build_sam("vit_b")
    with pytest.raises(UserError, match="rank is 1 or more"):
        adapt(sam, "lora", rank=0)
