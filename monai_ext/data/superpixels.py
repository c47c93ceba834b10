"""Superpixels: pieces of an image that nobody labelled, each of which serves as a class of its own for one episode.

Self-supervised few-shot segmentation (SSL-ALPNet, Ouyang et al. 2020, §3.2) trains on them: support and query are two
random augmentations of one slice. Felzenszwalb and Huttenlocher's graph cuts make them. No label is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb
from tqdm import tqdm

from monai_ext.data.contents import content_key
from monai_ext.data.slice_store import StoredCase, save_array
from monai_ext.errors import UserError

MOST = 255
"""Superpixels that are kept of one slice, the largest ones; a slice of the usual size has far fewer."""


@dataclass(frozen=True)
class Superpixels:
    """How slices are cut.

    >>> pieces = Superpixels()(grey)  # [H, W] in [0, 255] -> [H, W] uint8: 0 none, 1, 2, ...  # doctest: +SKIP

    Args:
        smallest: area that smaller pieces are merged up to, as a share of the slice (SSL-ALPNet: 400 of 256 x 256
            pixels).
        largest: larger pieces are dropped: the background, mostly.
        dark: pieces are dropped whose mean is below this share of the slice's 99th percentile: air. SSL-ALPNet has a
            mask of the body instead.
        scale: of the graph cut: larger means larger pieces.
        sigma: pixels of the Gaussian that smooths the slice first.

    Raises:
        UserError: for sizes that leave no piece.
    """

    smallest: float = 0.006
    largest: float = 0.2
    dark: float = 0.1
    scale: float = 1.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.smallest < self.largest <= 1:
            raise UserError(
                f"superpixels from {self.smallest} to {self.largest} of a slice are not possible: give two shares, the "
                "smaller one first."
            )

    @property
    def name(self) -> str:
        """What :meth:`StoredCase.load` finds these superpixels under."""
        return f"superpixels-{content_key(asdict(self))[:8]}"

    def __call__(self, grey: NDArray[np.number]) -> NDArray[np.uint8]:
        """Cut one slice, [H, W] in [0, 255].

        Returns:
            [H, W]: 0 where there is no piece, 1, 2, ... the pieces.
        """
        image = np.asarray(grey, np.float64) / 255
        smallest = max(1, round(self.smallest * image.size))
        pieces = felzenszwalb(image, scale=self.scale, sigma=self.sigma, min_size=smallest)
        sizes = np.bincount(pieces.ravel())
        means = np.bincount(pieces.ravel(), weights=image.ravel()) / np.maximum(sizes, 1)
        fits = (sizes >= smallest) & (sizes <= self.largest * image.size)
        fits &= means > self.dark * np.quantile(image, 0.99)
        kept = sorted(np.flatnonzero(fits), key=lambda piece: (-sizes[piece], piece))[:MOST]
        numbers = np.zeros(len(sizes), np.uint8)
        numbers[np.sort(kept).astype(int)] = np.arange(1, len(kept) + 1)
        return numbers[pieces]


def store_superpixels(cases: Sequence[StoredCase], cut: Superpixels) -> None:
    """Cut every stored slice, once, beside its image; :meth:`StoredCase.load` finds them under ``cut.name``."""
    for case in tqdm(cases, desc="cutting superpixels", disable=None):
        if not case.has(cut.name):
            planes = [cut(plane) for plane in case.grey()]
            save_array(f"{case.stem}_{cut.name}.npy", np.stack(planes) if planes else case.grey())
