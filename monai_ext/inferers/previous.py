"""The frame before: where each structure was, as a box in the present frame (P²SAM, Appendix E, "Similar Objects")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.inferers.reference import Reference
from monai_ext.prompts.boxes import tight_box

SUFFIXES = (".nii.gz", ".png")


def find_mask(run_dir: Path, case: str) -> Path:
    """Return the mask that the run has written for an earlier case.

    Raises:
        UserError: there is none.
    """
    for suffix in SUFFIXES:
        path = run_dir / "masks" / f"{case}{suffix}"
        if path.is_file():
            return path
    raise UserError(
        f"the mask of the previous case {case!r} is not in {run_dir / 'masks'}: run the same command "
        "again, and with one mask a case (no overlapping structures)."
    )


@dataclass(frozen=True)
class PreviousFrame:
    """An earlier image of the patient with a mask, annotated or predicted.

    Args:
        frame: the image and its mask.
        matches: for each slice of the present image its slice there, or None.
        image: the present image [C, H, W, D], for its place in space.
        by_position: boxes keep their place in scanner coordinates; False: their place relative to the field of view,
            as for the frames of a video.
    """

    frame: Reference
    matches: list[int | None]
    image: MetaTensor
    by_position: bool

    def box(self, k: int, value: int) -> Tensor | None:
        """Bound a structure as it was before, for slice ``k`` of the present image.

        Returns:
            [4] float32 (x0, y0, x1, y1) in the input frame, kept within the image; None where the structure, or a
            matched slice, is absent there.
        """
        index = self.matches[k]
        if index is None:
            return None
        box = tight_box(self.frame.label[0, :, :, index] == value)
        if box is None:
            return None
        corners = self._by_position(box, index) if self.by_position else self._by_share(box)
        height, width = self.image.shape[1:3]
        most = corners.new_tensor([width - 1, height - 1])
        low, high = corners.amin(dim=0).clamp(min=0), corners.amax(dim=0).minimum(most)
        return torch.cat([low, high]) if bool((low <= high).all()) else None

    def _by_position(self, box: Tensor, index: int) -> Tensor:
        x0, y0, x1, y1 = box.tolist()
        corners = np.array([[y0, x0, index, 1], [y1, x1, index, 1], [y0, x1, index, 1], [y1, x0, index, 1]]).T
        there = np.asarray(self.frame.image.affine, dtype=np.float64).reshape(4, 4)
        here = np.asarray(self.image.affine, dtype=np.float64).reshape(4, 4)
        moved = np.linalg.inv(here) @ there @ corners
        return torch.tensor(moved[[1, 0]].T, dtype=torch.float32)

    def _by_share(self, box: Tensor) -> Tensor:
        scale = [new / old for new, old in zip(self.image.shape[2:0:-1], self.frame.image.shape[2:0:-1], strict=True)]
        return (box.reshape(2, 2) + 0.5) * box.new_tensor(scale) - 0.5
