"""The template of methods that segment an image by references, annotated images of the same or of another patient.

A volume is taken slice by slice: match the reference slice, encode the target slice once, segment each structure.
A method overrides :meth:`ReferenceInferer.segment_slice`. No label of the target reaches this module.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.data.case_details import CaseDetails
from monai_ext.data.pairs import single_value
from monai_ext.errors import UserError
from monai_ext.inferers.case_inferer import CaseInferer
from monai_ext.inferers.encoding import encode_slice
from monai_ext.inferers.nearest import nearest_reference
from monai_ext.inferers.reference import Paths, Reference, ReferenceLoader
from monai_ext.inferers.slice_features import dice, mask_features
from monai_ext.inferers.slice_match import check_rule, match_slices, middle_slice
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.transforms.request import REQUEST
from monai_ext.transforms.sam_input import choose_extent, frame_extent, frame_size, input_points, plane_size

logger = logging.getLogger(__name__)

BACKGROUND = -20.0
"""Logit of pixels for which no mask was decoded."""


@dataclass(frozen=True)
class MatchedSlice:
    """A slice of a reference that serves a slice of the target.

    Attributes:
        reference: the annotated image.
        index: along its D.
        values: of the structures that it serves; None: all.
    """

    reference: Reference
    index: int
    values: frozenset[int] | None = None

    @property
    def label(self) -> Tensor:
        """[H, W] integer, in the reference's input frame."""
        return self.reference.label[0, :, :, self.index]

    def shows(self, value: int) -> bool:
        """Tell whether it serves a structure and shows it."""
        return (self.values is None or value in self.values) and bool((self.label == value).any())

    @property
    def key(self) -> tuple[int, int]:
        """Identity of the slice while its patient's references are loaded."""
        return id(self.reference), self.index


@dataclass(frozen=True)
class TargetSlice:
    """A slice to segment.

    Attributes:
        image: [C, H, W] in the input frame.
        original_size: (h0, w0) of the slice before resampling.
        index: along D.
        clicks: of a user, on this slice.
        frame: rows and columns of the frame that the slice lies in; None: its own.
    """

    image: Tensor
    original_size: tuple[int, int]
    index: int
    clicks: tuple[Click, ...] = ()
    frame: tuple[int, int] | None = None

    def encode(self, network: PromptableNetwork) -> Embeddings:
        """Encode the slice in its patient's frame, see :func:`monai_ext.inferers.encoding.encode_slice`."""
        return encode_slice(network, self.image, self.frame)


@dataclass(frozen=True)
class Click:
    """What a user says of one pixel.

    Attributes:
        x: input-frame pixels along W, centres at integers.
        y: along H.
        positive: the pixel belongs to the structure.
        structure: name of the structure; None where the user has not said.
    """

    x: float
    y: float
    positive: bool
    structure: str | None


@dataclass
class SliceResult:
    """What a method says of one structure on one slice.

    Attributes:
        logits: [H, W] in the input frame, or None for background.
        status: ``ok``, ``no_foreground`` (every candidate was empty), ``reference_absent`` (the structure is not on
            the matched reference slice), ``outside_reference`` (no reference slice matches).
        details: further columns of the prompt table: counts, distance, margin, points; ``features``, if any, are what
            the method adds to :func:`monai_ext.inferers.slice_features.mask_features`.
        served: the reference slices that served, where these are not the matched ones that serve the structure.
    """

    logits: Tensor | None
    status: str
    details: dict[str, Any]
    served: Sequence[MatchedSlice] = ()


