"""SAM's ViT image encoder, faster on a CPU and within little memory, with the same weights and the same result.

Segment Anything (Kirillov et al. 2023) pads its maps to whole windows and sends the padding through every linear layer,
and holds the attention of a whole block at once: 0.8 GB for each global block of a ViT-B, several times over. Here

* padding never enters a linear layer. After ``norm1`` it is zero, so its key and value are constants of the block, but
  it does take part in SAM's attention: all padded keys of a window are one further key whose logit is the logarithm
  of the sum of their exponentials (:func:`_padding_logit`);
* attention is taken in chunks that stay in the processor's cache;
* relative positions are added up chunk by chunk, and the products of queries and keys, then their softmax, take the
  place of their sums;
* the weights of linear layers are laid out for the processor once (:mod:`monai_ext.networks.packed_linear`).

Measured, the encodings differ from SAM's by rounding alone. The layers are those of the module that is handed over, so
names of parameters, gradients, hooks on blocks and layers put in place of ``qkv`` or ``proj`` (LoRA) stay as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.networks.packed_linear import is_listened_to, linear, prepare

_MOST_LOGITS_CPU, _MOST_LOGITS_GPU = 2**20, 2**26
"""Attention logits at once: 4 MiB of float32 on a CPU, of which the cache holds a good part; 256 MiB elsewhere."""

_MLP_TOKENS = 1024


class FastAttention(nn.Module):
    """Multi-head attention with decomposed relative positions, global or in windows.

    Args:
        attention: segment_anything's ``Attention``, of which the layers are taken over.
    """

    qkv: nn.Module
    proj: nn.Module
    rel_pos_h: Tensor
    rel_pos_w: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads, self.scale = int(attention.num_heads), float(attention.scale)
        self.qkv, self.proj = attention.qkv, attention.proj
        self.use_rel_pos = bool(attention.use_rel_pos)
        if self.use_rel_pos:
            self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w

    def forward(self, x: Tensor, window_size: int = 0) -> Tensor:
        """Attend: [B, H, W, C] -> [B, H, W, C].

        Args:
            x: tokens on their grid, without padding.
            window_size: side of the windows in tokens; 0: every token attends to all.
        """
        return linear(self.proj, self._windows(x, window_size) if window_size else self._everywhere(x))

    def _projection(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """Make ready what gives queries, keys and values: [B, h, w, C], as ``like`` is, -> [B, h, w, 3, heads, d]."""
        qkv = prepare(self.qkv, like)
        return lambda x: qkv(x).reshape(*x.shape[:3], 3, self.num_heads, -1)

    def _everywhere(self, x: Tensor) -> Tensor:
        """Global attention, [B, H, W, C] -> [B, H, W, heads * d], a few heads and rows of queries at once."""
        qkv = self._projection(x)(x)
        with torch.autocast(x.device.type, enabled=False):  # what is computed from here on has the type of qkv
            return self._among_all(qkv)

    def _among_all(self, qkv: Tensor) -> Tensor:
        """[B, H, W, 3, heads, d] -> [B, H, W, heads * d]."""
        _, height, width, _, heads, dim = qkv.shape
        tokens = height * width
        limit = _most_logits(qkv)
        together = min(heads, max(1, limit // tokens**2))
        rows = max(1, limit // (together * width * tokens))
        tables = self._tables(height, width, qkv.dtype)
        images = []
        for image in qkv:
            outputs = []
            for part in image.split(together, dim=3):
                q, k, v = part.permute(2, 3, 0, 1, 4).contiguous().unbind()  # [n, H, W, d]
                keys, values = k.flatten(1, 2).transpose(1, 2), v.flatten(1, 2)
                terms = None if tables is None else _relative_terms(q, *tables)
                chunks = []
                for start in range(0, height, rows):
                    chosen = slice(start, start + rows)
                    biases = None if terms is None else _biases(terms[0][:, chosen], terms[1][:, chosen])
                    weights = _weights(q[:, chosen].flatten(1, 2), keys, self.scale, biases)
                    chunks.append(weights @ values)
                outputs.append(torch.cat(chunks, dim=1))
            images.append(torch.cat(outputs).transpose(0, 1).reshape(height, width, heads * dim))
        return torch.stack(images)

    def _windows(self, x: Tensor, size: int) -> Tensor:
        """Attention within windows, [B, H, W, C] -> [B, H, W, heads * d], a row of windows at once.

        The last window of a row and the last row may be smaller than the others: the rest of them is padding.
        """
        _, height, width, channels = x.shape
        project = self._projection(x[:, :size])
        padding = None
        if height % size or width % size:
            padding = project(x.new_zeros(1, 1, 1, channels))[0, 0, 0, 1:]
        whole = width - width % size
        tables = None
        outputs = []
        for band in x.split(size, dim=1):
            qkv = project(band)
            with torch.autocast(x.device.type, enabled=False):  # what is computed from here on has the type of qkv
                tables = tables or self._tables(size, size, qkv.dtype)
                parts = [part for part in (qkv[:, :, :whole], qkv[:, :, whole:]) if part.shape[2]]
                outputs.append(torch.cat([self._band(part, size, tables, padding) for part in parts], dim=2))
        return torch.cat(outputs, dim=1)

    def _band(self, qkv: Tensor, size: int, tables: tuple[Tensor, Tensor] | None, padding: Tensor | None) -> Tensor:
        """Windows side by side and of one size, [B, h, n * w, 3, heads, d] -> [B, h, n * w, heads * d]."""
        batch, height, across, _, heads, dim = qkv.shape
        width = min(size, across)
        windows = qkv.view(batch, height, -1, width, 3, heads, dim).permute(4, 0, 2, 5, 1, 3, 6)
        q, k, v = windows.reshape(3, -1, height, width, dim).unbind()  # [B * n * heads, h, w, d]
        keys, values = k.flatten(1, 2), v.flatten(1, 2)
        terms = None if tables is None else _relative_terms(q, tables[0][:height], tables[1][:width])
        beyond = None
        if padding is not None and (height < size or width < size):
            beyond = _padding_logit(q, terms, size)
            key, value = padding[:, None, :, None].expand(-1, len(q) // heads, -1, -1, -1).flatten(1, 2)
            keys, values = torch.cat([keys, key], dim=1), torch.cat([values, value], dim=1)
        together = max(1, _most_logits(qkv) // (height * width * keys.shape[1]))
        chunks = []
        for start in range(0, len(q), together):
            chosen = slice(start, start + together)
            biases = None
            if terms is not None:
                biases = _biases(terms[0][chosen, ..., :height], terms[1][chosen, ..., :width])
            if beyond is not None:
                none = q.new_zeros(1).expand(*beyond[chosen].shape[:2], height * width)
                biases = torch.cat([none if biases is None else biases, beyond[chosen]], dim=2)
            weights = _weights(q[chosen].flatten(1, 2), keys[chosen].transpose(1, 2), self.scale, biases)
            chunks.append(weights @ values[chosen])
        attended = torch.cat(chunks)
        attended = attended.view(batch, across // width, heads, height, width, dim)
        return attended.permute(0, 3, 1, 4, 2, 5).reshape(batch, height, across, heads * dim)

    def _tables(self, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Relative position of each query and key along both axes: [height, height, d] and [width, width, d]."""
        if not self.use_rel_pos:
            return None
        return _by_distance(self.rel_pos_h, height).to(dtype), _by_distance(self.rel_pos_w, width).to(dtype)


