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

``attention="guided"`` is the authors' function for natural images (PerSeg), which the paper does not describe: PerSAM's
target-guided attention by the mean similarity map of the parts, and target-semantic prompting by the mean foreground
feature, in the first decoder pass; in mode ``official`` the later passes choose among SAM's three masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.data.case_details import CaseDetails
from monai_ext.data.pairs import single_value
from monai_ext.errors import UserError
from monai_ext.inferers.cascade import guided_cascade, original_box
from monai_ext.inferers.cycle import cycle_dice
from monai_ext.inferers.place import Place
from monai_ext.inferers.previous import PreviousFrame, find_mask
from monai_ext.inferers.reference import Paths, Reference, ReferenceLoader
from monai_ext.inferers.reference_inferer import (
    BACKGROUND,
    Click,
    MatchedSlice,
    ReferenceInferer,
    SliceResult,
    TargetSlice,
)
from monai_ext.inferers.slice_features import spread
from monai_ext.inferers.slice_match import match_slices
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.boxes import cells_in_box, pixels_in_box
from monai_ext.prompts.chain import choose_chain
from monai_ext.prompts.masks import (
    background_cells,
    official_candidate_tokens,
    official_tokens,
    paper_tokens,
    valid_cells,
)
from monai_ext.prompts.parts import foreground_features, part_sets
from monai_ext.prompts.place import CUT, implausibility, near_cells, place_prior, to_cells, weigh_maps, within
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
from monai_ext.prompts.ranges import RANGES, Counts, parse_counts
from monai_ext.prompts.retrieval import DISTANCES, Cost, Distance, Retrieval, retrieve_masks
from monai_ext.prompts.ties import LOGIT_TOLERANCE, first_maximum, first_minimum
from monai_ext.prompts.translation import fit_translation

MODES = ("paper", "official")
NEGATIVES = ("background", "lowest")
ATTENTION = ("none", "guided")
REFERENCE_SLICES = ("matched", "all")
BOX_USES = ("points", "box", "both", "region")
PLACE = ("points", "negatives", "candidates", "cut")
"""Pieces of ``place: prior``."""
PIECES = (*PLACE, "neighbours")
SHIFT_FITS = ("phase", "translation", "none")
BEST_USE = "region"
BOX_MARGIN = 0.25
"""Share of a previous box's sides by which it grows, on each side, to seek points in: objects move slowly."""
COMPARABLE = ("position", "relative")
"""Rules of matching slices that say where a structure of the reference lies on the target."""


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
    """One member of the retrieval grid: its counts, its prompt and, for attention "guided", its bias [1, g, g]."""

    n_pos: int
    n_neg: int
    prompt: Prompt
    bias: Tensor | None = None


@dataclass(frozen=True)
class Link:
    """A slice of a structure whose candidate is chosen together with those of its neighbours.

    Attributes:
        costs: ``[K]`` of the candidates.
        masks: ``[K, h, w]`` bool, the candidates at half the resolution.
        choose: number of a candidate -> the result with it.
    """

    costs: Tensor
    masks: Tensor
    choose: Callable[[int], SliceResult]


@dataclass
class ChosenResult(SliceResult):
    """A result that may be chosen anew."""

    link: Link | None = None


