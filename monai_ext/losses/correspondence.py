"""A region in one view of a slice finds itself in another view: what prompting by similarity asks of an embedding.

P²SAM places a point on the cell that is most similar to a part of the reference (Eq. 2). Masks alone do not teach an
encoder that; this auxiliary loss does, on any regions, also such that nobody labelled. Not part of the paper; of the
kind of InfoNCE (van den Oord et al. 2018) over the cells of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CorrespondenceLoss(nn.Module):
    """The mean feature of a region in one view, compared with each cell of the other: -log of the mass in the region.

    The similarities of a region to all cells, cosines over a temperature, become a distribution by softmax; its mass on
    the cells of the same region, weighted by the share of the cell that is covered, is to be 1.

    Args:
        regions: most regions drawn from a pair of views.
        temperature: of the softmax.
    """

    def __init__(self, regions: int = 4, temperature: float = 0.1) -> None:
        super().__init__()
        self.regions, self.temperature = regions, temperature

    def forward(self, features: Tensor, labels: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of each region that both views of a pair show, [K]; K = 0 where there is none.

        Args:
            features: [2 P, C, g, g]; images 2 p and 2 p + 1 are views of one slice.
            labels: [2 P, S, S] integer, 0 for what is no region; S a multiple of g.
            valid: [2 P, S, S] bool, where there is image.
            generator: source of randomness, on the CPU.
        """
        factor = labels.shape[-1] // features.shape[-1]
        cells = F.avg_pool2d(valid[:, None].float(), factor).flatten(1) > 0.5
        maps = features.float().flatten(2)  # [2 P, C, g * g]
        losses = []
        for first in range(0, len(features), 2):
            pair = labels[first : first + 2]
            shared = sorted(set(pair[0].unique().tolist()) & set(pair[1].unique().tolist()) - {0})
            if not shared:
                continue
            drawn = torch.randperm(len(shared), generator=generator)[: self.regions].tolist()
            numbers = torch.tensor([shared[i] for i in drawn], device=labels.device)
            masks = (pair[:, None] == numbers[:, None, None]).float()  # [2, K, S, S]
            shares = F.avg_pool2d(masks, factor).flatten(2)  # [2, K, g * g]
            for one, other in ((0, 1), (1, 0)):
                means = (shares[one] / shares[one].sum(dim=1, keepdim=True)) @ maps[first + one].T
                target = F.normalize(maps[first + other], dim=0)
                logits = F.normalize(means, dim=1) @ target / self.temperature
                logits = logits.masked_fill(~cells[first + other], float("-inf"))
                inside = (logits.softmax(dim=1) * shares[other]).sum(dim=1)
                losses.append(-(inside + 1e-6).log())
        return torch.cat(losses) if losses else features.new_zeros(0)
