"""Image embeddings on disk: SAM's encoder is frozen, so a slice is encoded once for all rounds and epochs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from monai_ext.files import atomic_path, source_sha256
from monai_ext.networks.backbone import Encoder


class EmbeddingCache:
    """Keeps one file a slice, ``<sha256 of encoder and image>.npy``, [C, g, g] in half precision.

    A changed image, encoder or source of this package has another name; a tuned decoder has the same. Several
    processes may share a folder: files appear whole, and two that write the same one write the same bytes. What is
    returned has gone through half precision also when it was just computed, so that a run that goes on computes with
    the same numbers.

    Args:
        folder: of the files.
        network: encodes what is not there yet.
    """

    def __init__(self, folder: str | Path, network: Encoder) -> None:
        self.folder, self.network = Path(folder), network
        self._encoder = encoder_sha256(network) + source_sha256()

    @torch.no_grad()
    def embed(self, planes: np.ndarray, show: str | None = None) -> Tensor:
        """Return the embeddings of slices.

        Args:
            planes: [n, H, W] uint8, any size; they are resampled so that the longer side is the network's
                ``image_size``, as SamPredictor does (bilinear).
            show: title of a progress bar, or None.

        Returns:
            [n, C, g, g] float16 on the CPU.
        """
        bar = tqdm(planes, desc=show, disable=None if show else True)
        return torch.stack([torch.from_numpy(self._one(plane)) for plane in bar])

    def _one(self, plane: np.ndarray) -> np.ndarray:
        text = hashlib.sha256(self._encoder.encode() + str(plane.shape).encode() + plane.tobytes()).hexdigest()
        path = self.folder / f"{text[:40]}.npy"
        if path.is_file():
            return np.load(path)
        image = to_sam_frame(torch.from_numpy(plane.astype(np.float32)), self.network.image_size)
        features = self.network.encode(image[None, None]).features[0]
        array = np.ascontiguousarray(features.half().cpu().numpy())  # the encoder may be channels last
        with atomic_path(path) as temporary:
            np.save(temporary, array)
        return array


def to_sam_frame(plane: Tensor, image_size: int) -> Tensor:
    """Resample a slice [H, W] so that its longer side has ``image_size`` pixels (bilinear, antialiased)."""
    scale = image_size / max(plane.shape)
    size = [max(1, int(side * scale + 0.5)) for side in plane.shape]
    if tuple(size) == tuple(plane.shape):
        return plane
    return F.interpolate(plane[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]


def encoder_sha256(network: Encoder) -> str:
    """Return a checksum of all that makes an embedding: the encoder's weights and the normalisation."""
    digest = hashlib.sha256()
    for name, value in sorted(network.encoder_state().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
