"""Tests of monai_ext.networks.packed_linear against the layers themselves."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_ext.networks import packed_linear
from monai_ext.networks.packed_linear import is_packing_exact, linear, pack, prepare

packed = pytest.mark.skipif(not is_packing_exact(), reason="this torch or this processor has no packed products")


def layer(inside: int = 24, outside: int = 40, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inside, outside, bias=bias)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def without_operators(monkeypatch):
    """Be on a machine whose torch lacks them."""
    monkeypatch.setattr(packed_linear, "is_packing_exact", lambda: False)


@pytest.fixture
def probe_anew():
    packed_linear.packs_bfloat16.cache_clear()
    yield
    packed_linear.packs_bfloat16.cache_clear()


def test_this_machine_packs_wherever_torch_has_onednn_on_x86() -> None:
    if torch.backends.mkldnn.is_available() and torch.cpu._is_avx2_supported():
        assert is_packing_exact()


@pytest.mark.parametrize("shape", [(1,), (33,), (2, 5, 7)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products_are_those_of_the_layer(shape, bias) -> None:
    plain, x = layer(bias=bias), tokens(*shape)
    torch.testing.assert_close(linear(plain, x), plain(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prepare(plain, x, gelu=True)(x), F.gelu(plain(x)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_prepared_takes_another_number_of_tokens() -> None:
    plain = layer()
    ready = prepare(plain, tokens(64))
    torch.testing.assert_close(ready(tokens(3)), plain(tokens(3)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_the_operators_the_layer_is_called(without_operators) -> None:
    plain, x = layer(), tokens(9)
    torch.testing.assert_close(linear(plain, x), plain(x), atol=0, rtol=0)
    torch.testing.assert_close(prepare(plain, x, gelu=True)(x), F.gelu(plain(x)), atol=0, rtol=0)
    alone = pack(plain.weight, plain.bias, 9, gelu=True)(x)
    torch.testing.assert_close(alone, F.gelu(plain(x)), atol=0, rtol=0)
    assert plain not in packed_linear._PACKED


@torch.no_grad()
def test_weights_of_no_layer() -> None:
    plain, x = layer(), tokens(9)
    torch.testing.assert_close(pack(plain.weight, plain.bias, 9)(x), plain(x), atol=1e-5, rtol=1e-5)


def in_place(plain: nn.Linear) -> None:
    plain.weight[3, 5] += 1


def through_data(plain: nn.Linear) -> None:
    plain.weight.data.mul_(1.5)


def of_the_bias(plain: nn.Linear) -> None:
    plain.bias.data.add_(1)


def by_another_tensor(plain: nn.Linear) -> None:
    plain.weight = nn.Parameter(plain.weight * 2)


def by_a_state(plain: nn.Linear) -> None:
    plain.load_state_dict({name: value + 1 for name, value in plain.state_dict().items()})


@pytest.mark.parametrize("change", [in_place, through_data, of_the_bias, by_another_tensor, by_a_state])
@torch.no_grad()
def test_a_change_of_the_weights_is_seen(change) -> None:
    plain, x = layer(), tokens(9)
    before = linear(plain, x)
    change(plain)
    after = linear(plain, x)
    torch.testing.assert_close(after, plain(x), atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 0.1


def test_an_optimiser_step_is_seen() -> None:
    plain, x = layer(), tokens(9)
    with torch.no_grad():
        linear(plain, x)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    linear(plain, x).square().sum().backward()
    assert plain.weight.grad is not None
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(linear(plain, x), plain(x), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@packed
@torch.no_grad()
def test_weights_stay_packed_from_call_to_call_and_go_with_their_layer() -> None:
    plain, x = layer(), tokens(9)
    linear(plain, x)
    order = packed_linear._PACKED[plain].weight
    linear(plain, x)
    assert packed_linear._PACKED[plain].weight is order
    kept = weakref.ref(plain)
    gc.collect()
    count = len(packed_linear._PACKED)
    del plain
    gc.collect()
    assert kept() is None
    assert len(packed_linear._PACKED) == count - 1


@torch.no_grad()
def test_autocast_gives_what_the_layer_gives_under_autocast() -> None:
    plain, x = layer(), tokens(9)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = linear(plain, x), plain(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(linear(plain, x), plain(x), atol=1e-5, rtol=1e-5)  # and float32 again afterwards


@torch.no_grad()
def test_a_processor_without_packed_bfloat16_multiplies_as_autocast_does(probe_anew, monkeypatch) -> None:
    plain, x, order = layer(), tokens(9), packed_linear._in_order

    def float32_alone(weight: torch.Tensor, count: int) -> torch.Tensor:
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw, avx512vl")
        return order(weight, count)

    monkeypatch.setattr(packed_linear, "_in_order", float32_alone)
    assert not packed_linear.packs_bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = linear(plain, x), plain(x)
    assert torch.equal(found, expected)
    assert plain not in packed_linear._PACKED


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@torch.no_grad()
def test_other_layers_and_hooks_are_called() -> None:
    x = tokens(9)
    other = Doubled(24, 40)
    torch.testing.assert_close(linear(other, x), other(x), atol=0, rtol=0)
    hooked, seen = layer(), []
    hooked.register_forward_hook(lambda *given: seen.append(given[1][0].shape))
    linear(hooked, x)
    assert seen == [x.shape]


@torch.no_grad()
def test_hooks_on_all_modules_and_a_forward_of_its_own_are_called() -> None:
    plain, x, seen = layer(), tokens(9), []
    handle = nn.modules.module.register_module_forward_hook(lambda *given: seen.append(type(given[0])))
    try:
        linear(plain, x)
    finally:
        handle.remove()
    assert seen == [nn.Linear]
    plain.forward = lambda tokens: torch.zeros(len(tokens), 40)  # type: ignore[method-assign]
    assert not linear(plain, x).any()


def test_gradients_pass() -> None:
    plain, x = layer(), tokens(9).requires_grad_()
    linear(plain, x).sum().backward()
    assert x.grad is not None
    assert plain.weight.grad is not None


def test_parameters_made_in_inference_mode_are_not_packed() -> None:
    with torch.inference_mode():
        plain, x = layer(), tokens(9)
        torch.testing.assert_close(linear(plain, x), plain(x), atol=0, rtol=0)
    assert plain not in packed_linear._PACKED
