"""ProSAM at inference: an annotated reference in, a mask and how sure it is out (Wang et al. 2025, §4.3 and §5.4).

Step of the paper -> code:

* prompts from a visual reference          -> :mod:`monai_ext.networks.prompt_distribution`
* the mean prompt, or K draws (Table 7)    -> :meth:`ProsamInferer._merge`
* several references, prompts joined       -> :func:`monai_ext.networks.prompt_distribution.join_shots`
* agreement of the masks of K draws        -> :func:`monai_ext.prompts.sampled_masks.mask_uncertainty`
* test-time augmentation, to compare with  -> :meth:`ProsamInferer._masks_of_views`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.data.case_details import CaseDetails
from monai_ext.errors import UserError
from monai_ext.inferers.encoding import encode_slice, in_frame
from monai_ext.inferers.reference import Paths, Reference, ReferenceLoader
from monai_ext.inferers.reference_inferer import (
    BACKGROUND,
    MatchedSlice,
    ReferenceInferer,
    SliceResult,
    TargetSlice,
    segment_present,
    serving,
)
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.networks.prompt_distribution import PromptDistributionNet, join_shots
from monai_ext.networks.reference_encoder import ReferenceFeatures
from monai_ext.prompts.annotations import annotate, check_kind
from monai_ext.prompts.distribution import PromptDistribution, check_count
from monai_ext.prompts.sampled_masks import (
    MEAN_PROMPT,
    MaskUncertainty,
    check_strategy,
    mask_uncertainty,
    merge_logits,
)
from monai_ext.transforms.request import REQUEST
from monai_ext.transforms.views import View, draw_views

SLICES = ("matched", "nearest", "largest")
"""Which slice of a reference serves: the one that matches the target's, of those that show the structure the nearest to
it, or the one with most of the structure."""

AT_ONCE = 16
"""Draws that are decoded in one call."""

Shot = tuple[ReferenceFeatures, tuple[Tensor, Tensor]]


class ProsamInferer(ReferenceInferer):
    """Segment images by prompts that a network predicts from annotated references.

    Args:
        labels: name -> value of the structures.
        load_reference: loads references; the prompts of several are joined.
        prompts: predicts the distribution of prompts; it belongs to one promptable network.
        strategy: ``mean_prompt`` (the paper's), or how the masks of K draws are merged, see
            :func:`monai_ext.prompts.sampled_masks.merge_logits`.
        samples: K.
        uncertainty: draw K prompts beside the mean and compare their masks. It costs K decodings a structure and slice.
        views: changed copies of each target slice that are segmented by the mean prompt, too: test-time augmentation,
            to compare with. Each costs an encoding and a decoding. 0: none.
        annotation: ``mask`` takes the reference's label as it is: a mask, or a box, scribble or dots that a user has
            painted. ``box``, ``scribble`` and ``points`` are derived from it.
        reference_slice: one of :data:`SLICES`; ``nearest`` and ``largest`` look for the structure on every slice of the
            target. None: ``nearest`` where a reference shows the structure on single slices alone, no two of which are
            neighbours, as where a user has annotated one slice; else ``matched``.
        slice_match: see :class:`ReferenceInferer`.
        seed: of draws and derived annotations; each slice and structure has its own.
        reference_image: see :class:`ReferenceInferer`.
        reference_label: see :class:`ReferenceInferer`.

    The details of a case have a map ``variance``, of the K probabilities, [L, H, W, D] in the input frame, zero where
    nothing was sought; none without ``uncertainty``. Rows have the further entries ``sigma``, ``predicted_iou``,
    ``agreement``, ``entropy`` and ``variance_ratio``. These but ``sigma`` are features of the review score, as are
    those of the views, ``view_agreement`` and so on; of masks that are all empty they are None. The answer to a MONAI
    Label request has ``agreement``: of each structure the mean over the slices on which it was found.

    Raises:
        UserError: for unknown options, an impossible K, or draws from prompts without a distribution (VRP-SAM).

    Example:
        >>> inferer = ProsamInferer({"liver": 1}, ReferenceLoader(transform, {"liver": 1}), prompts)
        >>> logits = inferer(image[None], sam, "reference.nii.gz", "reference_label.nii.gz")  # [1, 1, H, W, D]
    """

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        prompts: PromptDistributionNet,
        strategy: str = MEAN_PROMPT,
        samples: int = 10,
        uncertainty: bool = True,
        views: int = 0,
        annotation: str = "mask",
        reference_slice: str | None = None,
        slice_match: str = "relative",
        seed: int = 0,
        reference_image: Paths | None = None,
        reference_label: Paths | None = None,
    ) -> None:
        super().__init__(labels, load_reference, slice_match, reference_image, reference_label)
        check_strategy(strategy)
        check_kind(annotation)
        check_count(samples)
        if uncertainty and samples < 2:
            raise UserError(f"--samples is {samples}: an uncertainty needs 2 or more; or set --uncertainty false.")
        if prompts is not None and prompts.is_certain and (uncertainty or strategy != MEAN_PROMPT):
            raise UserError(
                "these prompts have no distribution (VRP-SAM), so all draws are the same: set --uncertainty false and "
                "--strategy mean_prompt."
            )
        if views < 0 or views == 1:
            raise UserError(f"--views is {views}: give 0, or 2 or more, whose masks are compared.")
        if reference_slice is not None and reference_slice not in SLICES:
            raise UserError(f"reference_slice {reference_slice!r} is unknown: choose one of {', '.join(SLICES)}.")
        self.prompts, self.strategy, self.samples, self.annotation = prompts, strategy, samples, annotation
        self.uncertainty, self.views, self.reference_slice, self.seed = uncertainty, views, reference_slice, seed
        self._variances: dict[tuple[int, int], Tensor] = {}
        self._answer: dict[str, Any] = {}  # of a viewer's request
        self._shots: dict[tuple[int, int, int], Shot] = {}
        self._held: dict[tuple[int, int], list[int]] = {}  # slices of a reference that show a structure
        self._served: list[Reference] | None = None

    def begin_case(self, image: MetaTensor, modality: str | None, **entries: Any) -> dict[str, Any]:
        """Forget the case before; see :class:`ReferenceInferer`."""
        self._variances = {}
        self._answer = (image.meta.get(REQUEST) or {}).get("answer", {})
        return super().begin_case(image, modality, **entries)

    def segment_case(
        self, inputs: Tensor, network: PromptableNetwork, *args: Any, **entries: Any
    ) -> tuple[MetaTensor, CaseDetails]:
        """Segment one case; see :class:`ReferenceInferer`."""
        logits, details = super().segment_case(inputs, network, *args, **entries)
        if self.uncertainty:
            variances = torch.zeros(logits.shape[1:])
            for (channel, k), variance in self._variances.items():
                variances[channel, :, :, k] = variance
            details.maps["variance"] = variances
            self._answer["agreement"] = {name: _mean_agreement(details.rows, name) for name in self.labels}
        return logits, details

    @torch.no_grad()
    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Segment every structure on one slice; see :class:`ReferenceInferer`."""
        self._forget_other_references()
        shots = [self._structure(channel, network, matched) for channel in range(len(self.labels))]
        image = in_frame(target.image, target.frame)[None]
        seen: dict[str, Any] = {}

        def segment(embeddings: Embeddings, known: tuple[int, list[Shot], list[MatchedSlice]]) -> SliceResult:
            if not seen:  # of the first structure that is sought on this slice
                seen["features"] = self.prompts.features(image.to(network.device), network.image_size)
                seen["views"] = self._encode_views(network, target)
            result = self._segment(network, target, embeddings, seen["features"], *known)
            if seen["views"]:
                masks = self._masks_of_views(network, seen["views"], known[1])
                result.details["features"] |= _features(mask_uncertainty(masks), "view_")
            return result

        return segment_present(network, target, shots, segment)

    def _structure(
        self, channel: int, network: PromptableNetwork, matched: Sequence[MatchedSlice]
    ) -> tuple[int, list[Shot], list[MatchedSlice]] | None:
        """Collect what the references that show a structure tell of it, and on which slices; None: none shows it."""
        value = list(self.labels.values())[channel]
        shots, served = [], []
        for m in serving(matched, value):
            index = self._serving_slice(m, value)
            if index is not None:
                shots.append(self._shot(network, m.reference, index, value))
                served.append(MatchedSlice(m.reference, index))
        return (channel, shots, served) if shots else None

    def _serving_slice(self, matched: MatchedSlice, value: int) -> int | None:
        """Return the slice of a reference that serves where ``matched`` corresponds; None: none shows the structure."""
        key = (id(matched.reference), value)
        if key not in self._held:
            self._held[key] = matched.reference.held_slices([value])
        held = self._held[key]
        rule = self.reference_slice
        if rule is None:
            rule = "matched" if bool((np.diff(held) == 1).any()) else "nearest"
        if rule == "matched" or not held:
            return matched.index if matched.index in held else None
        if rule == "largest":
            return _largest(matched.reference, value)
        return min(held, key=lambda k: abs(k - matched.index))

    def _shot(self, network: PromptableNetwork, reference: Reference, index: int, value: int) -> Shot:
        """Features and masks of one reference slice, made once."""
        key = (id(reference), index, value)
        if key not in self._shots:
            image = in_frame(reference.image.as_tensor()[..., index], reference.frame)[None].to(network.device)
            mask = (reference.label[0, :, :, index] == value).numpy()
            drawn = annotate(mask, self.annotation, np.random.default_rng([self.seed, index, value]))
            masks = self.prompts.masks(torch.from_numpy(drawn)[None].to(network.device), network.image_size)
            self._shots[key] = (self.prompts.features(image, network.image_size), masks)
        return self._shots[key]

    def _segment(
        self,
        network: PromptableNetwork,
        target: TargetSlice,
        embeddings: Embeddings,
        query: ReferenceFeatures,
        channel: int,
        shots: Sequence[Shot],
        served: Sequence[MatchedSlice],
    ) -> SliceResult:
        prompts = join_shots([self.prompts(query, support, masks) for support, masks in shots])
        drawn = None
        if self.uncertainty or self.strategy != MEAN_PROMPT:
            drawn = _decode(network, embeddings, self._draw(prompts, target.index, channel))[0]
        logits, quality = self._merge(network, embeddings, prompts, drawn)
        features: dict[str, float | None] = {"predicted_iou": quality}
        if self.uncertainty and drawn is not None:
            found = mask_uncertainty(drawn)
            self._variances[channel, target.index] = found.variance.cpu()
            features |= _features(found)
        details = {"sigma": float(self.prompts.effective_std(prompts)), **features, "features": features}
        if not bool((logits > 0).any()):
            return SliceResult(None, "no_foreground", details, served)
        return SliceResult(logits, "ok", details, served)

    def _encode_views(self, network: PromptableNetwork, target: TargetSlice) -> list[tuple[View, Any, Any]]:
        """Change a slice and encode the copies: each view, SAM's embeddings, and the reference encoder's features."""
        encoded = []
        for view in draw_views(self.views, np.random.default_rng([self.seed, target.index])):
            image = view.apply(target.image)
            features = self.prompts.features(in_frame(image, target.frame)[None].to(network.device), network.image_size)
            encoded.append((view, encode_slice(network, image, target.frame), features))
        return encoded

    def _masks_of_views(
        self, network: PromptableNetwork, views: Sequence[tuple[View, Any, Any]], shots: Sequence[Shot]
    ) -> Tensor:
        """Segment changed copies by the mean prompt: logits [V, H, W] in the input frame of the slice itself."""
        masks = []
        for view, embeddings, query in views:
            prompts = join_shots([self.prompts(query, support, cells) for support, cells in shots])
            masks.append(view.undo(_decode(network, embeddings, prompts.mean)[0][0], BACKGROUND))
        return torch.stack(masks)

    def _merge(
        self, network: PromptableNetwork, embeddings: Embeddings, prompts: PromptDistribution, drawn: Tensor | None
    ) -> tuple[Tensor, float]:
        """Return the mask's logits [H, W] and the mean prompt's predicted IoU."""
        mean, quality = _decode(network, embeddings, prompts.mean)
        if self.strategy == MEAN_PROMPT or drawn is None:
            return mean[0], float(quality[0])
        return merge_logits(drawn, self.strategy), float(quality[0])

    def _draw(self, prompts: PromptDistribution, index: int, channel: int) -> Tensor:
        """Draw K sets of prompts of one image: [K, N, C]."""
        number = int(np.random.default_rng([self.seed, index, channel]).integers(2**62))
        return self.prompts.sampler.draw(prompts, self.samples, torch.Generator().manual_seed(number))[:, 0]

    def _forget_other_references(self) -> None:
        if self._served is not self.load_reference.loaded:
            self._served, self._shots, self._held = self.load_reference.loaded, {}, {}


def _decode(network: PromptableNetwork, embeddings: Embeddings, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Decode sets of prompts [K, N, C] of one image: logits [K, H, W] in the input frame, predicted IoU [K]."""
    logits, quality = [], []
    for part in tokens.split(AT_ONCE):
        low, iou = network.decode_tokens(embeddings, part)
        logits.append(network.to_image(low, embeddings.size)[:, 0])
        quality.append(iou[:, 0])
    return torch.cat(logits), torch.cat(quality)


def _features(told: MaskUncertainty, prefix: str = "") -> dict[str, float | None]:
    """Name the numbers of K masks; None where none of them holds a pixel, lest an empty mask look like the surest."""
    numbers = {"agreement": told.agreement, "entropy": told.entropy, "variance_ratio": told.variance_ratio}
    return {prefix + name: value if told.found else None for name, value in numbers.items()}


def _mean_agreement(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """Return a structure's mean agreement over the slices on which it was found; None: on none."""
    ok = (row["agreement"] for row in rows if row["label"] == name and row["status"] == "ok")
    found = [agreement for agreement in ok if agreement is not None]
    return sum(found) / len(found) if found else None


def _largest(reference: Reference, value: int) -> int:
    """Return the slice with most pixels of a structure, of equal ones the first."""
    return int((reference.label[0] == value).sum(dim=(0, 1)).argmax())
