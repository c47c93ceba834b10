"""P²SAM: part-aware prompts and distribution-guided retrieval (P²SAM, §3.2), training-free.

Step of the paper -> code:

* F_R, M_R and F_R^f (Eq. 1)             -> :meth:`P2SamInferer._tokens`
* k-means++ parts P_R^c                  -> :func:`monai_ext.prompts.parts.part_sets`, once a patient and slice
* similarity maps S^c (Eq. 2), points    -> :meth:`P2SamInferer._points`
* candidate masks for every (n_pos, n_neg) -> :meth:`P2SamInferer._decode`
* retrieval by Wasserstein distance (Eq. 3) -> :meth:`P2SamInferer.segment_slice`

``mode="paper"`` is the paper as written, with padding left out and 1 - cos as the cost. ``mode="official"`` does what
the authors' code does where the two differ: squared Euclidean cost on raw features, points found on the original
grid, three cascaded decoder passes, padding kept as background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn import functional as F

from monai_ext.errors import UserError
from monai_ext.inferers.follow_up import FollowUpInferer, MatchedSlice, SliceResult, TargetSlice
from monai_ext.inferers.previous import PreviousFrame, find_mask
from monai_ext.inferers.reference import Paths, Reference, ReferenceLoader
from monai_ext.inferers.slice_match import match_slices
from monai_ext.networks.sam import Embeddings, PromptableSam
from monai_ext.prompts.boxes import cells_in_box, tight_box
from monai_ext.prompts.masks import (
    background_cells,
    official_candidate_tokens,
    official_tokens,
    paper_tokens,
    valid_cells,
)
from monai_ext.prompts.parts import foreground_features, part_sets
from monai_ext.prompts.points import (
    argmax_points,
    cosine_maps,
    lowest_point,
    official_lowest_point,
    official_points,
)
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.ranges import RANGES, Counts, parse_counts
from monai_ext.prompts.retrieval import DISTANCES, Cost, Distance, retrieve_masks

MODES = ("paper", "official")
NEGATIVES = ("background", "lowest")
BOX_MARGIN = 0.25
"""Share of a previous box's sides by which it grows, on each side, to seek points in: objects move slowly."""


@dataclass(frozen=True)
class ReferenceParts:
    """What one structure's references are reduced to.

    Attributes:
        tokens: F_R^f, [n, C] foreground features, of all references together.
        positive: number of parts -> [number, C] part features.
        negative: number of parts -> [number, C] background part features; empty for negatives "lowest".
        recovered: the structure was too small for the feature grid and was recovered by area.
    """

    tokens: Tensor
    positive: dict[int, Tensor]
    negative: dict[int, Tensor]
    recovered: bool


@dataclass(frozen=True)
class Candidate:
    """One member of the retrieval grid: its counts and its prompt."""

    n_pos: int
    n_neg: int
    prompt: Prompt


