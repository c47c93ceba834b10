"""Many point prompts of one image: decoded in chunks, and the union of the masks that were chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.prompt import Prompt

CHUNK = 64
"""Prompts decoded at once, which bounds the memory of the decoder."""


def decode_in_chunks(
    network: PromptableNetwork, embeddings: Embeddings, prompts: Sequence[Prompt], chunk: int = CHUNK
) -> Tensor:
    """Decode prompts of one image, a chunk at a time: low-resolution logits [K, 4g, 4g]."""
    parts = [network.decode(embeddings, prompts[i : i + chunk])[0][:, 0] for i in range(0, len(prompts), chunk)]
    return torch.cat(parts)


def union_of(network: PromptableNetwork, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Unite masks: the greatest of their logits at each pixel of the input frame.

    Args:
        network: the promptable model.
        logits: [K, 4g, 4g] of :func:`decode_in_chunks`, K at least 1.
        size: (H, W) of the image in the input frame.

    Returns:
        [H, W], above 0 exactly where one of the masks is.
    """
    united = network.to_image(logits[:1, None], size)[0, 0]
    for one in logits[1:]:
        united = torch.maximum(united, network.to_image(one[None, None], size)[0, 0])
    return united
