"""Linear layers for inference on a CPU with weights that are laid out for oneDNN once, not at every call.

The layout is oneDNN's own; with it, it adds the bias and applies the GELU while the product is still in the cache. The
numbers are those of the layer but for rounding. torch has these operators for its compiler and does not document them,
so they are tried out first (:func:`is_packing_exact`), and without them the layer is called as it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Packed(NamedTuple):
    """Weights in oneDNN's layout, a bias of the same type, and of which state of the layer they are."""

    state: tuple[Any, ...]
    weight: Tensor
    bias: Tensor | None


_PACKED: weakref.WeakKeyDictionary[nn.Module, _Packed] = weakref.WeakKeyDictionary()


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer once, as :func:`prepare` prepares it: [..., in] -> [..., out]."""
    return prepare(layer, x)(x)


def prepare(layer: nn.Module, x: Tensor, gelu: bool = False) -> Callable[[Tensor], Tensor]:
    """Make a layer ready for several calls, with packed weights where it is a plain ``nn.Linear`` on a CPU.

    The packed weights are kept for as long as the layer lives, also where it has moved to another device meanwhile, and
    made again when its weights or the precision have changed. They take as much memory as the weights, half of it under
    autocast to bfloat16.

    Args:
        layer: any layer; one of another type, or with hooks, or with gradients wanted, is called as it is.
        x: like those it will be called with, of as many tokens as most of them.
        gelu: apply the exact GELU to the result.

    Returns:
        A function from [..., in] to [..., out]; under autocast it takes and gives what autocast would.
    """
    if type(layer) is nn.Linear and _fits(layer, x):
        packed = _packed(layer, x.numel() // x.shape[-1])
        return partial(_multiply, weight=packed.weight, bias=packed.bias, gelu=gelu)
    return (lambda tokens: F.gelu(layer(tokens))) if gelu else layer


def pack(weight: Tensor, bias: Tensor, tokens: int, gelu: bool = False) -> Callable[[Tensor], Tensor]:
    """Make a linear function of weights [out, in] and a bias [out] that are no layer's, on a CPU without gradients.

    Args:
        weight: float32.
        bias: float32.
        tokens: how many rows it will mostly be called with.
        gelu: apply the exact GELU to the result.

    Returns:
        A function from [..., in] to [..., out].
    """
    if is_packing_exact():
        return partial(_multiply, weight=_in_order(weight, tokens), bias=bias, gelu=gelu)
    return lambda x: F.gelu(F.linear(x, weight, bias)) if gelu else F.linear(x, weight, bias)


def is_listened_to(layer: nn.Module) -> bool:
    """Return True where a module has hooks, global hooks are set, or its ``forward`` was replaced."""
    everyone = nn.modules.module
    own = bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))
    return own or bool(everyone._global_forward_hooks or everyone._global_forward_pre_hooks)


def _fits(layer: nn.Linear, x: Tensor) -> bool:
    if x.device.type != "cpu" or torch.is_grad_enabled() or is_listened_to(layer):
        return False
    if layer.weight.dtype != torch.float32 or layer.weight.is_inference():  # no version counter there
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16 and is_packing_exact() and packs_bfloat16()
    return x.dtype == torch.float32 and is_packing_exact()


def _packed(layer: nn.Linear, tokens: int) -> _Packed:
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    weight, bias = layer.weight, layer.bias
    # no version counter sees what is written through .data; a sum sees most of it
    state: tuple[Any, ...] = (dtype, weight.data_ptr(), weight._version, float(weight.sum()))
    state += () if bias is None else (bias.data_ptr(), bias._version, float(bias.sum()))
    packed = _PACKED.get(layer)
    if packed is None or packed.state != state:
        order = _in_order(weight.detach().to(dtype), tokens)
        packed = _PACKED[layer] = _Packed(state, order, None if bias is None else bias.detach().to(dtype))
    return packed


def _in_order(weight: Tensor, tokens: int) -> Tensor:
    order: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)
    return order


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    how: tuple[str, list[Any], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), weight, bias, *how)
    return product


@cache
def is_packing_exact() -> bool:
    """Whether this torch and this processor have the operators, and they multiply in float32 what is float32.

    Tried out once, with numbers that bfloat16 does not hold.
    """
    return _packs(torch.float32, 1e-5)


@cache
def packs_bfloat16() -> bool:
    """Whether this processor takes packed weights in bfloat16: oneDNN refuses them without AVX-512 or its like."""
    return _packs(torch.bfloat16, 2e-2)


def _packs(dtype: torch.dtype, tolerance: float) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 64, 96, generator=generator), torch.randn(80, 96, generator=generator)
    expected = F.gelu(x.double() @ weight.double().T)
    try:
        found = _multiply(x, _in_order(weight.to(dtype), 128), None, gelu=True)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
