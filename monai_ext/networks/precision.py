"""Which arithmetic the image encoder runs in: float32, or bfloat16 where the machine has it.

In bfloat16 the products (linear layers, convolutions, attention) are rounded to 8 bits; weights, sums of residuals and
normalisation stay float32. Embeddings of a ViT change by about 1 %, so it is an option that is asked for, never a
default.
"""

from __future__ import annotations

import sys

import torch

from monai_ext.errors import UserError
from monai_ext.networks.fast_encoder import is_onednn_exact
from monai_ext.networks.packed_linear import is_packing_exact

PRECISIONS = ("float32", "bfloat16")


def choose_precision(precision: str | None, device: torch.device | str = "cpu", variant: str = "compact") -> str:
    """Return the precision that a run's encoder takes, and say so where it is not the one asked for.

    Args:
        precision: ``float32``, ``bfloat16``, or None for float32.
        device: where the encoder runs.
        variant: of SAM, see :func:`monai_ext.networks.sam.build_sam`.

    Returns:
        ``float32`` or ``bfloat16``; float32 where the machine would only emulate bfloat16, with a line on stderr. One
        says, too, where SAM's ViT runs on a CPU without oneDNN. A CPU that offers one of the two ways to its float32
        products needs no such line: one with AMX has no ``is_onednn_exact`` and is as fast with MKL.

    Raises:
        UserError: for another precision.
    """
    chosen = precision or PRECISIONS[0]
    if chosen not in PRECISIONS:
        raise UserError(f"precision {precision!r} is unknown: choose one of {', '.join(PRECISIONS)}.")
    device = torch.device(device)
    if device.type == "cpu" and str(variant).startswith("vit") and not (is_packing_exact() or is_onednn_exact()):
        print(
            "note: oneDNN's float32 products are not at hand here: SAM runs slower, with the same result",
            file=sys.stderr,
        )
    if chosen == "bfloat16" and not has_bfloat16(device.type):
        print(f"note: this {device.type} has no bfloat16 arithmetic: the encoder runs in float32", file=sys.stderr)
        return "float32"
    return chosen


def has_bfloat16(device: str = "cpu") -> bool:
    """Whether the hardware multiplies in bfloat16: x86 with avx512_bf16 or AMX under oneDNN, or a GPU that has it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
