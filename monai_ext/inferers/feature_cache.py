"""Features of frozen networks on disk, which a training would compute again and again.

:class:`monai_ext.inferers.embedding_cache.EmbeddingCache` keeps the embeddings of grey slices of any size; here the
images lie in the input frame already, may have colours, and have features of several networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_ext.files import PathLike, atomic_path, source_sha256
from monai_ext.inferers.embedding_cache import encoder_sha256
from monai_ext.networks.backbone import Encoder
from monai_ext.networks.reference_encoder import EncoderReference, ReferenceEncoder, ReferenceFeatures, TrunkReference

Features = tuple[Tensor, ...]


class FeatureCache:
    """Keeps one file an image, ``<sha256 of networks and image>.npz``, in half precision.

    An image whose values are no whole numbers in [0, 255] has been augmented; it is not kept. What is returned has gone
    through half precision and lies in memory in the order of its axes also when it was just computed, so that a run
    that goes on computes with the same numbers, and sums them in the same order.

    Args:
        folder: of the files; None: nothing is kept.
        make: makes features of one image [1, C, H, W].
        key: changes with whatever changes the features.
    """

    def __init__(self, folder: PathLike | None, make: Callable[[Tensor], Features], key: str) -> None:
        self.folder = None if folder is None else Path(folder)
        self.make, self._key = make, key.encode()

    @torch.no_grad()
    def of_image(self, image: Tensor) -> Features:
        """Return the features of an image [C, H, W] in [0, 255], each [1, ...] float32 on the image's device."""
        path = self._path(image)
        if path is not None and path.is_file():
            with np.load(path) as file:
                arrays = [file[name] for name in sorted(file.files)]
        else:
            arrays = [features.half().cpu().contiguous().numpy() for features in self.make(image[None])]
            if path is not None:
                named: dict[str, Any] = {f"f{k}": a for k, a in enumerate(arrays)}
                with atomic_path(path) as temporary:
                    np.savez(temporary, **named)
        return tuple(torch.from_numpy(array).float().to(image.device) for array in arrays)

    def _path(self, image: Tensor) -> Path | None:
        whole = image.round().clamp(0, 255)
        if self.folder is None or not torch.equal(whole, image):
            return None
        pixels = whole.to(torch.uint8).cpu().contiguous().numpy()
        digest = hashlib.sha256(self._key + str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        return self.folder / f"{digest[:40]}.npz"


class FrozenFeatures:
    """The features that learned prompts need of an image: SAM's embedding, and those of the reference encoder.

    Where SAM's own encoder is the reference encoder there is one map for both.

    Args:
        network: the frozen promptable network.
        reference: the frozen reference encoder.
        folder: of the cache; None: nothing is kept.
    """

    def __init__(
        self, network: Encoder, reference: ReferenceEncoder | TrunkReference | EncoderReference, folder: PathLike | None
    ) -> None:
        self.network, self.reference = network, reference
        self.shared = isinstance(reference, EncoderReference) and reference.encoder is network
        key = encoder_sha256(network) + source_sha256() if folder is not None else ""
        if isinstance(reference, TrunkReference) and folder is not None:
            key += encoder_sha256(reference.trunk) + str(reference.image_size)
        self.cache = FeatureCache(folder, self._make, key)

    def __call__(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ReferenceFeatures]:
        """Return the features of images that fill the upper left corner of their squares, computed once.

        Args:
            images: [B, C, S, S] in [0, 255].
            sizes: [B, 2], rows and columns that each image fills; what lies beyond is padding.

        Returns:
            SAM's embeddings [B, C, g, g], and the reference encoder's features.
        """
        found = [self.cache.of_image(image[:, :h, :w]) for image, (h, w) in zip(images, sizes.tolist(), strict=True)]
        parts = [torch.cat(part) for part in zip(*found, strict=True)]
        if self.shared:
            return parts[0], ReferenceFeatures(parts[0], parts[0])
        return parts[0], ReferenceFeatures(parts[1], parts[2])

    def _make(self, image: Tensor) -> Features:
        embedding = self.network.encode(image).features
        if self.shared:
            return (embedding,)
        features = self.reference.features(image, self.network.image_size)
        return embedding, features.middle, features.deep
