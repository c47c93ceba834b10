"""A segmentor of slices on a whole case: each slice as in training, the whole volume in its own geometry."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor
from torch.nn import functional as F

from monai_ext.data.scribble_slices import plane_in_square, resize_image
from monai_ext.data.slice_store import grey_planes, to_planes
from monai_ext.errors import UserError
from monai_ext.networks.dual_branch_unet import STRIDE, DualBranchUNet

BRANCHES = ("out", "main")


class SegmentorInferer(Inferer):
    """Segments a case in the input frame, slice by slice.

    A slice is prepared as those that the segmentor was trained on (:mod:`monai_ext.data.scribble_slices`): 256 grey
    levels, resampled so that its longer side is ``image_size`` (bilinear, antialiased), padded at the bottom and
    right. Logits are resampled back, bilinear.

    Args:
        image_size: pixels of the longer side that the segmentor sees, as in its training; a multiple of 16.
        batch: slices at once.
        branch: ``out``, which SAM-SP uses (with ``architecture`` plain it is the main decoder), or ``main``: what
            DMPLS uses, and the one to take where ``out`` was not trained.

    Raises:
        UserError: for an impossible option.

    Example:
        >>> logits = SegmentorInferer(image_size=256)(image[None], build_segmentor(4))  # [1, 3, H, W, D]
    """

    def __init__(self, image_size: int = 256, batch: int = 8, branch: str = "out") -> None:
        super().__init__()
        if image_size < STRIDE or image_size % STRIDE:
            raise UserError(f"--image_size is {image_size}: give a multiple of {STRIDE}.")
        if batch < 1:
            raise UserError(f"--batch is {batch}: give 1 or more.")
        if branch not in BRANCHES:
            raise UserError(f"branch {branch!r} is unknown: choose one of {', '.join(BRANCHES)}.")
        self.image_size, self.batch, self.branch = int(image_size), int(batch), branch

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: DualBranchUNet) -> MetaTensor:  # type: ignore[override]
        """Segment one case.

        Args:
            inputs: [1, C, H, W, D] in [0, 255], the input frame; channels are averaged.
            network: images [B, 1, S, S] in [0, 1] -> logits [B, K + 1, S, S], in evaluation mode.

        Returns:
            [1, K, H, W, D]: each structure's logit minus the background's, so that
            :class:`~monai_ext.transforms.labels.MergeLabelsd` gives the argmax over all K + 1 classes.
        """
        device = next(network.parameters()).device
        slices = grey_planes(to_planes(np.asarray(torch.as_tensor(inputs)[0].cpu())))
        frame = slices.shape[1:]
        size = plane_in_square(frame, self.image_size)
        parts = []
        for first in range(0, len(slices), self.batch):
            planes = [
                resize_image(torch.from_numpy(plane.copy()), size) for plane in slices[first : first + self.batch]
            ]
            images = F.pad(torch.stack(planes)[:, None], (0, self.image_size - size[1], 0, self.image_size - size[0]))
            images = images.to(device)
            found = network.branches(images).main if self.branch == "main" else network(images)
            found = found[..., : size[0], : size[1]].float()
            if size != frame:
                found = F.interpolate(found, frame, mode="bilinear", align_corners=False)
            parts.append(found.cpu())
        logits = torch.cat(parts)
        return MetaTensor((logits[:, 1:] - logits[:, :1]).permute(1, 2, 3, 0)[None])
