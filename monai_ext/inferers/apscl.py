"""APSCL: an annotated slice of another patient segments each slice by prototypes of enriched features (§3.3).

A slice costs one pass of the trunk: prototypes of a support are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.inferers.panet import classes_to_results
from monai_ext.inferers.reference import Paths, Reference, ReferenceLoader
from monai_ext.inferers.reference_inferer import MatchedSlice, ReferenceInferer, SliceResult, TargetSlice
from monai_ext.inferers.slice_features import dice
from monai_ext.networks.backbone import PromptableNetwork
from monai_ext.networks.prototype_net import PrototypeNet, Support
from monai_ext.prompts.ties import TOLERANCE


class ApsclInferer(ReferenceInferer):
    """Segment images from annotated slices of other patients, each structure on its own (1-way).

    z is the mean of its distribution. The rows of a case's details also measure how sure the mask of a slice is, among
    their ``features`` for the review score: ``prototype_distance``, 1 - cosine of the mask's features to their nearest
    prototype, averaged over the mask, in [0, 2]; and with ``z_samples`` ``spread``, 1 - Dice of its mask with those of
    drawn z, averaged over the draws.

    Args:
        labels: name -> value of the structures.
        load_reference: loads supports.
        slice_match: see :class:`ReferenceInferer`; ``middle``: one slice serves the whole volume, of each structure
            the middle one of those that show it.
        reference_image: see :class:`ReferenceInferer`.
        reference_label: see :class:`ReferenceInferer`.
        z_samples: number of z drawn for each structure and slice; 0: none. Without FEM there is no z.
        seed: of the draws.

    Raises:
        UserError: for a negative number of samples.

    Example:
        >>> inferer = ApsclInferer({"spleen": 4}, references, z_samples=4)
        >>> logits = inferer(image, network, ["support.nii.gz"], ["support_mask.nii.gz"])  # [1, 1, H, W, D]
    """

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        slice_match: str = "middle",
        reference_image: Paths | None = None,
        reference_label: Paths | None = None,
        z_samples: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(labels, load_reference, slice_match, reference_image, reference_label)
        if z_samples < 0:
            raise UserError(f"--z_samples is {z_samples}: give 0 or more.")
        self.z_samples, self.seed = z_samples, seed
        self._loaded: list[Reference] = []
        self._supports: dict[tuple[Any, ...], Support | None] = {}

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: object
    ) -> list[SliceResult]:
        """Segment every structure on one slice; see :class:`ReferenceInferer`."""
        few_shot = cast(PrototypeNet, network)
        if self.z_samples and not few_shot.options.fem:
            raise UserError(f"--z_samples {self.z_samples}: these weights have no FEM, so no z to draw; leave it out.")
        serving = [[m for m in matched if m.shows(value)] for value in self.labels.values()]
        values = self.labels.values()
        supports = [self._support(few_shot, own, value) for own, value in zip(serving, values, strict=True)]
        if all(support is None for support in supports):
            return [SliceResult(None, "reference_absent", {}) for _ in supports]
        embeddings = target.encode(network)
        query = few_shot.enrich(embeddings.features, sample=False).features[0]
        results = []
        for support, own in zip(supports, serving, strict=True):
            if support is None:
                results.append(SliceResult(None, "reference_absent", {}))
                continue
            scores = few_shot.compare(query, support)
            tolerance = few_shot.options.scale * TOLERANCE
            result = classes_to_results(network, scores, embeddings.size, [True], tolerance)[0]
            if result.status == "ok":
                valid = few_shot.valid_share(embeddings.size) > 0
                known = self._doubt(few_shot, embeddings.features, query, support, scores, valid, target.index)
                result.details["features"] = known
            result.served = own
            results.append(result)
        return results

    def _forget_other_references(self) -> None:
        if self._loaded is not self.load_reference.loaded:  # another list: other references
            self._loaded, self._supports = self.load_reference.loaded, {}

    def _support(self, network: PrototypeNet, showing: Sequence[MatchedSlice], value: int) -> Support | None:
        """Return the prototypes of one structure, computed once for its supports; None where there is none."""
        self._forget_other_references()
        key = (id(network), value, *(m.key for m in showing))
        if key not in self._supports:
            self._supports[key] = self._make(network, showing, value)
        return self._supports[key]

    def _make(self, network: PrototypeNet, showing: Sequence[MatchedSlice], value: int) -> Support | None:
        if not showing:
            return None
        # an Encoder is all that embed asks of a network
        embeddings = [m.reference.embed(cast(PromptableNetwork, network), m.index) for m in showing]
        features = network.enrich(torch.cat([e.features for e in embeddings]), sample=False).features
        shares = torch.cat([network.shares((m.label == value)[None]) for m in showing])
        valid = torch.stack([network.valid_share(e.size) for e in embeddings])
        return network.make_support(features, shares, valid)

    def _doubt(
        self,
        network: PrototypeNet,
        features: Tensor,
        query: Tensor,
        support: Support,
        scores: Tensor,
        valid: Tensor,
        index: int,
    ) -> dict[str, float]:
        """Measure how sure a mask is, on the grid of cells; nothing where it lies between their centres."""
        mask = (scores[1] > scores[0]) & valid
        if not bool(mask.any()):
            return {}
        guided = network.guided(query, support)
        cosine = F.normalize(support.foreground, dim=1) @ F.normalize(guided[:, mask], dim=0)
        known = {"prototype_distance": 1 - float(cosine.amax(dim=0).mean())}
        if self.z_samples:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
            drawn = [
                network.compare(network.enrich(features, sample=True, generator=generator).features[0], support)
                for _ in range(self.z_samples)
            ]
            known["spread"] = 1 - sum(dice(mask, (one[1] > one[0]) & valid) for one in drawn) / len(drawn)
        return known