class FastBlock(nn.Module):
    """A transformer block of SAM's ViT: [B, H, W, C] -> [B, H, W, C].

    Args:
        block: segment_anything's ``Block``, of which the layers are taken over.
    """

    norm1: nn.Module
    norm2: nn.Module
    mlp: nn.Module

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = FastAttention(block.attn)
        self.norm2, self.mlp = block.norm2, block.mlp
        self.window_size = int(block.window_size)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.attn(self.norm1(x), self.window_size)).contiguous()
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return x + self.mlp(self.norm2(x))
        tokens = x.flatten(0, 2)
        mlp = self._prepared_mlp(tokens[:_MLP_TOKENS])
        for part in tokens.split(_MLP_TOKENS):  # the hidden layer of all tokens would not stay in the cache
            part += mlp(self.norm2(part))
        return x

    def _prepared_mlp(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Take the two layers one by one, where the activation between them is one that the first can apply."""
        mlp: Any = self.mlp
        if not _is_plain_mlp(mlp):
            return mlp
        first, second = prepare(mlp.lin1, x, gelu=True), prepare(mlp.lin2, x)
        return lambda tokens: second(first(tokens))


class FastImageEncoder(nn.Module):
    """SAM's ViT: image [B, 3, S, S] -> embedding [B, C, g, g].

    Args:
        encoder: segment_anything's ``ImageEncoderViT``, of which the layers are taken over; it still works.
    """

    patch_embed: nn.Module
    pos_embed: Tensor | None
    neck: nn.Module

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.img_size = int(encoder.img_size)
        self.patch_embed, self.pos_embed = encoder.patch_embed, encoder.pos_embed
        self.blocks = nn.ModuleList(FastBlock(block) for block in encoder.blocks)
        self.neck = encoder.neck

    def forward(self, x: Tensor) -> Tensor:
        with onednn_matmul(x.device.type):
            x = self.patch_embed(x)
            if self.pos_embed is not None:
                x = x + self.pos_embed
            for block in self.blocks:
                x = block(x)
            return self.neck(x.permute(0, 3, 1, 2))


def _is_plain_mlp(mlp: Any) -> bool:
    """Whether a module is two layers with a GELU between them, as segment_anything has it, and nobody listens."""
    act = getattr(mlp, "act", None)
    if type(mlp).__name__ != "MLPBlock" or type(act) is not nn.GELU or act.approximate != "none":
        return False
    return not (is_listened_to(mlp) or is_listened_to(act))


def _biases(rows: Tensor, columns: Tensor) -> Tensor:
    """Add up :func:`_relative_terms`: [n, h, w, K] and [n, h, w, L] -> [n, h * w, K * L]."""
    biases = rows[..., None] + columns[..., None, :]
    return biases.reshape(len(rows), -1, rows.shape[-1] * columns.shape[-1])


def _weights(queries: Tensor, keys: Tensor, scale: float, biases: Tensor | None) -> Tensor:
    """Softmax of scaled logits: queries [n, Q, d], keys [n, d, K], biases [n, Q, K] -> [n, Q, K].

    Without gradients, on a CPU, all three are one piece of memory: the biases are overwritten.
    """
    keep = torch.is_grad_enabled() or queries.device.type != "cpu"
    if biases is None:
        logits = torch.bmm(queries * scale, keys)
    else:
        logits = torch.baddbmm(biases, queries, keys, alpha=scale, out=None if keep else biases)
    return torch.softmax(logits, dim=-1, out=None if keep else logits)


def _most_logits(like: Tensor) -> int:
    return _MOST_LOGITS_CPU if like.device.type == "cpu" else _MOST_LOGITS_GPU


def _by_distance(table: Tensor, size: int) -> Tensor:
    """Look up the relative position of each query and key: [L, d] -> [size, size, d].

    A table for another size is interpolated, as SAM does.
    """
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], 2 * size - 1, mode="linear")[0].T
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None, :] + size - 1]


def _relative_terms(q: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Decomposed relative positions, to add to the logits of a key by its row and by its column.

    Args:
        q: [n, h, w, d] queries, not scaled.
        rows: [h, K, d] of :func:`_by_distance`.
        columns: [w, L, d].

    Returns:
        [n, h, w, K] and [n, h, w, L].
    """
    return torch.einsum("nhwd,hkd->nhwk", q, rows), torch.einsum("nhwd,wkd->nhwk", q, columns)


def _padding_logit(q: Tensor, terms: tuple[Tensor, Tensor] | None, size: int) -> Tensor:
    """What all padded keys of a window weigh together, as one logit: [n, h * w, 1], without query times key.

    They share key and value, so they differ in their relative positions alone. Padding is below the real rows, at every
    column, and to the right of the real columns, in the real rows; each sum over a rectangle is a product of two sums.

    Args:
        q: [n, h, w, d] queries of the real tokens.
        terms: of :func:`_relative_terms` for all ``size`` rows and columns, or None.
        size: side of the whole window.
    """
    count, height, width, _ = q.shape
    if terms is None:
        weight = torch.tensor(float(size * size - height * width)).log()
        return weight.to(q).expand(count, height * width, 1)
    rows, columns = terms[0].float(), terms[1].float()
    logit = rows.new_full(rows.shape[:3], float("-inf"))
    if height < size:
        logit = rows[..., height:].logsumexp(-1) + columns.logsumexp(-1)
    if width < size:
        beside = rows[..., :height].logsumexp(-1) + columns[..., width:].logsumexp(-1)
        logit = torch.logaddexp(logit, beside) if height < size else beside
    return logit.flatten(1)[..., None].to(q.dtype)


@contextmanager
def onednn_matmul(device: str = "cpu") -> Iterator[None]:
    """Multiply float32 matrices on a CPU with oneDNN instead of MKL, where that is float32 (:func:`is_onednn_exact`).

    torch does so where a lower precision is allowed, whether or not the processor has it. The setting is as it was
    afterwards; meanwhile it holds for the whole process.
    """
    if device != "cpu" or torch.is_autocast_enabled("cpu") or not is_onednn_exact():
        yield
        return
    _ONEDNN.enter()
    try:
        yield
    finally:
        _ONEDNN.leave()


class _Setting:
    """The setting of the process: changed by the first of several threads that want it, put back by the last."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ""

    def enter(self) -> None:
        setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        with self._lock:
            if not self._inside:
                self._before, setting.fp32_precision = setting.fp32_precision, "bf16"
            self._inside += 1

    def leave(self) -> None:
        setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        with self._lock:
            self._inside -= 1
            if not self._inside:
                setting.fp32_precision = self._before


_ONEDNN = _Setting()


@cache
def is_onednn_exact() -> bool:
    """Whether oneDNN, allowed to round float32 to bfloat16, does not: a processor with AMX does, one without cannot.

    Tried out once, with numbers that bfloat16 does not hold.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    for shape in ((256, 256), (4, 256, 256)):
        a, b = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        product = _allowed_to_round(a, b)
        if (product - (a.double() @ b.double())).abs().max() > 1e-4 * product.abs().max():
            return False
    return True


def _allowed_to_round(a: Tensor, b: Tensor) -> Tensor:
    """Multiply float32 matrices with oneDNN, which may round them to bfloat16."""
    _ONEDNN.enter()
    try:
        return a @ b
    finally:
        _ONEDNN.leave()
