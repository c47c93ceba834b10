"""Cascaded decoder passes, in which a mask prompts the next pass (PerSAM §3.3, cascaded post-refinement)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.boxes import tight_box
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.ties import first_maximum


def guided_cascade(
    network: PromptableNetwork,
    embeddings: Embeddings,
    prompts: Sequence[Prompt],
    original_size: tuple[int, int],
    attention_bias: Tensor | None,
    target_embedding: Tensor | None,
    multimask: bool = True,
) -> Tensor:
    """Decode three times: points, guided, one mask; points and mask; points, mask and its box.

    The last two passes are not guided; with ``multimask`` they choose among SAM's three masks by the predicted IoU.
    A mask that is empty gives no box to the last pass; PerSAM's code stops there.

    Args:
        network: the promptable model.
        embeddings: of the image.
        prompts: K of points.
        original_size: (h0, w0) of the image before resampling, where the boxes are taken.
        attention_bias: see :meth:`PromptableNetwork.decode`.
        target_embedding: likewise.
        multimask: as PerSAM. Not for weights that were trained to give one exact mask (P²SAM, Appendix B), whose
            three masks have never been trained.

    Returns:
        Low-resolution logits [K, 1, 4g, 4g].
    """
    logits, _ = network.decode(embeddings, prompts, attention_bias=attention_bias, target_embedding=target_embedding)
    logits = _best(*network.decode(embeddings, prompts, mask_input=logits, multimask=multimask))
    boxes = [original_box(mask, original_size) for mask in network.to_image(logits, embeddings.size)]
    boxed = [Prompt(p.points, p.labels, box) for p, box in zip(prompts, boxes, strict=True)]
    return _best(*network.decode(embeddings, boxed, mask_input=logits, multimask=multimask))


def original_box(logits: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Tight box of a mask on the original grid, (x0, y0, x1, y1) in the input frame; None for an empty mask.

    Args:
        logits: [1, H, W] in the input frame.
        size: (h0, w0) of the original slice.
    """
    box = tight_box(F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0, 0] > 0)
    if box is None:
        return None
    scale = box.new_tensor([logits.shape[2] / size[1], logits.shape[1] / size[0]])
    return box * scale.repeat(2)


def _best(logits: Tensor, quality: Tensor) -> Tensor:
    """Keep the mask of the highest predicted IoU, of equal ones the first: [K, M, h, w], [K, M] -> [K, 1, h, w]."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, first_maximum(quality, dim=1)][:, None]
