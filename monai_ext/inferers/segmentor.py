"""The segmentor on a whole case: slice by slice, on the whole volume."""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.nn import functional as F


class SegmentorInferer(Inferer):
    """Segments a case in the input frame.

    Args:
        size: side S of the square that slices are padded to, in pixels.
        batch: slices at once.
    """

    def __init__(self, size: int = 256, batch: int = 8) -> None:
        super().__init__()
        self.size, self.batch = int(size), int(batch)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: nn.Module) -> MetaTensor:  # type: ignore[override]
        """Segment one case.

        Args:
            inputs: [1, C, H, W, D] in [0, 255], H and W at most ``size``; channels are averaged.
            network: [B, 1, S, S] in [0, 1] -> logits [B, K + 1, S, S].

        Returns:
            [1, K, H, W, D]: each structure's logit minus the background's, so that a structure is chosen where it is
            the largest and above 0.
        """
        height, width, _ = inputs.shape[2:]
        device = next(network.parameters()).device
        planes = torch.as_tensor(inputs)[0].float().mean(dim=0).permute(2, 0, 1)[:, None] / 255
        planes = F.pad(planes.as_subclass(Tensor), (0, self.size - width, 0, self.size - height))
        parts = [network(part.to(device)).float().cpu() for part in planes.split(self.batch)]
        logits = torch.cat(parts)[..., :height, :width]
        return MetaTensor((logits[:, 1:] - logits[:, :1]).permute(1, 2, 3, 0)[None])
