"""Semantic alignment (SSA of SAM-SP): features of a pixel are drawn to the prototype of its pseudo-label's class.

The paper's code upsamples the latent features to the image (256 channels at full size: 1 GiB for a batch of 16). The
upsampling is linear, so its dot products with a prototype are the upsampled dot products, and its norms follow from
dot products of neighbouring cells. What is computed here equals the full-size form up to rounding; a test compares.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-12


class SemanticAlignment(nn.Module):
    """Cross-entropy of pixel features against the class prototypes of their own slice.

    Features are L2-normalised. A prototype is the mean of the detached features of a class, normalised again; logits
    are ``temperature * (prototype . feature)``. Background has a prototype but is no target.

    Departs from the authors' code: a class absent from the slice is left out of the softmax (there its prototype is
    the zero vector, with logit 0), and slices without a structure are skipped (there NaN is replaced by 0).

    Args:
        temperature: factor of the logits.
        ignore: pseudo-label of pixels that do not count.
    """

    def __init__(self, temperature: float = 1.0, ignore: int = 255) -> None:
        super().__init__()
        self.temperature, self.ignore = temperature, ignore

    def forward(self, latent: Tensor, pseudo_label: Tensor, classes: int) -> Tensor:
        """Return the mean over all foreground pixels; 0 where there is none.

        Args:
            latent: [B, C, h, w].
            pseudo_label: [B, H, W] class indices, or ``ignore``.
            classes: K + 1.
        """
        size = (pseudo_label.shape[-2], pseudo_label.shape[-1])
        known = pseudo_label != self.ignore
        masks = F.one_hot(pseudo_label.long().where(known, 0), classes).movedim(-1, 1) * known[:, None]
        masks = masks.to(latent.dtype)
        norms = upsampled_norms(latent, size)
        present = masks.sum((2, 3)) > 0
        prototypes = self._prototypes(latent.detach(), masks, norms.detach(), size)
        similarity = torch.einsum("bkc,bchw->bkhw", prototypes, latent)
        logits = self.temperature * F.interpolate(similarity, size, mode="bilinear", align_corners=False)
        logits = (logits / norms[:, None]).masked_fill(~present[..., None, None], float("-inf"))
        target = pseudo_label.long().where(known & (pseudo_label != 0), -1)
        total = F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
        return total / (target >= 0).sum().clamp(min=1)

    @staticmethod
    def _prototypes(latent: Tensor, masks: Tensor, norms: Tensor, size: tuple[int, int]) -> Tensor:
        """Normalised sums of the normalised features of each class: [B, K + 1, C]."""
        rows, columns = (interpolation_matrix(n, m).to(latent) for n, m in zip(latent.shape[2:], size, strict=True))
        weights = torch.einsum("bkpq,pi,qj->bkij", masks / norms[:, None], rows, columns)
        return F.normalize(torch.einsum("bkij,bcij->bkc", weights, latent), dim=2)


def interpolation_matrix(cells: int, pixels: int) -> Tensor:
    """Return [pixels, cells]: the weights of bilinear upsampling along one axis (``align_corners=False``)."""
    return F.interpolate(torch.eye(cells)[None], pixels, mode="linear", align_corners=False)[0].T


def upsampled_norms(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the L2 norms over the channels of ``latent`` [B, C, h, w] upsampled to ``size``: [B, H, W], above 0."""
    (top, bottom, down), (left, right, across) = (
        _corners(n, m, latent) for n, m in zip(latent.shape[2:], size, strict=True)
    )
    padded = F.pad(latent, (0, 1, 0, 1))
    here, beside, below, diagonal = (
        padded[..., :-1, :-1],
        padded[..., :-1, 1:],
        padded[..., 1:, :-1],
        padded[..., 1:, 1:],
    )
    square = (here * here).sum(1)
    horizontal, vertical = (here * beside).sum(1), (here * below).sum(1)
    falling, rising = (here * diagonal).sum(1), (beside * below).sum(1)
    a, b = (1 - down)[:, None], down[:, None]
    c, d = 1 - across, across

    def at(values: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return values[:, row][:, :, column]

    # Where a pixel lies beyond the centre of the last cell, its second corner is that cell again, with weight 0.
    total = (a * c) ** 2 * at(square, top, left) + (a * d) ** 2 * at(square, top, right)
    total = total + (b * c) ** 2 * at(square, bottom, left) + (b * d) ** 2 * at(square, bottom, right)
    total = total + 2 * a * a * c * d * at(horizontal, top, left) + 2 * b * b * c * d * at(horizontal, bottom, left)
    total = total + 2 * a * b * c * c * at(vertical, top, left) + 2 * a * b * d * d * at(vertical, top, right)
    total = total + 2 * a * b * c * d * (at(falling, top, left) + at(rising, top, left))
    return total.clamp(min=EPSILON).sqrt()


def _corners(cells: int, pixels: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First and second cell of each pixel along one axis, and the second's weight."""
    position = ((torch.arange(pixels, device=like.device, dtype=like.dtype) + 0.5) * cells / pixels - 0.5).clamp(min=0)
    first = position.floor().long().clamp(max=cells - 1)
    second = (first + 1).clamp(max=cells - 1)
    return first, second, (position - first).where(second > first, 0)