class P2SamInferer(ReferenceInferer):
    """Segment follow-up images from one annotated image of the patient (P²SAM).

    A user's clicks (:class:`monai_ext.inferers.reference_inferer.Click`) are added to the points of every candidate;
    where the reference has nothing to say of a structure, positive clicks prompt alone. A click that names no structure
    is taken for the one whose automatic mask is likeliest there. The paper has no clicks.

    Args:
        labels: name -> value of the structures.
        load_reference: loads references.
        n_pos: fewest and most positive points (parts of the foreground), the retrieval range, or text as in the
            paper's tables, "1,5-10". One number, ``[4, 4]``, leaves one candidate: no retrieval (Table 6, w.o.).
        n_neg: likewise of negative points; ``[0, 0]`` prompts with positives alone.
        mode: ``paper`` or ``official``, see the module.
        negatives: ``background`` places one negative for each part of the background (medical images), ``lowest``
            a single one where the mean similarity to the foreground parts is lowest (natural images).
        slice_match: see :class:`ReferenceInferer`.
        seed: of k-means++.
        reference_image: see :class:`ReferenceInferer`.
        reference_label: see :class:`ReferenceInferer`.
        distance: ``wasserstein`` (Eq. 5), or ``hungarian`` or ``jensen_shannon`` (Table 7); see
            :func:`monai_ext.prompts.retrieval.retrieve_masks`.
        n_range: a row of Tables 9 and 10 in place of ``n_pos`` and ``n_neg``, a name of
            :data:`monai_ext.prompts.ranges.RANGES`.
        previous_box: where a structure was in the frame before regularises its prompts (Appendix E, "Similar Objects").
            ``points``: positive points are sought in its box there, grown by :data:`BOX_MARGIN` of its sides;
            ``box``: the box goes to the decoder beside the points; ``both``; ``region``: as ``points``, and candidate
            masks are cut to the grown box before the retrieval; True is :data:`BEST_USE`. The first frame takes the
            reference's box. The paper shows the idea alone; how the box is used is chosen here. A
            structure absent before is prompted without a box.
        run_dir: folder whose ``masks`` hold the masks of earlier cases, for ``previous_box``.
        attention: ``none`` or ``guided``, see the module.
        reference_slices: whose features make the parts and F_R^f: of the ``matched`` slice, as in the paper, or of
            ``all`` slices of the reference that hold the structure, which is what a network tuned on the reference
            sees. A structure that the matched slice lacks is left out either way.
        place: how the place of a structure in the reference counts, which goes beyond the paper
            (:mod:`monai_ext.prompts.place`): ``none``, ``prior`` (all of :data:`PLACE`), or some of these, such as
            "points,cut".
            ``points``: similarities of positive points are weighted by the prior; ``negatives``: background parts come
            from the neighbourhood of the structure, and their points are sought there, not in the air;
            ``candidates``: the distance is multiplied by 1 + :func:`~monai_ext.prompts.place.implausibility`; ``cut``:
            candidate masks end where the prior does. ``neighbours``, which is no part of ``prior``: candidates of all
            slices are chosen together, so that neighbouring masks agree (:mod:`monai_ext.prompts.chain`).
        shift_fit: how the prior is moved to where the patient lies in the target, from the images alone: ``phase``: by
            a shift in plane (:func:`monai_ext.prompts.place.fit_shift`); ``translation``: the reference is moved in
            space before its slices are matched (:func:`monai_ext.prompts.translation.fit_translation`); ``none``.
        cycle_check: segment each reference slice back from the mask that it led to; its Dice is the feature ``cycle``
            of the review score. Takes about as long as the segmentation.

    Raises:
        UserError: for an unknown name among these, an impossible range, ``place`` or ``previous_box`` with ``mode:
            official`` or ``slice_match: oracle_centre``, which know no such thing, or ``shift_fit: translation``
            without ``slice_match: position``.

    Example:
        >>> inferer = P2SamInferer({"LV": 3}, ReferenceLoader(transform, {"LV": 3}))
        >>> logits = inferer(image[None], sam, "visit_1.nii.gz", "visit_1_label.nii.gz")  # [1, 1, H, W, D]
        >>> logits, details = inferer.segment_case(image[None], sam, "visit_1.nii.gz", "visit_1_label.nii.gz")
        >>> details.rows[0]["distance"]
        0.31
    """

    takes_clicks = True
    checks_reference = True

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
        previous_box: bool | str = False,
        run_dir: str | PathLike[str] | None = None,
        attention: str = "none",
        reference_slices: str = "matched",
        place: str | Sequence[str] = "none",
        shift_fit: str = "phase",
        cycle_check: bool = False,
    ) -> None:
        super().__init__(labels, load_reference, slice_match, reference_image, reference_label)
        if mode not in MODES:
            raise UserError(f"mode {mode!r} is unknown: choose one of {', '.join(MODES)}.")
        if negatives not in NEGATIVES:
            raise UserError(f"negatives {negatives!r} is unknown: choose one of {', '.join(NEGATIVES)}.")
        if distance not in DISTANCES:
            raise UserError(f"distance {distance!r} is unknown: choose one of {', '.join(DISTANCES)}.")
        if n_range is not None and n_range not in tuple(RANGES):
            raise UserError(f"n_range {n_range!r} is unknown: choose one of {', '.join(RANGES)}.")
        n_pos, n_neg = (n_pos, n_neg) if n_range is None else RANGES[n_range]
        if attention not in ATTENTION:
            raise UserError(f"attention {attention!r} is unknown: choose one of {', '.join(ATTENTION)}.")
        if reference_slices not in REFERENCE_SLICES:
            raise UserError(
                f"reference_slices {reference_slices!r} is unknown: choose one of {', '.join(REFERENCE_SLICES)}."
            )
        self.attention, self.reference_slices = attention, reference_slices
        self.n_pos, self.n_neg = _counts("n_pos", n_pos, 1), _counts("n_neg", n_neg, 0)
        if _box_use(previous_box) and (mode == "official" or slice_match not in COMPARABLE):
            raise UserError("previous_box needs --mode paper and --slice_match position or relative.")
        self.place = _place_pieces(place)
        if self.place and (mode == "official" or slice_match not in COMPARABLE):
            raise UserError("place needs --mode paper and --slice_match position or relative.")
        if shift_fit not in SHIFT_FITS:
            raise UserError(f"shift_fit {shift_fit!r} is unknown: choose one of {', '.join(SHIFT_FITS)}.")
        if shift_fit == "translation" and slice_match != "position":
            raise UserError("shift_fit translation needs --slice_match position.")
        self.shift_fit = shift_fit
        self._place: Place | None = None
        self._links: dict[tuple[int, int], Link] = {}
        self.cycle_check = cycle_check
        self._served: dict[int, list[MatchedSlice]] = {}
        self.distance = distance
        self.previous_box = _box_use(previous_box)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self._before: PreviousFrame | None = None
        self.mode, self.negatives, self.seed = mode, negatives, seed
        self._loaded: list[Reference] = []
        self._parts: dict[tuple[Any, ...], ReferenceParts | None] = {}

    def begin_case(
        self,
        image: MetaTensor,
        modality: str | None,
        previous: Any = None,
        previous_image: Any = None,
        previous_modality: Any = None,
        **entries: Any,
    ) -> dict[str, Any]:
        """Load the mask of the case before, where ``previous_box`` asks for it.

        Args:
            image: [C, H, W, D] in the input frame.
            modality: of the case.
            previous: name of the case before it, whose mask ``run_dir`` holds; none or "": the reference is before it.
            previous_image: its file.
            previous_modality: its modality, for its intensity window; None: the case's.
            entries: see :class:`ReferenceInferer`.
        """
        self._before, self._place, self._image = None, None, image
        self._links, self._served = {}, {}
        name = single_value(previous)
        if self.previous_box and name:
            if self.run_dir is None:
                raise ValueError("previous_box needs run_dir, the folder of the masks")
            mask = find_mask(self.run_dir, name)
            seen_with = modality if previous_modality is None else single_value(previous_modality)
            frame = self.load_reference.load(single_value(previous_image), str(mask), seen_with)
            self._before = self._frame(frame)
        return super().begin_case(image, modality, **entries)

    def segment_case(
        self, inputs: Tensor, network: PromptableNetwork, *args: Any, **entries: Any
    ) -> tuple[MetaTensor, CaseDetails]:
        """Segment one case and, for ``cycle_check``, its reference back; see :class:`ReferenceInferer`."""
        logits, details = super().segment_case(inputs, network, *args, **entries)
        if self.cycle_check:
            self._check_cycle(network, logits.as_tensor()[0], details.rows)
        return logits, details

    @torch.no_grad()
    def _check_cycle(self, network: PromptableNetwork, logits: Tensor, rows: Sequence[dict[str, Any]]) -> None:
        """Add the feature ``cycle`` to the rows, see :func:`monai_ext.inferers.cycle.cycle_dice`."""
        use, pieces, kept, served = self.previous_box, self.place, dict(self._parts), dict(self._served)
        self.previous_box, self.place = "", ()
        try:
            values = list(self.labels.values())
            found = cycle_dice(self.segment_slice, network, self._image, logits, values, served)
        finally:
            self.previous_box, self.place, self._parts = use, pieces, kept
        for row in rows:
            if "features" in row:
                row["features"]["cycle"] = found.get((list(self.labels).index(row["label"]), row["slice"]))

    def _lay(self, image: MetaTensor, references: Sequence[Reference]) -> None:
        """Move references to where the patient lies in the image, for ``shift_fit: translation``."""
        if self.shift_fit != "translation" or not self.place or image.meta.get("slice_axis") == "":
            return
        target = image.as_tensor().mean(dim=0).cpu().numpy()
        for reference in references:
            reference.move(np.zeros(3))
            planes = reference.image.as_tensor().mean(dim=0).cpu().numpy()
            affines = (np.asarray(one.affine, float) for one in (image, reference.image))
            reference.move(fit_translation(target, next(affines), planes, next(affines)))

    def _frame(self, frame: Reference) -> PreviousFrame:
        matches = match_slices(self._image, frame.image, self.slice_match)
        by_position = self.slice_match == "position" and self._image.meta.get("slice_axis") != ""
        return PreviousFrame(frame, matches, self._image, by_position)

    def _expected(self, target: TargetSlice, matched: Sequence[MatchedSlice], value: int) -> Tensor | None:
        """Return where the last reference has a structure, in the target's frame: [H, W] bool; None: not known."""
        if not self.place or not matched:
            return None
        reference = matched[-1].reference
        if self._place is None or self._place.reference is not reference:
            matches = match_slices(self._image, reference.image, self.slice_match)
            by_position = self.slice_match == "position" and self._image.meta.get("slice_axis") != ""
            shift = None if self.shift_fit == "phase" else (0, 0)
            self._place = Place(reference, matches, self._image, by_position, shift)
        return self._place.mask(target.index, value)

    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Segment every structure on one slice; see :class:`ReferenceInferer`."""
        parts = [self._reference_parts(network, matched, value) for value in self.labels.values()]
        absent = "reference_absent" if matched else "outside_reference"
        if matched:
            self._served[target.index] = [m for m in matched if m.reference is matched[-1].reference]
        if not any(parts) and not target.clicks:
            return [SliceResult(None, absent, {}) for _ in parts]
        embeddings = target.encode(network)
        if self.previous_box and self._before is None and matched:
            self._before = self._frame(matched[-1].reference)
        boxes = [self._box(target, value) for value in self.labels.values()]
        expected = [self._expected(target, matched, value) for value in self.labels.values()]
        networks = [self._network_of(network, value) for value in self.labels.values()]
        nobody = embeddings.features.new_zeros(0, 2)
        results = [
            SliceResult(None, absent, {})
            if p is None
            else self._segment(own, target, embeddings, p, _prompt(nobody, nobody), box, mask)
            for own, p, box, mask in zip(networks, parts, boxes, expected, strict=True)
        ]
        for number, clicks in _owners(target.clicks, list(self.labels), results).items():
            clicked, p = _clicked(clicks, nobody), parts[number]
            if p is not None:
                results[number] = self._segment(
                    networks[number], target, embeddings, p, clicked, boxes[number], expected[number]
                )
            elif bool((clicked.labels > 0).any()):
                results[number] = self._by_clicks(network, embeddings, clicked)
        for number, result in enumerate(results):
            if isinstance(result, ChosenResult) and result.link is not None:
                self._links[number, target.index] = result.link
        return results

    def _network_of(self, network: PromptableNetwork, value: int) -> PromptableNetwork:
        """Return the network whose decoder segments a structure; the embeddings are those of ``network``."""
        return network

    def _by_clicks(self, network: PromptableNetwork, embeddings: Embeddings, clicked: Prompt) -> SliceResult:
        """Decode a user's clicks alone."""
        logits, _ = network.decode(embeddings, [clicked])
        mask = network.to_image(logits, embeddings.size)[0, 0]
        points = torch.cat([clicked.points, clicked.labels[:, None]], dim=1).tolist()
        return SliceResult(mask, "ok", {"points": points})

    def _box(self, target: TargetSlice, value: int) -> Tensor | None:
        return None if self._before is None else self._before.box(target.index, value)

    def _segment(
        self,
        network: PromptableNetwork,
        target: TargetSlice,
        embeddings: Embeddings,
        parts: ReferenceParts,
        clicked: Prompt,
        box: Tensor | None = None,
        expected: Tensor | None = None,
    ) -> SliceResult:
        candidates = [
            Candidate(c.n_pos, c.n_neg, _joined(c.prompt, clicked), c.bias)
            for c in self._candidates(network, target, embeddings, parts, box, expected)
        ]
        if self.attention == "guided":
            logits = self._decode_guided(network, target, embeddings, candidates, parts)
        else:
            logits = self._decode(network, target, embeddings, [c.prompt for c in candidates])
        masks = network.to_image(logits, embeddings.size)[:, 0]
        if box is not None and self.previous_box == "region" and not len(clicked.points):  # a user knows better
            inside = pixels_in_box(box, network.stride, embeddings.size, BOX_MARGIN).to(masks.device)
            masks = masks.masked_fill(~inside, BACKGROUND)
        if expected is not None and "cut" in self.place and not len(clicked.points):
            reached = within(expected, network.stride, CUT).to(masks.device)
            masks = masks.masked_fill(~reached, BACKGROUND)
        cells = self._candidate_cells(network, logits[:, 0], masks)
        found, costs = self._retrieve(network, parts, embeddings, masks, cells, expected)
        if found.index is None:
            return SliceResult(None, "no_foreground", {"recovered": parts.recovered})
        link = None
        if "neighbours" in self.place and not len(clicked.points):

            def choose(index: int) -> SliceResult:
                return _result(candidates, masks, Retrieval(index, found.distances, found.margin), parts.recovered)

            link = Link(costs, (masks > 0)[:, ::2, ::2].cpu(), choose)
        return replace(_result(candidates, masks, found, parts.recovered), link=link)

    def _retrieve(
        self,
        network: PromptableNetwork,
        parts: ReferenceParts,
        embeddings: Embeddings,
        masks: Tensor,
        cells: Tensor,
        expected: Tensor | None,
    ) -> tuple[Retrieval, Tensor]:
        """Choose a candidate: by distance (Eq. 3), for place "candidates" times 1 + its implausibility.

        Returns:
            The choice and what it was made by, ``[K]`` float64.
        """
        cost: Cost = "cosine" if self.mode == "paper" else "sqeuclidean"
        judged = expected is not None and "candidates" in self.place
        prune = not judged and "neighbours" not in self.place
        found = retrieve_masks(
            parts.tokens, embeddings.features[0], cells, cost, prune, distance=self.distance, seed=self.seed
        )
        costs = torch.tensor([float("inf") if d is None else d for d in found.distances], dtype=torch.float64)
        if expected is None or not judged or found.index is None:
            return found, costs
        costs = costs * (1 + implausibility(masks > 0, expected, place_prior(expected, network.stride)))
        return Retrieval(int(first_minimum(costs)), found.distances, found.margin), costs

    def _describe(
        self,
        rows: Sequence[dict[str, Any]],
        logits: Tensor,
        references: Sequence[Reference],
        matches: Sequence[Sequence[int | None]],
        own_dice: dict[str, float],
    ) -> None:
        """Choose the candidates of neighbouring slices together, where that is asked for; then describe the masks."""
        for channel, name in enumerate(self.labels):
            own = {row["slice"]: row for row in rows if row["label"] == name}
            for slices in _runs(k for number, k in self._links if number == channel):
                links = [self._links[channel, k] for k in slices]
                chosen = choose_chain([link.costs for link in links], [link.masks for link in links])
                for k, link, index in zip(slices, links, chosen, strict=True):
                    result = link.choose(index)
                    logits[channel, :, :, k] = BACKGROUND if result.logits is None else result.logits.float().cpu()
                    own[k].update(status=result.status, **result.details)
        super()._describe(rows, logits, references, matches, own_dice)

    def check_reference(self, network: PromptableNetwork, reference: Reference) -> dict[str, float]:
        """Segment a reference from itself, without a previous box or a place; see :class:`ReferenceInferer`."""
        use, pieces, self.previous_box, self.place = self.previous_box, self.place, "", ()
        try:
            return super().check_reference(network, reference)
        finally:
            self.previous_box, self.place, self._served = use, pieces, {}

    def _reference_parts(
        self, network: PromptableNetwork, matched: Sequence[MatchedSlice], value: int
    ) -> ReferenceParts | None:
        """Cluster the references of one structure, once for the slices they serve; None where it is absent."""
        if self._loaded is not self.load_reference.loaded:
            self._loaded, self._parts = self.load_reference.loaded, {}
        held = [m for m in matched if m.shows(value)]
        if held and self.reference_slices == "all":
            held = _all_slices([m.reference for m in matched], value)
        key = (value, self.place, *(m.key for m in held))
        if key not in self._parts:
            self._parts[key] = self._cluster(network, held, value)
        return self._parts[key]

    def _cluster(
        self, network: PromptableNetwork, matched: Sequence[MatchedSlice], value: int
    ) -> ReferenceParts | None:
        tokens, background, recovered = [], [], False
        for m in matched:
            embeddings = m.reference.embed(network, m.index)
            inside, outside, small = self._tokens(network, embeddings, m.label == value)
            if "negatives" in self.place:
                outside = self._near(network, embeddings, m.label == value, outside)
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

    def _tokens(self, network: PromptableNetwork, embeddings: Embeddings, mask: Tensor) -> tuple[Tensor, Tensor, bool]:
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

    def _near(self, network: PromptableNetwork, embeddings: Embeddings, mask: Tensor, otherwise: Tensor) -> Tensor:
        """Background features in the neighbourhood of a structure; all of them where it has no neighbourhood."""
        grid = (network.grid, network.grid)
        inside, _ = paper_tokens(mask, network.stride, grid)
        near = near_cells(mask, network.stride, grid) & ~inside.cpu()
        features = embeddings.features[0]
        return foreground_features(features, near.to(features.device)) if bool(near.any()) else otherwise

    def _candidates(
        self,
        network: PromptableNetwork,
        target: TargetSlice,
        embeddings: Embeddings,
        parts: ReferenceParts,
        box: Tensor | None = None,
        expected: Tensor | None = None,
    ) -> list[Candidate]:
        """Prompts of the full grid n_pos x n_neg; numbers of parts that the reference cannot fill are left out.

        With negatives "lowest" there is one negative point or, where n_neg begins at 0, none.
        """
        features = embeddings.features[0]
        sought = box if self.previous_box in ("points", "both", "region") else None
        given = box if self.previous_box in ("box", "both") else None
        candidates = []
        grid, prior, near = (network.grid, network.grid), None, None
        if expected is not None and "points" in self.place:
            prior = to_cells(place_prior(expected, network.stride), network.stride, grid)
        if expected is not None and "negatives" in self.place:
            near = near_cells(expected, network.stride, grid).float()
        negative = {n: self._points(network, target, embeddings, p, prior=near) for n, p in parts.negative.items()}
        for n_pos, features_pos in parts.positive.items():
            positive = self._points(network, target, embeddings, features_pos, sought, prior)
            bias = self._bias(network, target, embeddings, features_pos) if self.attention == "guided" else None
            if self.negatives == "lowest" and max(self.n_neg) > 0:
                negative = {1: self._lowest(network, target, embeddings, cosine_maps(features_pos, features))}
            if 0 in self.n_neg or not negative:
                candidates.append(Candidate(n_pos, 0, _prompt(positive, positive[:0], given), bias))
            candidates += [
                Candidate(n_pos, n_neg, _prompt(positive, points, given), bias) for n_neg, points in negative.items()
            ]
        return candidates

    def _points(
        self,
        network: PromptableNetwork,
        target: TargetSlice,
        embeddings: Embeddings,
        parts: Tensor,
        box: Tensor | None = None,
        prior: Tensor | None = None,
    ) -> Tensor:
        """Points of highest similarity (Eq. 2, times a prior), one a part: [n, 2] (x, y) in the input frame."""
        maps = cosine_maps(parts, embeddings.features[0])
        if prior is not None:
            maps = weigh_maps(maps, prior)
        if self.mode == "paper":
            valid = valid_cells(embeddings.size, network.stride, (network.grid, network.grid))
            if box is not None:
                valid &= cells_in_box(box, network.stride, (network.grid, network.grid), BOX_MARGIN)
            return argmax_points(maps, network.stride, valid, embeddings.size)
        return official_points(maps, network.image_size, embeddings.size, target.original_size)

    def _lowest(self, network: PromptableNetwork, target: TargetSlice, embeddings: Embeddings, maps: Tensor) -> Tensor:
        if self.mode == "paper":
            valid = valid_cells(embeddings.size, network.stride, (network.grid, network.grid))
            return lowest_point(maps, network.stride, valid, embeddings.size)
        return official_lowest_point(maps, network.image_size, embeddings.size, target.original_size)

    def _bias(self, network: PromptableNetwork, target: TargetSlice, embeddings: Embeddings, parts: Tensor) -> Tensor:
        """Bias of the attention by the mean map of the parts, [1, g, g]."""
        mean_map = cosine_maps(parts, embeddings.features[0]).mean(dim=0)
        if self.mode == "paper":
            return target_attention(mean_map, valid_cells(embeddings.size, network.stride, (network.grid,) * 2))
        return official_target_attention(mean_map, network.image_size, embeddings.size, target.original_size)

    def _decode_guided(
        self,
        network: PromptableNetwork,
        target: TargetSlice,
        embeddings: Embeddings,
        candidates: list[Candidate],
        parts: ReferenceParts,
    ) -> Tensor:
        """As :meth:`_decode`, with guidance in the first pass."""
        prompts = [c.prompt for c in candidates]
        bias = torch.cat([c.bias for c in candidates if c.bias is not None])
        meant = parts.tokens.mean(dim=0, keepdim=True)
        if self.mode == "official":
            return guided_cascade(network, embeddings, prompts, target.original_size, bias, meant)
        return network.decode(embeddings, prompts, attention_bias=bias, target_embedding=meant)[0]

    def _decode(
        self, network: PromptableNetwork, target: TargetSlice, embeddings: Embeddings, prompts: list[Prompt]
    ) -> Tensor:
        """Low-resolution logits of each candidate, [K, 1, 4g, 4g]: one pass, or the authors' cascade of three."""
        logits, _ = network.decode(embeddings, prompts)
        if self.mode == "paper":
            return logits
        logits, _ = network.decode(embeddings, prompts, mask_input=logits)
        frame = network.to_image(logits, embeddings.size)
        boxes = [original_box(mask, target.original_size) for mask in frame]
        boxed = [Prompt(p.points, p.labels, box) for p, box in zip(prompts, boxes, strict=True)]
        logits, _ = network.decode(embeddings, boxed, mask_input=logits)
        return logits

    def _candidate_cells(self, network: PromptableNetwork, logits: Tensor, masks: Tensor) -> Tensor:
        """Foreground cells of each candidate mask, [K, g, g] bool."""
        grid = (network.grid, network.grid)
        if self.mode == "official":
            return official_candidate_tokens(logits, grid)
        empty = torch.zeros(grid, dtype=torch.bool, device=masks.device)
        return torch.stack([paper_tokens(m, network.stride, grid)[0] if bool(m.any()) else empty for m in masks > 0])