class ReferenceInferer(CaseInferer):
    """Segments a case by references, slice by slice.

    Args:
        labels: name -> value of the structures.
        load_reference: loads references; see :class:`ReferenceLoader`.
        slice_match: rule of :func:`monai_ext.inferers.slice_match.match_slices`; by ``middle`` each structure is served
            by the middle one of the slices that show it.
        reference_image: the reference of every call that brings none (MONAI Label hands over the image alone).
        reference_label: its label.

    Raises:
        UserError: for an unknown rule.

    The rows of a case's details, one for each structure and slice, are those of ``prompts.csv``: ``label, slice,
    reference, reference_slice, status, recovered, n_pos, n_neg, distance, margin, points``; ``reference_number`` is
    that of the first reference that served the slice, among the details' ``references``; rows of masks that were sought
    also have ``features``, for the review score.

    An image that a viewer's request came with (:class:`monai_ext.transforms.request.Requestd`) brings its own
    reference, labels and clicks; these go before the constructor's.
    """

    takes_clicks = False
    """Whether the method heeds a user's clicks."""

    checks_reference = False
    """Whether the method can segment a reference from itself, as :meth:`check_reference` asks."""

    def __init__(
        self,
        labels: dict[str, int],
        load_reference: ReferenceLoader,
        slice_match: str = "position",
        reference_image: Paths | None = None,
        reference_label: Paths | None = None,
    ) -> None:
        super().__init__()
        check_rule(slice_match)
        self.own_labels, self.load_reference, self.slice_match = labels, load_reference, slice_match
        self.labels = labels  # of the current case
        self.reference_image, self.reference_label = reference_image, reference_label
        self._checked: tuple[Any, dict[str, float]] = (None, {})
        self._middles: tuple[Any, dict[tuple[int, int], int | None]] = (None, {})

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **entries: Any) -> MetaTensor:
        """Return the logits of a case, without a check of its references; see :meth:`segment_case`."""
        return self.segment_case(inputs, network, *args, self_check=False, **entries)[0]

    @torch.no_grad()
    def segment_case(
        self,
        inputs: Tensor,
        network: PromptableNetwork,
        reference_image: Paths | None = None,
        reference_label: Paths | None = None,
        modality: Any = None,
        oracle_slices: Any = None,
        reference: Any = None,
        reference_choice: Any = None,
        reference_modality: Any = None,
        *,
        self_check: bool = True,
        **entries: Any,
    ) -> tuple[MetaTensor, CaseDetails]:
        """Segment one case.

        Args:
            inputs: [1, C, H, W, D] in the input frame, with its affine and ``plane_size``.
            network: the promptable model.
            reference_image: path or paths of this patient's references.
            reference_label: paths of their labels.
            modality: of the case, for the intensity window of references that ``reference_modality`` does not name.
            oracle_slices: for ``slice_match: oracle_centre`` only.
            reference: names of the references, for the rows; None: they have none.
            reference_choice: ``nearest`` takes the one that :func:`nearest_reference` finds; else all serve.
            reference_modality: of each reference, for its intensity window: a patient's CT may serve an MR.
            self_check: where the method can, segment each patient's reference from itself before the first target, and
                warn where that fails; the result is the feature ``self_check``.
            entries: what a method takes besides, see :meth:`begin_case`.

        Returns:
            Logits [1, L, H, W, D], one channel a structure in the order of ``labels``, and the case's details.
        """
        image = _single_case(inputs)
        request = image.meta.get(REQUEST) or {}
        self.labels = request.get("labels", self.own_labels)
        clicks = self._clicks(image, request.get("clicks", ()))
        extra = self.begin_case(image, single_value(modality), **entries)
        references = self.load_reference(
            request.get("reference_image", reference_image if reference_image is not None else self.reference_image)
            or [],
            request.get("reference_label", reference_label if reference_label is not None else self.reference_label)
            or [],
            _modalities(request) or _texts(reference_modality) or single_value(modality),
            self.labels,
            frame_extent(image),
        )
        _report_scales(image, references)
        self._lay(image, references)
        oracle = _range(oracle_slices)
        asked = None if self.slice_match == "oracle_centre" else self.labels.values()  # its authors take any structure
        held = [r.held_slices(asked) for r in references]
        matches = [
            match_slices(image, r.image, self.slice_match, h, oracle) for r, h in zip(references, held, strict=True)
        ]
        names = _names(reference, len(references))
        choice = request.get("reference_choice", single_value(reference_choice))
        if choice == "nearest" and len(references) > 1:
            chosen = nearest_reference(network, image.as_tensor(), references, matches, frame_size(image))
            references, matches, names = [references[chosen]], [matches[chosen]], names[chosen : chosen + 1]
        own_dice = self._self_check(network) if self_check else {}
        rows: list[dict[str, Any]] = []
        planes = image.as_tensor()
        height, width, depth = image.shape[1:]
        logits = torch.full((len(self.labels), height, width, depth), BACKGROUND)
        for k in range(depth):
            matched = self._matched(k, references, matches)
            target = TargetSlice(planes[..., k], plane_size(image), k, clicks.get(k, ()), frame_size(image))
            for channel, result in enumerate(self._results(network, target, matched, extra)):
                if result.logits is not None:
                    logits[channel, :, :, k] = result.logits.float().cpu()
                rows.append(self._row(channel, k, matched, result, references, names))
        _warn_of_unserved(rows, self.slice_match, str(image.meta.get("filename_or_obj", "the image")))
        self._describe(rows, logits, references, matches, own_dice)
        return MetaTensor(logits[None]), CaseDetails(rows, references=list(references))

    def begin_case(self, image: MetaTensor, modality: str | None, **entries: Any) -> dict[str, Any]:
        """Prepare for a case and return what :meth:`segment_slice` is given on each of its slices, by name.

        Args:
            image: [C, H, W, D] in the input frame.
            modality: of the case.
            entries: of the case, but for those that every method takes.
        """
        return entries

    def _matched(
        self, k: int, references: Sequence[Reference], matches: Sequence[Sequence[int | None]]
    ) -> list[MatchedSlice]:
        """Return the slices of the references that serve slice ``k`` of the target, each once."""
        if self.slice_match != "middle":
            found = [(r, m[k]) for r, m in zip(references, matches, strict=True)]
            return [MatchedSlice(reference, index) for reference, index in found if index is not None]
        matched = []
        for reference in references:
            own: dict[int, set[int]] = {}
            for value in self.labels.values():
                if (index := self._middle(reference, value)) is not None:
                    own.setdefault(index, set()).add(value)
            matched += [MatchedSlice(reference, index, frozenset(own[index])) for index in sorted(own)]
        return matched

    def _matches_of(
        self, value: int, references: Sequence[Reference], matches: Sequence[Sequence[int | None]]
    ) -> Sequence[Sequence[int | None]]:
        """Return which slices serve one structure."""
        if self.slice_match != "middle":
            return matches
        return [[self._middle(r, value)] * len(m) for r, m in zip(references, matches, strict=True)]

    def _middle(self, reference: Reference, value: int) -> int | None:
        """Return the middle slice of those of a reference that show a structure; None where none does."""
        if self._middles[0] is not self.load_reference.loaded:  # another list: other references
            self._middles = self.load_reference.loaded, {}
        key = (id(reference), value)
        if key not in self._middles[1]:
            self._middles[1][key] = middle_slice(reference.held_slices([value]))
        return self._middles[1][key]

    def _lay(self, image: MetaTensor, references: Sequence[Reference]) -> None:
        """Lay references elsewhere in space before slices are matched; here they stay as their files say."""

    def _describe(
        self,
        rows: Sequence[dict[str, Any]],
        logits: Tensor,
        references: Sequence[Reference],
        matches: Sequence[Sequence[int | None]],
        own_dice: dict[str, float],
    ) -> None:
        """Add to the rows of masks that were sought what is known of them without a label."""
        for row in rows:
            if row["status"] in ("ok", "no_foreground"):
                channel, k = list(self.labels).index(row["label"]), row["slice"]
                value = self.labels[row["label"]]
                own = self._matches_of(value, references, matches)
                known = mask_features(logits[channel], value, k, references, own)
                checked = {"self_check": own_dice[row["label"]]} if row["label"] in own_dice else {}
                row["features"] = {**known, **row.get("features", {}), **checked}

    def _self_check(self, network: PromptableNetwork) -> dict[str, float]:
        """Check the references that are loaded, once, and warn where the network cannot even repeat them."""
        if not self.checks_reference:
            return {}
        if self._checked[0] is not self.load_reference.loaded:
            self._checked = self.load_reference.loaded, self.check_reference(network, self.load_reference.loaded[-1])
            warn_of_self_check(self._checked[1], self.load_reference.loaded[-1].file)
        return self._checked[1]

    def check_reference(self, network: PromptableNetwork, reference: Reference) -> dict[str, float]:
        """Segment a reference from itself: where even that fails, the network cannot serve this patient.

        Of each structure the slice with most of it is segmented, with itself as the matched slice.

        Args:
            network: the promptable model.
            reference: of a patient.

        Returns:
            Dice of each structure that the reference holds, on that slice, in the input frame.
        """
        found = {}
        for channel, (name, value) in enumerate(self.labels.items()):
            areas = (reference.label[0] == value).flatten(0, 1).sum(dim=0)
            if not bool(areas.any()):
                continue
            k = int(areas.argmax())
            plane = reference.image.as_tensor()[..., k]
            target = TargetSlice(plane, plane_size(reference.image), k, (), reference.frame)
            logits = self.segment_slice(network, target, [MatchedSlice(reference, k)])[channel].logits
            truth = reference.label[0, :, :, k] == value
            found[name] = 0.0 if logits is None else dice(logits.cpu() > 0, truth.cpu())
        return found

    def _results(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], extra: dict[str, Any]
    ) -> list[SliceResult]:
        if not matched and not target.clicks:
            return [SliceResult(None, "outside_reference", {})] * len(self.labels)
        return self.segment_slice(network, target, matched, **extra)

    def _clicks(self, image: MetaTensor, given: Sequence[dict[str, Any]]) -> dict[int, tuple[Click, ...]]:
        """Sort a request's clicks by the slice that they lie on."""
        if given and not self.takes_clicks:
            raise UserError(f"{type(self).__name__} heeds no clicks: leave foreground and background out.")
        if not given:
            return {}
        points, slices = input_points(image, [click["index"] for click in given])
        found: dict[int, tuple[Click, ...]] = {}
        for click, (x, y), k in zip(given, points.tolist(), slices.tolist(), strict=True):
            found[k] = (*found.get(k, ()), Click(x, y, click["positive"], click["structure"]))
        return found

    @abstractmethod
    def segment_slice(
        self, network: PromptableNetwork, target: TargetSlice, matched: Sequence[MatchedSlice], **extra: Any
    ) -> list[SliceResult]:
        """Segment every structure of ``labels`` on one slice, from one or more reference slices."""

    def _row(
        self,
        channel: int,
        k: int,
        matched: Sequence[MatchedSlice],
        result: SliceResult,
        references: Sequence[Reference],
        names: Sequence[str],
    ) -> dict[str, Any]:
        """Tell of a structure on a slice, and of the references that served there: some may not reach that far."""
        value = list(self.labels.values())[channel]
        matched = result.served or serving(matched, value)
        numbers = [next(n for n, reference in enumerate(references) if reference is m.reference) for m in matched]
        return {
            "label": list(self.labels)[channel],
            "slice": k,
            "reference": "+".join([names[n] for n in numbers] if names and numbers else names),
            "reference_number": numbers[0] if numbers else None,
            "reference_slice": "+".join(str(m.index) for m in matched),
            "status": result.status,
            **result.details,
        }


