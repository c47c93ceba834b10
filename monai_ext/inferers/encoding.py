"""A slice and the input frame of its patient."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from monai_ext.networks.backbone import Embeddings, PromptableNetwork

BLACK = 0.0
"""Grey value of the frame where a slice does not reach: of air, whatever the modality."""


def encode_slice(network: PromptableNetwork, image: Tensor, frame: tuple[int, int] | None = None) -> Embeddings:
    """Encode a slice that lies in the upper left corner of its patient's frame.

    A slice smaller than the frame (:func:`monai_ext.transforms.sam_input.frame_size`) is surrounded by black, as the
    air around a patient, and not by the grey of SAM's padding. The embeddings' ``size`` is the slice's own, so that
    points and masks stay in it.

    Args:
        network: the promptable model.
        image: [C, H, W] in [0, 255].
        frame: rows and columns of the frame, H and W at least; None: the slice's own.
    """
    size = (image.shape[-2], image.shape[-1])
    embeddings = network.encode(in_frame(image, frame)[None].to(network.device))
    return embeddings if embeddings.size == size else Embeddings(embeddings.features, size)


def in_frame(image: Tensor, frame: tuple[int, int] | None) -> Tensor:
    """Surround a slice [C, H, W] by black up to the rows and columns of its frame; see :func:`encode_slice`."""
    if frame is None or tuple(image.shape[-2:]) == frame:
        return image
    return F.pad(image, (0, frame[1] - image.shape[-1], 0, frame[0] - image.shape[-2]), value=BLACK)