def _result(candidates: Sequence[Candidate], masks: Tensor, found: Retrieval, recovered: bool) -> ChosenResult:
    """Return what is said of the candidate that was chosen; there must be one."""
    index = cast(int, found.index)
    chosen = candidates[index]
    details = {
        "recovered": recovered,
        "n_pos": chosen.n_pos,
        "n_neg": chosen.n_neg,
        "distance": found.distance,
        "margin": found.margin,
        "points": torch.cat([chosen.prompt.points, chosen.prompt.labels[:, None]], dim=1).tolist(),
        "features": {"distance": found.distance, "margin": found.margin, "spread": spread(masks > 0, index)},
    }
    return ChosenResult(masks[index], "ok", details)


def _runs(slices: Iterable[int]) -> list[list[int]]:
    """Divide slices into runs of neighbours, ascending.

    >>> _runs([5, 1, 2])
    [[1, 2], [5]]
    """
    runs: list[list[int]] = []
    for k in sorted(slices):
        if runs and runs[-1][-1] == k - 1:
            runs[-1].append(k)
        else:
            runs.append([k])
    return runs


def _all_slices(references: Sequence[Reference], value: int) -> list[MatchedSlice]:
    """Return every slice of the references that holds a structure."""
    return [
        MatchedSlice(reference, index)
        for reference in references
        for index in (reference.label[0] == value).flatten(0, 1).any(dim=0).nonzero()[:, 0].tolist()
    ]


