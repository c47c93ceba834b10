"""What methods know of a network: protocols that SAM fulfils, and any other network may.

A method asks for as little as it needs. PANet's prototypes take an :class:`Encoder`, which a plain convolutional trunk
is as well; methods that prompt take a :class:`PromptableNetwork`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from monai_ext.prompts.prompt import Prompt


@dataclass(frozen=True)
class Embeddings:
    """Image embeddings with the frame they were made in.

    Attributes:
        features: [B, C, g, g], one vector for each cell of ``image_size / g`` pixels of the padded square.
        size: (H, W) of the images before padding, in input-frame pixels; cells beyond it are padding.
    """

    features: Tensor
    size: tuple[int, int]

    def __getitem__(self, index: int | slice) -> Embeddings:
        """Return the embeddings of some of the images; the batch axis stays."""
        if isinstance(index, int):
            position = range(len(self))[index]  # an IndexError past the end, so that a for loop stops
            index = slice(position, position + 1)
        return Embeddings(self.features[index], self.size)

    def __len__(self) -> int:
        return self.features.shape[0]


@runtime_checkable
class Encoder(Protocol):
    """Makes embeddings of images: all that a method needs which reads features and prompts nothing.

    Attributes:
        device: of the weights.
        image_size: side S of the padded square that is encoded, in pixels.
        grid: number g of embedding cells along one side of the square.
        stride: input-frame pixels along one side of a cell.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def image_size(self) -> int: ...

    @property
    def grid(self) -> int: ...

    @property
    def stride(self) -> int: ...

    def encode(self, images: Tensor) -> Embeddings:
        """Encode images of the input frame, [B, 1 or 3, H, W] in [0, 255], on any device."""
        ...

    def to_image(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Map maps [K, M, h, w] of the padded square back to the input frame: [K, M, H, W] for size (H, W)."""
        ...

    def encoder_state(self) -> Mapping[str, Tensor]:
        """Return all tensors that make an embedding, by name: what a cache of embeddings is recognised by."""
        ...


@runtime_checkable
class PromptableNetwork(Encoder, Protocol):
    """An encoder with a decoder that points, boxes, masks or ready embeddings prompt.

    Attributes:
        image_encoder: its parts, for methods that train some of them and share the others.
        prompt_encoder: likewise.
        mask_decoder: likewise.
    """

    image_encoder: nn.Module
    prompt_encoder: nn.Module
    mask_decoder: nn.Module

    def decode(
        self,
        embeddings: Embeddings,
        prompts: Sequence[Prompt],
        mask_input: Tensor | None = None,
        multimask: bool = False,
        attention_bias: Tensor | None = None,
        target_embedding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode K prompts of any lengths; see :meth:`monai_ext.networks.sam.PromptableSam.decode`."""
        ...

    def decode_tokens(
        self,
        embeddings: Embeddings,
        tokens: Tensor,
        mask_input: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Decode ready sparse embeddings [K, N, C]; see :meth:`monai_ext.networks.sam.PromptableSam.decode_tokens`."""
        ...

    def decode_without_prompt(self, embeddings: Embeddings) -> tuple[Tensor, Tensor]:
        """Decode each image without a prompt: logits [B, 1, 4g, 4g] and predicted IoU [B, 1]."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Segment without a prompt: [B, 1 or 3, H, W] in [0, 255] -> logits [B, 1, H, W]."""
        ...