LEAST_SELF_CHECK = 0.6
"""Dice of a reference segmented from itself below which a run warns."""


def warn_of_self_check(found: dict[str, float], file: str) -> None:
    """Say in one line which structures of a reference the network cannot repeat, and what may serve better."""
    low = ", ".join(f"{name} {value:.2f}" for name, value in found.items() if value < LEAST_SELF_CHECK)
    if low:
        logger.warning(
            "self-check: segmented from itself, the reference %s gives a Dice of only %s: these weights can hardly "
            "serve this patient; fine-tune on the reference (overlay finetune_prior.yaml) or give other weights with "
            "--checkpoint",
            file,
            low,
        )


def serving(matched: Sequence[MatchedSlice], value: int) -> list[MatchedSlice]:
    """Return the matched slices that serve a structure; those that do not show it tell of the background."""
    return [m for m in matched if m.values is None or value in m.values]


Known = TypeVar("Known")
"""What a method knows of a structure from its references."""


def segment_present(
    network: PromptableNetwork,
    target: TargetSlice,
    known: Sequence[Known | None],
    segment: Callable[[Embeddings, Known], SliceResult],
) -> list[SliceResult]:
    """Encode a slice and segment each structure of which something is known; where nothing is, it is not encoded.

    Args:
        network: encodes the slice.
        target: the slice.
        known: of each structure; None where the matched reference slices lack it.
        segment: what to do with the slice's embeddings and what is known.

    Returns:
        One result a structure, ``reference_absent`` for None.
    """
    absent = SliceResult(None, "reference_absent", {})
    if all(one is None for one in known):
        return [absent] * len(known)
    embeddings = target.encode(network)
    return [absent if one is None else segment(embeddings, one) for one in known]


