"""PerSAM, training-free (Zhang et al. 2023, *Personalize Segment Anything Model with One Shot*, §3.1 to §3.3).

Step of the paper -> code:

* target feature: mean over the reference's foreground  -> :meth:`PersamInferer._target_feature`
* positive-negative location prior                      -> :meth:`PersamInferer._prompt`
* target-guided attention, target-semantic prompting    -> :mod:`monai_ext.networks.guidance`
* cascaded post-refinement                              -> :func:`monai_ext.inferers.cascade.guided_cascade`

The mask reaches the feature grid by PerSAM's own rule (:func:`monai_ext.prompts.masks.persam_tokens`). In mode
``official`` points and attention come by way of the original grid, as in the released code; in mode ``paper`` they are
taken on the feature grid, where the attention's bias lies on its own cells in images that are not square, too, and no
point falls into padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.inferers.cascade import guided_cascade
from monai_ext.inferers.p2sam import MODES
from monai_ext.inferers.reference import Paths, ReferenceLoader
from monai_ext.inferers.reference_inferer import (
    MatchedSlice,
    ReferenceInferer,
    SliceResult,
    TargetSlice,
    segment_present,
)
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.masks import persam_tokens, valid_cells
from monai_ext.prompts.parts import foreground_features
from monai_ext.prompts.points import (
    argmax_points,
    cosine_maps,
    lowest_point,
    official_lowest_point,
    official_points,
    official_target_attention,
    target_attention,
)
from monai_ext.prompts.prompt import Prompt


class PersamInferer(ReferenceInferer):
    """Segment follow-up images by one point of highest and one of lowest similarity, guided by the reference.

    An empty mask never stops it: a reference too small for the grid is recovered by area, an empty mask between the
    passes gives no box, and an empty mask at the end is ``no_foreground``.

    Args:
        labels: name -> value of the structures.
        load_reference: loads references; several pool their foreground.
        mode: ``paper`` or ``official``, see the module.
        multimask: see :func:`guided_cascade`.
        slice_match: see :class:`ReferenceInferer`.
        reference_image: see :class:`ReferenceInferer`.
        reference_label: see :class:`ReferenceInferer`.
        guided: target-guided attention and target-semantic prompting in the first pass; without them PerSAM is its two
            points and its three passes, for weights that never trained with such attention.

    Raises:
        UserError: for an unknown mode.

    Example:
        >>> inferer = PersamInferer({"LV": 3}, ReferenceLoader(transform, {"LV": 3}), multimask=False)
        >>> logits = inferer(image[None], sam, "visit_1.nii.gz", "visit_1_label.nii.gz")  # [1, 1, H, W, D]
    """

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        mode: str = "paper",
        multimask: bool = True,
        slice_match: str = "position",
        reference_image: Paths | None = None,
        reference_label: Paths | None = None,
        guided: bool = True,
    ) -> None:
        super().__init__(labels, load_reference, slice_match, reference_image, reference_label)
        if mode not in MODES:
            raise UserError(f"mode {mode!r} is unknown: choose one of {', '.join(MODES)}.")
        self.mode, self.multimask, self.guided = mode, multimask, guided

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Segment every structure on one slice; see :class:`ReferenceInferer`."""
        features = [self._target_feature(network, matched, value) for value in self.labels.values()]
        return segment_present(network, target, features, lambda e, f: self._segment(network, target, e, *f))

    def _target_feature(
        self, network: PromptableNetwork, matched: Sequence[MatchedSlice], value: int
    ) -> tuple[Tensor, bool] | None:
        """Mean foreground feature [1, C], not normalised, and whether a mask was recovered; None: no foreground."""
        tokens, recovered = [], False
        for m in matched:
            if not m.shows(value):
                continue
            mask = m.label == value
            features = m.reference.embed(network, m.index).features[0]
            inside, small = persam_tokens(mask, network.image_size, (network.grid, network.grid))
            tokens.append(foreground_features(features, inside.to(features.device)))
            recovered |= small
        return (torch.cat(tokens).mean(dim=0, keepdim=True), recovered) if tokens else None

    def _segment(
        self, network: PromptableNetwork, target: TargetSlice, embeddings: Embeddings, feature: Tensor, recovered: bool
    ) -> SliceResult:
        maps = cosine_maps(feature, embeddings.features[0])
        prompt, bias = self._prompt(network, target, embeddings, maps)
        attention, target_feature = (bias, feature) if self.guided else (None, None)
        logits = guided_cascade(
            network, embeddings, [prompt], target.original_size, attention, target_feature, self.multimask
        )
        mask = network.to_image(logits, embeddings.size)[0, 0]
        if not bool((mask > 0).any()):
            return SliceResult(None, "no_foreground", {"recovered": recovered})
        points = torch.cat([prompt.points, prompt.labels[:, None]], dim=1).tolist()
        return SliceResult(mask, "ok", {"recovered": recovered, "n_pos": 1, "n_neg": 1, "points": points})

    def _prompt(
        self, network: PromptableNetwork, target: TargetSlice, embeddings: Embeddings, maps: Tensor
    ) -> tuple[Prompt, Tensor]:
        """The point of highest and of lowest similarity of a map [1, g, g], and the bias of the attention."""
        if self.mode == "paper":
            valid = valid_cells(embeddings.size, network.stride, (network.grid, network.grid))
            positive = argmax_points(maps, network.stride, valid, embeddings.size)
            negative = lowest_point(maps, network.stride, valid, embeddings.size)
            bias = target_attention(maps[0], valid)
        else:
            frames = (network.image_size, embeddings.size, target.original_size)
            positive, negative = official_points(maps, *frames), official_lowest_point(maps, *frames)
            bias = official_target_attention(maps[0], *frames)
        return Prompt.from_points(positive, negative), bias