class P2SamInferer(FollowUpInferer):
    """Segment follow-up images from one annotated image of the patient (P²SAM).

    Args:
        labels: name -> value of the structures.
        load_reference: loads references.
        n_pos: fewest and most positive points (parts of the foreground), the retrieval range, or text as in the
            paper's tables, "1,5-10". One number, ``[4, 4]``, leaves one candidate: no retrieval (Table 6, w.o.).
        n_neg: likewise of negative points; ``[0, 0]`` prompts with positives alone.
        mode: ``paper`` or ``official``, see the module.
        negatives: ``background`` places one negative for each part of the background (medical images), ``lowest``
            a single one where the mean similarity to the foreground parts is lowest (natural images).
        slice_match: see :class:`FollowUpInferer`.
        seed: of k-means++.
        reference_image: see :class:`FollowUpInferer`.
        reference_label: see :class:`FollowUpInferer`.
        distance: ``wasserstein`` (Eq. 5), or ``hungarian`` or ``jensen_shannon`` (Table 7); see
            :func:`monai_ext.prompts.retrieval.retrieve_masks`.
        n_range: a row of Tables 9 and 10 in place of ``n_pos`` and ``n_neg``, a name of
            :data:`monai_ext.prompts.ranges.RANGES`.
        previous_box: where a structure was in the frame before regularises its prompts (Appendix E, "Similar Objects"):
            that box is given to the decoder beside the points, and positive points are sought in the box grown by
            :data:`BOX_MARGIN` of its sides. The first frame takes the reference's. The paper shows the idea alone;
            how the box is used is chosen here. A structure absent before is prompted without a box.
        run_dir: folder whose ``masks`` hold the masks of earlier cases, for ``previous_box``.

    Raises:
        UserError: for an unknown mode, distance or name of a range, an impossible range, or ``previous_box`` with
            ``mode: official`` or ``slice_match: oracle_centre``, which know no such thing.
    """

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        n_pos: Counts = (1, 3),
        n_neg: Counts = (1, 3),
        mode: str = "paper",
        negatives: str = "background",
        slice_match: str = "position",
        seed: int = 0,
        reference_image: Paths | None = None,
        reference_label: Paths | None = None,
        distance: Distance = "wasserstein",
        n_range: str | None = None,
        previous_box: bool = False,
        run_dir: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__(labels, load_reference, slice_match, reference_image, reference_label)
        if mode not in MODES:
            raise UserError(f"mode {mode!r} is unknown: choose one of {', '.join(MODES)}.")
        if negatives not in NEGATIVES:
            raise UserError(f"negatives {negatives!r} is unknown: choose one of {', '.join(NEGATIVES)}.")
        if distance not in DISTANCES:
            raise UserError(f"distance {distance!r} is unknown: choose one of {', '.join(DISTANCES)}.")
        if n_range is not None and n_range not in RANGES:
            raise UserError(f"n_range {n_range!r} is unknown: choose one of {', '.join(RANGES)}.")
        n_pos, n_neg = (n_pos, n_neg) if n_range is None else RANGES[n_range]
        self.n_pos, self.n_neg = _counts("n_pos", n_pos, 1), _counts("n_neg", n_neg, 0)
        if previous_box and (mode == "official" or slice_match == "oracle_centre"):
            raise UserError("previous_box needs --mode paper and --slice_match position or relative.")
        self.distance = distance
        self.previous_box, self.run_dir = previous_box, None if run_dir is None else Path(run_dir)
        self._before: PreviousFrame | None = None
        self.mode, self.negatives, self.seed = mode, negatives, seed
        self._loaded: list[Reference] = []
        self._parts: dict[tuple[Any, ...], ReferenceParts | None] = {}

    def __call__(  # type: ignore[override]
        self,
        inputs: Tensor,
        network: PromptableSam,
        *args: Any,
        previous: Any = None,
        previous_image: Any = None,
        **extra: Any,
    ) -> MetaTensor:
        """Segment one case.

        Args:
            inputs: see :class:`FollowUpInferer`.
            network: see :class:`FollowUpInferer`.
            args: see :class:`FollowUpInferer`.
            previous: name of the case before it, whose mask ``run_dir`` holds; none or "": the reference is before it.
            previous_image: its file.
            extra: see :class:`FollowUpInferer`.
        """
        self._before, self._image = None, cast(MetaTensor, inputs[0])
        name = _one(previous)
        if self.previous_box and name:
            if self.run_dir is None:
                raise ValueError("previous_box needs run_dir, the folder of the masks")
            mask = find_mask(self.run_dir, name)
            frame = self.load_reference.load(_one(previous_image), str(mask), _one(extra.get("modality")))
            self._before = self._frame(frame)
        return super().__call__(inputs, network, *args, **extra)

    def _frame(self, frame: Reference) -> PreviousFrame:
        matches = match_slices(self._image, frame.image, self.slice_match)
        by_position = self.slice_match == "position" and self._image.meta.get("slice_axis") != ""
        return PreviousFrame(frame, matches, self._image, by_position)

    def segment_slice(
        self, network: PromptableSam, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Segment every structure on one slice; see :class:`FollowUpInferer`."""
        parts = [self._reference_parts(network, matched, value) for value in self.labels.values()]
        if not any(parts):
            return [SliceResult(None, "reference_absent", {}) for _ in parts]
        embeddings = network.encode(target.image[None].to(network.pixel_mean.device))
        if self.previous_box and self._before is None:
            self._before = self._frame(matched[-1].reference)
        return [
            SliceResult(None, "reference_absent", {})
            if p is None
            else self._segment(network, target, embeddings, p, self._box(target, value))
            for p, value in zip(parts, self.labels.values(), strict=True)
        ]

    def _box(self, target: TargetSlice, value: int) -> Tensor | None:
        return None if self._before is None else self._before.box(target.index, value)

    def _segment(
        self,
        network: PromptableSam,
        target: TargetSlice,
        embeddings: Embeddings,
        parts: ReferenceParts,
        box: Tensor | None = None,
    ) -> SliceResult:
        candidates = self._candidates(network, target, embeddings, parts, box)
        logits = self._decode(network, target, embeddings, [c.prompt for c in candidates])
        masks = network.to_image(logits, embeddings.size)[:, 0]
        cells = self._candidate_cells(network, logits[:, 0], masks)
        cost: Cost = "cosine" if self.mode == "paper" else "sqeuclidean"
        found = retrieve_masks(
            parts.tokens, embeddings.features[0], cells, cost, distance=self.distance, seed=self.seed
        )
        if found.index is None:
            return SliceResult(None, "no_foreground", {"recovered": parts.recovered})
        chosen = candidates[found.index]
        details = {
            "recovered": parts.recovered,
            "n_pos": chosen.n_pos,
            "n_neg": chosen.n_neg,
            "distance": found.distance,
            "margin": found.margin,
            "points": torch.cat([chosen.prompt.points, chosen.prompt.labels[:, None]], dim=1).tolist(),
        }
        return SliceResult(masks[found.index], "ok", details)

    def _reference_parts(
        self, network: PromptableSam, matched: Sequence[MatchedSlice], value: int
    ) -> ReferenceParts | None:
        """Cluster the references of one structure, once for the slices they serve; None where it is absent."""
        if self._loaded is not self.load_reference.loaded:
            self._loaded, self._parts = self.load_reference.loaded, {}
        key = (value, *(m.key for m in matched))
        if key not in self._parts:
            self._parts[key] = self._cluster(network, matched, value)
        return self._parts[key]

    def _cluster(self, network: PromptableSam, matched: Sequence[MatchedSlice], value: int) -> ReferenceParts | None:
        tokens, background, recovered = [], [], False
        for m in matched:
            mask = m.label == value
            if not bool(mask.any()):
                continue
            embeddings = m.reference.embed(network, m.index)
            inside, outside, small = self._tokens(network, embeddings, mask)
            tokens.append(inside)
            background.append(outside)
            recovered |= small
        if not tokens:
            return None
        foreground = torch.cat(tokens)
        numbers = [n for n in self.n_neg if n > 0] if self.negatives == "background" else []
        return ReferenceParts(
            foreground,
            self._part_sets(foreground, self.n_pos),
            self._part_sets(torch.cat(background), numbers),
            recovered,
        )

    def _part_sets(self, tokens: Tensor, counts: list[int]) -> dict[int, Tensor]:
        """Divide tokens into each number of parts; where they are too few for all, into as many as they can fill.

        The authors' code dies there.
        """
        sets = part_sets(tokens, counts, self.seed)
        fewer = min(*counts, len(tokens) + 1) - 1 if counts else 0
        while not sets and fewer > 0:
            sets, fewer = part_sets(tokens, [fewer], self.seed), fewer - 1
        return sets

    def _tokens(self, network: PromptableSam, embeddings: Embeddings, mask: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Foreground and background features of one reference slice (Eq. 1)."""
        grid = (network.grid, network.grid)
        if self.mode == "paper":
            inside, small = paper_tokens(mask, network.stride, grid)
            outside = background_cells(inside, valid_cells(embeddings.size, network.stride, grid))
        else:
            inside, small = official_tokens(mask, network.image_size, grid)
            outside = ~inside
        features = embeddings.features[0]
        inside, outside = inside.to(features.device), outside.to(features.device)
        return foreground_features(features, inside), foreground_features(features, outside), small

    def _candidates(
        self,
        network: PromptableSam,
        target: TargetSlice,
        embeddings: Embeddings,
        parts: ReferenceParts,
        box: Tensor | None = None,
    ) -> list[Candidate]:
        """Prompts of the full grid n_pos x n_neg; numbers of parts that the reference cannot fill are left out.

        With negatives "lowest" there is one negative point or, where n_neg begins at 0, none.
        """
        features = embeddings.features[0]
        candidates = []
        negative = {n: self._points(network, target, embeddings, p) for n, p in parts.negative.items()}
        for n_pos, features_pos in parts.positive.items():
            positive = self._points(network, target, embeddings, features_pos, box)
            if self.negatives == "lowest" and max(self.n_neg) > 0:
                negative = {1: self._lowest(network, target, embeddings, cosine_maps(features_pos, features))}
            if 0 in self.n_neg or not negative:
                candidates.append(Candidate(n_pos, 0, _prompt(positive, positive[:0], box)))
            candidates += [
                Candidate(n_pos, n_neg, _prompt(positive, points, box)) for n_neg, points in negative.items()
            ]
        return candidates

    def _points(
        self,
        network: PromptableSam,
        target: TargetSlice,
        embeddings: Embeddings,
        parts: Tensor,
        box: Tensor | None = None,
    ) -> Tensor:
        """Points of highest similarity, one a part (Eq. 2): [n, 2] (x, y) in the input frame."""
        maps = cosine_maps(parts, embeddings.features[0])
        if self.mode == "paper":
            valid = valid_cells(embeddings.size, network.stride, (network.grid, network.grid))
            if box is not None:
                valid &= cells_in_box(box, network.stride, (network.grid, network.grid), BOX_MARGIN)
            return argmax_points(maps, network.stride, valid, embeddings.size)
        return official_points(maps, network.image_size, embeddings.size, target.original_size)

    def _lowest(self, network: PromptableSam, target: TargetSlice, embeddings: Embeddings, maps: Tensor) -> Tensor:
        if self.mode == "paper":
            valid = valid_cells(embeddings.size, network.stride, (network.grid, network.grid))
            return lowest_point(maps, network.stride, valid, embeddings.size)
        return official_lowest_point(maps, network.image_size, embeddings.size, target.original_size)

    def _decode(
        self, network: PromptableSam, target: TargetSlice, embeddings: Embeddings, prompts: list[Prompt]
    ) -> Tensor:
        """Low-resolution logits of each candidate, [K, 1, 4g, 4g]: one pass, or the authors' cascade of three."""
        logits, _ = network.decode(embeddings, prompts)
        if self.mode == "paper":
            return logits
        logits, _ = network.decode(embeddings, prompts, mask_input=logits)
        frame = network.to_image(logits, embeddings.size)
        boxes = [_original_box(mask, target.original_size) for mask in frame]
        boxed = [Prompt(p.points, p.labels, box) for p, box in zip(prompts, boxes, strict=True)]
        logits, _ = network.decode(embeddings, boxed, mask_input=logits)
        return logits

    def _candidate_cells(self, network: PromptableSam, logits: Tensor, masks: Tensor) -> Tensor:
        """Foreground cells of each candidate mask, [K, g, g] bool."""
        grid = (network.grid, network.grid)
        if self.mode == "official":
            return official_candidate_tokens(logits, grid)
        empty = torch.zeros(grid, dtype=torch.bool, device=masks.device)
        return torch.stack([paper_tokens(m, network.stride, grid)[0] if bool(m.any()) else empty for m in masks > 0])


def _one(value: Any) -> Any:
    """Take a value out of what collation makes of it."""
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _prompt(positive: Tensor, negative: Tensor, box: Tensor | None = None) -> Prompt:
    labels = torch.cat([positive.new_ones(len(positive)), negative.new_zeros(len(negative))])
    return Prompt(torch.cat([positive, negative]), labels, None if box is None else box.to(positive.device))


def _original_box(logits: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Tight box of a mask on the original grid, (x0, y0, x1, y1) in the input frame; None for an empty mask.

    Args:
        logits: [1, H, W] in the input frame.
        size: (h0, w0) of the original slice.
    """
    box = tight_box(F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0, 0] > 0)
    if box is None:
        return None
    scale = box.new_tensor([logits.shape[2] / size[1], logits.shape[1] / size[0]])
    return box * scale.repeat(2)


def _counts(name: str, counts: Counts, least: int) -> list[int]:
    try:
        found = parse_counts(counts)
    except (TypeError, ValueError):
        found = []
    if not found or found[0] < least:
        raise UserError(
            f"{name} is {counts}: give the fewest and the most points, such as [{max(least, 1)}, 3], or a list such as "
            f"1,5-10, of {least} or more."
        )
    return found