def _single_case(inputs: Tensor) -> MetaTensor:
    if inputs.ndim != 5 or inputs.shape[0] != 1 or not isinstance(inputs, MetaTensor):
        raise ValueError(f"inputs must be one case, a MetaTensor [1, C, H, W, D], not {tuple(inputs.shape)}")
    return cast(MetaTensor, inputs[0])


def _report_scales(image: MetaTensor, references: Sequence[Reference]) -> None:
    """Say so where a reference has another scale than the target, which was prepared without knowing it."""
    own = frame_extent(image)
    for reference in references:
        other = frame_extent(reference.image)
        if own is not None and choose_extent(own, other) != own:
            logger.warning(
                "%s covers less in plane than its reference %s, and they are compared at different scales: name the "
                "reference in the data list, so that both get one",
                image.meta.get("filename_or_obj", "the image"),
                reference.file,
            )


def _warn_of_unserved(rows: Sequence[Mapping[str, Any]], rule: str, file: str) -> None:
    """Say so where a structure was sought on no slice at all: its empty mask says nothing of the patient."""
    names = list(dict.fromkeys(row["label"] for row in rows))
    sought = {row["label"] for row in rows if row["status"] not in ("reference_absent", "outside_reference")}
    if missing := [name for name in names if name not in sought]:
        logger.warning(
            "%s: %s was not sought, since no slice of the reference that serves by --slice_match %s shows it: its "
            "empty mask says nothing of the image",
            file,
            ", ".join(missing),
            rule,
        )


def _modalities(request: Mapping[str, Any]) -> str | list[str] | None:
    """Return the modality of each reference of a viewer's request, or of all; None where nothing is known."""
    given = request.get("reference_modality") or []
    return given if any(given) else request.get("modality")


def _texts(value: Any) -> list[str]:
    """Flatten what collation makes of several words."""
    return [str(single_value(one)) for one in value] if isinstance(value, (list, tuple)) else []


def _names(value: Any, count: int) -> list[str]:
    names = _texts(value)
    return names if len(names) == count else []


def _range(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    flat = torch.as_tensor(value).flatten().tolist()
    return int(flat[0]), int(flat[1])
