"""Label propagation by feature affinity (Jabri et al. 2020), on the promptable model's features, without its decoder.

P²SAM's paper compares with it in Table 5 and gives no details.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_ext.errors import UserError
from monai_ext.inferers.panet import class_shares, classes_to_results
from monai_ext.inferers.reference import ReferenceLoader
from monai_ext.inferers.reference_inferer import MatchedSlice, ReferenceInferer, SliceResult, TargetSlice
from monai_ext.networks.backbone import PromptableNetwork
from monai_ext.prompts.propagation import cell_positions, propagate_labels


class LabelPropagationInferer(ReferenceInferer):
    """Give each cell of the target the labels of the most similar reference cells nearby; the greatest wins.

    Sources are the cells of the matched reference slices that hold image, with the share of each class as soft labels.
    Earlier frames' predictions are no sources: a case would then hang on which cases ran before it.

    Args:
        labels: name -> value of the structures.
        load_reference: loads references.
        top_k: number of sources of a cell.
        temperature: of the softmax over their cosine similarities.
        radius: how far a source may lie from the cell, as a share of the image's longer side.
        slice_match: see :class:`ReferenceInferer`.

    Raises:
        UserError: for numbers that are not positive.
    """

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        top_k: int = 10,
        temperature: float = 0.07,
        radius: float = 0.2,
        slice_match: str = "position",
    ) -> None:
        super().__init__(labels, load_reference, slice_match)
        if not isinstance(top_k, int) or top_k < 1:
            raise UserError(f"propagation_top_k is {top_k}: give a whole number of source cells, 1 or more.")
        for name, number in (("propagation_temperature", temperature), ("propagation_radius", radius)):
            if not number > 0:
                raise UserError(f"{name} is {number}: give a number above 0.")
        self.top_k, self.temperature, self.radius = top_k, temperature, radius

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: object
    ) -> list[SliceResult]:
        """Segment every structure on one slice; see :class:`ReferenceInferer`."""
        values = list(self.labels.values())
        present = [any(m.shows(v) for m in matched) for v in values]
        if not any(present):
            return [SliceResult(None, "reference_absent", {}) for _ in values]
        embeddings = target.encode(network)
        grid, device = (network.grid, network.grid), embeddings.features.device
        extent = torch.tensor(embeddings.size) / max(embeddings.size)
        features, shares, places = [], [], []
        for m in matched:
            source = m.reference.embed(network, m.index)
            share = class_shares(network, m.label, values).flatten(1).T
            share = share / share.sum(dim=1, keepdim=True).clamp(min=1e-9)
            held = (share > 0).any(dim=1)
            features.append(source.features[0].flatten(1).T[held.to(device)])
            shares.append(share[held])
            places.append(cell_positions(source.size, network.stride, grid)[held])
        apart = torch.cdist(torch.cat(places) * extent, cell_positions(embeddings.size, network.stride, grid) * extent)
        carried = propagate_labels(
            torch.cat(features),
            torch.cat(shares).to(device),
            embeddings.features[0].flatten(1).T,
            (apart <= self.radius).to(device),
            self.top_k,
            self.temperature,
        )
        scores = carried.T.unflatten(1, grid)
        kept = [True, *present]  # background, and the structures that are there
        return classes_to_results(network, scores[kept], embeddings.size, present)