def _box_use(value: bool | str) -> str:
    """Return how the box of the frame before is used, "" for not at all; MONAI's command line gives text."""
    text = str(value).lower()
    use = {"true": BEST_USE, "false": "", "none": ""}.get(text, text)
    if use not in ("", *BOX_USES):
        raise UserError(f"previous_box {value!r} is unknown: choose false, true, {', '.join(BOX_USES)}.")
    return use


def _place_pieces(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the pieces of :data:`PIECES` that are used, in their order."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    if names in (["none"], ["prior"]):
        return PLACE if names == ["prior"] else ()
    if not names or not set(names) <= set(PIECES):
        raise UserError(f"place {value!r} is unknown: choose none, prior, or some of {', '.join(PIECES)}.")
    return tuple(name for name in PIECES if name in names)


def _prompt(positive: Tensor, negative: Tensor, box: Tensor | None = None) -> Prompt:
    labels = torch.cat([positive.new_ones(len(positive)), negative.new_zeros(len(negative))])
    return Prompt(torch.cat([positive, negative]), labels, None if box is None else box.to(positive.device))


def _joined(automatic: Prompt, clicked: Prompt) -> Prompt:
    if not len(clicked.points):
        return automatic
    return Prompt(
        torch.cat([automatic.points, clicked.points.to(automatic.points)]),
        torch.cat([automatic.labels, clicked.labels.to(automatic.labels)]),
        automatic.box,
    )


def _clicked(clicks: Sequence[Click], like: Tensor) -> Prompt:
    points = like.new_tensor([[c.x, c.y] for c in clicks])
    return Prompt(points, like.new_tensor([float(c.positive) for c in clicks]), None)


def _owners(clicks: Sequence[Click], names: list[str], results: Sequence[SliceResult]) -> dict[int, list[Click]]:
    """Sort clicks by the structure they are meant for: the named one, or the likeliest at that pixel."""
    owners: dict[int, list[Click]] = {}
    for click in clicks:
        if click.structure is None:
            at = torch.tensor(
                [
                    float("-inf")
                    if r.logits is None
                    else float(r.logits[_pixel(click.y, r.logits, 0), _pixel(click.x, r.logits, 1)])
                    for r in results
                ]
            )
            number = int(first_maximum(at, tolerance=LOGIT_TOLERANCE))
        else:
            number = names.index(click.structure)
        owners.setdefault(number, []).append(click)
    return owners


def _pixel(position: float, logits: Tensor, axis: int) -> int:
    return min(max(round(position), 0), logits.shape[axis] - 1)


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
