"""The reference's masks in the target's input frame: by scanner coordinates, then by a shift fitted on the images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.inferers.reference import Reference
from monai_ext.prompts.place import fit_shift, shift_mask

SLICES = 5
"""Most slices that the shift is fitted on, evenly spaced."""


@dataclass
class Place:
    """Where the structures of a reference lie on a target.

    Args:
        reference: the annotated image.
        matches: for each slice of the target its slice there, or None.
        image: the target ``[C, H, W, D]`` in the input frame.
        by_position: by scanner coordinates; False: by the place relative to the field of view, as for video frames.
    """

    reference: Reference
    matches: list[int | None]
    image: MetaTensor
    by_position: bool
    _shift: tuple[int, int] | None = field(default=None, repr=False)

    @property
    def shift(self) -> tuple[int, int]:
        """Rows and columns by which the reference is moved besides, see :func:`monai_ext.prompts.place.fit_shift`."""
        if self._shift is None:
            known = [(k, index) for k, index in enumerate(self.matches) if index is not None]
            chosen = [known[i] for i in np.linspace(0, len(known) - 1, min(SLICES, len(known))).round().astype(int)]
            planes = self.reference.image.as_tensor().mean(dim=0)
            moved = [self._resampled(planes[..., index], k, index).numpy() for k, index in chosen]
            own = self.image.as_tensor().mean(dim=0)[..., [k for k, _ in chosen]].numpy()
            self._shift = fit_shift(own.astype(float), np.stack(moved, axis=-1).astype(float)) if chosen else (0, 0)
        return self._shift

    def mask(self, k: int, value: int) -> Tensor | None:
        """Expected mask ``[H, W]`` bool of a structure on slice ``k``; None where there is none."""
        index = self.matches[k]
        if index is None:
            return None
        there = self.reference.label[0, :, :, index] == value
        mask = shift_mask(self._resampled(there.float(), k, index) > 0.5, self.shift)
        return mask if bool(mask.any()) else None

    def _resampled(self, plane: Tensor, k: int, index: int) -> Tensor:
        """Look up a slice of the reference ``[h, w]`` at the pixels of the target ``[H, W]``, 0 outside of it."""
        height, width = self.image.shape[1:3]
        rows, columns = np.mgrid[:height, :width].astype(float)
        if self.by_position:
            there = np.asarray(self.reference.image.affine, float).reshape(4, 4)
            here = np.asarray(self.image.affine, float).reshape(4, 4)
            points = np.stack([rows, columns, np.full_like(rows, k), np.ones_like(rows)]).reshape(4, -1)
            moved = np.linalg.solve(there, here @ points)
            rows, columns = moved[0].reshape(height, width), moved[1].reshape(height, width)
        else:
            rows = (rows + 0.5) * plane.shape[0] / height - 0.5
            columns = (columns + 0.5) * plane.shape[1] / width - 0.5
        nearest = [np.floor(axis + 0.5 + 1e-6).astype(int) for axis in (rows, columns)]
        inside = np.all([(i >= 0) & (i < n) for i, n in zip(nearest, plane.shape, strict=True)], axis=0)
        picked = [torch.from_numpy(np.where(inside, i, 0)) for i in nearest]
        return torch.where(torch.from_numpy(inside), plane[picked[0], picked[1]], 0)
