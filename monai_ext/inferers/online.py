"""Segments cases one after the other: SAM's mask is fused with that of a learner, which corrections train (AuxOL).

A volume is taken slice by slice: an image of the paper is a slice here. On each one SAM decodes all prompts, the
learner of each prompt's structure answers for its crop, and the answers are united; outside of the crops is background
(authors' code). Then the slice, or with ``learn_after: case`` all slices of the case, is corrected.

Where nobody corrects, no truth is asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_ext.data.case_details import CaseDetails
from monai_ext.data.pairs import single_value
from monai_ext.errors import UserError
from monai_ext.inferers.case_inferer import CaseInferer
from monai_ext.inferers.encoding import encode_slice
from monai_ext.inferers.reference import plain
from monai_ext.inferers.reference_inferer import BACKGROUND
from monai_ext.inferers.simulated_user import Expert
from monai_ext.inferers.slice_features import dice
from monai_ext.inferers.view import Learner, View, Waiting
from monai_ext.networks.backbone import PromptableNetwork
from monai_ext.prompts.crops import Crop, box_crop, mask_crop, paste, widen
from monai_ext.prompts.prompt import Prompt
from monai_ext.transforms.sam_input import frame_size, input_box, input_points

Prompter = Callable[[Tensor, int], list[Prompt]]
"""True mask [H, W] bool of a structure on a slice, and a number of both -> prompts."""

LEARN_AFTER = ("slice", "case")


@dataclass(frozen=True)
class Asked:
    """One prompt of a slice: its structure's channel, its view, SAM's logits [H, W] and the answer."""

    channel: int
    slice: int
    view: View
    answer: Waiting


@dataclass
class AnsweredCase:
    """A case that is being answered and learned from.

    Attributes:
        truth: [H, W, D] integer; None: not known.
        logits: [L, H, W, D], fused.
        sam: [L, H, W, D], SAM's own.
        rows: one for each prompt.
    """

    truth: Tensor | None
    logits: Tensor
    sam: Tensor
    rows: list[dict[str, Any]] = field(default_factory=list)


class OnlineInferer(CaseInferer):
    """Segments a case from prompts, and learns from what is corrected.

    Args:
        labels: name -> value of the structures.
        learners: name -> what learns that structure.
        prompter: makes prompts of the truth (the protocol's simulated user); None: prompts come with the call.
        expert: which answers are corrected; None: none, whatever the truth.
        learn_after: ``slice`` or ``case``.
        pseudo_labels: where the expert does not correct, learn from the fused mask itself (paper §3.2).
        step_without_feedback: where nothing is corrected, train on the stored batch all the same (authors' code).
        cropped: a prompt is answered within its crop; False: SAM's whole mask counts, for SAM alone.
        point_window: after a point, the crop holds at least a window round it of this share of the image's longer side;
            with ``follow_up`` round the middle of what was found. 0 is the paper's crop, the box of SAM's mask: where
            that is a speck, nothing outside of it can be learned.
        follow_up: finds the structures without a prompt, such as P²SAM; its logits take the place of SAM's, the crop is
            that of its mask, and a structure that it does not find is not asked for.
        restart_by: entry of the cases with which the learners begin anew whenever it changes; None: never.

    Raises:
        UserError: for an unknown option.

    The details of a case have a row for each prompt (see :data:`COLUMNS`) and a map ``sam``: SAM's own logits
    [L, H, W, D]. With ``follow_up`` and a true label there is also a row for each structure on a slice that was not
    found (``status`` missed). ``images`` counts the slices with prompts.

    Example:
        >>> inferer = OnlineInferer({"polyp": 1}, learners)  # of open_learners
        >>> logits = inferer(image[None], sam, case="frame_1", box=[40, 52, 118, 131])  # [1, 1, H, W, 1]
    """

    COLUMNS = (
        "image", "slice", "label", "prompt", "status", "crop", "alpha", "dice", "dice_sam", "dice_own",
        "corrected", "loss", "best_alpha", "mean_loss", "batch",
    )  # fmt: skip

    def __init__(
        self,
        labels: Mapping[str, int],
        learners: Mapping[str, Learner],
        prompter: Prompter | None = None,
        expert: Expert | None = None,
        learn_after: str = "slice",
        pseudo_labels: bool = False,
        step_without_feedback: bool = False,
        cropped: bool = True,
        restart_by: str | None = None,
        follow_up: Inferer | None = None,
        point_window: float = 0.0,
    ) -> None:
        super().__init__()
        if learn_after not in LEARN_AFTER:
            raise UserError(f"learn_after {learn_after!r} is unknown: choose one of {', '.join(LEARN_AFTER)}.")
        self.labels, self.learners = dict(labels), learners
        self.prompter, self.expert, self.learn_after = prompter, expert, learn_after
        self.pseudo_labels, self.step_without_feedback, self.cropped = pseudo_labels, step_without_feedback, cropped
        self.restart_by, self.follow_up, self.point_window = restart_by, follow_up, point_window
        self.images = 0
        self.group: str | None = None

    # ---- a stream that goes on ---------------------------------------------------------------------------------------

    def positions(self) -> dict[str, int]:
        """Mark the learners' states and return their places in their journals."""
        return {name: learner.mark() for name, learner in self.learners.items()}

    def go_on(self, images: int, positions: Mapping[str, int], group: str | None = None) -> None:
        """Return to the state after so many images: learners go back to these places in their journals."""
        self.images, self.group = images, group
        for name, learner in self.learners.items():
            learner.rewind(positions.get(name, 0))

    # ---- a case ------------------------------------------------------------------------------------------------------

    def segment_case(
        self,
        inputs: Tensor,
        network: PromptableNetwork,
        case: Any = "",
        user_label: Tensor | None = None,
        box: Any = None,
        points: Any = None,
        group: Any = None,
        **extra: Any,
    ) -> tuple[MetaTensor, CaseDetails]:
        """Segment one case, then learn.

        Args:
            inputs: [1, C, H, W, D] in the input frame.
            network: the frozen SAM.
            case: its name.
            user_label: [1, 1, H, W, D] integer in the input frame: what the simulated user knows.
            box: without a prompter: two voxel indices of the image's file, one after the other: corners of a box.
            points: without a prompter: voxel indices of points inside, one after the other.
            group: value of ``restart_by``.
            extra: handed on to ``follow_up``.

        Returns:
            Logits [1, L, H, W, D]: the answers from before anything was learned of the slice; and the case's details.
        """
        image, name = cast(MetaTensor, inputs[0]), str(single_value(case) or "")
        self._restart(group)
        truth = None if user_label is None else plain(user_label)[0, 0]
        given = self._given(image, box, points)
        found = None if self.follow_up is None else self.follow_up(inputs, network, **extra)[0]
        planes, frame = plain(image), frame_size(image)
        logits = torch.full((len(self.labels), *planes.shape[1:]), BACKGROUND)
        seen = AnsweredCase(truth, logits, sam=logits.clone())
        waiting: list[tuple[int, list[Asked]]] = []
        for k in range(planes.shape[-1]):
            of_slice = None if truth is None else truth[..., k]
            if found is not None:
                asked = self.ask_followed(plain(found)[..., k], planes[..., k], name, k)
                self._note_missed(k, asked, seen)
            else:
                prompts = given.get(k, []) if self.prompter is None else self._prompts(name, k, of_slice)
                asked = self.ask(network, planes[..., k], frame, name, k, prompts) if prompts else []
            if not asked:
                continue
            for one in asked:
                paste(logits[one.channel, :, :, k], one.answer.logits, one.view.crop)
                torch.maximum(seen.sam[one.channel, :, :, k], one.view.sam, out=seen.sam[one.channel, :, :, k])
            waiting.append((self.images, asked))
            self.images += 1
            if self.learn_after == "slice":
                self._learn(waiting, seen)
                waiting = []
        self._learn(waiting, seen)
        return MetaTensor(logits[None]), CaseDetails(seen.rows, {"sam": seen.sam})

    def _restart(self, group: Any) -> None:
        if self.restart_by is None:
            return
        now = str(single_value(group))
        if self.group is not None and now != self.group:
            for learner in self.learners.values():
                learner.restart()
            self.images = 0
        self.group = now

    def _prompts(self, case: str, k: int, truth: Tensor | None) -> list[tuple[int, Prompt]]:
        if truth is None or self.prompter is None:
            raise UserError("the simulated user needs the case's label: add configs/stream.yaml, or give a prompt.")
        found = []
        for channel, (name, value) in enumerate(self.labels.items()):
            number = zlib.crc32(f"{case}/{name}/{k}".encode())
            found += [(channel, prompt) for prompt in self.prompter(truth == value, number)]
        return found

    def _given(self, image: MetaTensor, box: Any, points: Any) -> dict[int, list[tuple[int, Prompt]]]:
        """Sort the prompts of a call, for the first structure, by the slice that they lie on."""
        if self.prompter is not None or self.follow_up is not None:
            return {}
        found: dict[int, list[tuple[int, Prompt]]] = {}
        corners, clicks = _indices(box, image, "box", 2), _indices(points, image, "points")
        if not corners and not clicks:
            raise UserError("there is no prompt: give --box or --points, as voxel indices of the image.")
        if corners:
            drawn, (first, last) = input_box(image, *corners)
            if first != last:
                raise UserError(f"box {corners} lies on two slices: give both corners on one.")
            found[first] = [(0, Prompt.from_points(torch.zeros(0, 2), box=torch.tensor(drawn)))]
        if clicks:
            places, slices = input_points(image, clicks)
            for place, k in zip(torch.as_tensor(places).float(), slices.tolist(), strict=True):
                found.setdefault(int(k), []).append((0, Prompt.from_points(place[None])))
        return found

    @torch.no_grad()
    def ask(
        self,
        network: PromptableNetwork,
        plane: Tensor,
        frame: tuple[int, int],
        case: str,
        k: int,
        prompts: Sequence[tuple[int, Prompt]],
    ) -> list[Asked]:
        """Ask SAM and the learners for the prompts of a slice.

        Args:
            network: the frozen SAM.
            plane: [C, H, W] in [0, 255].
            frame: see :func:`monai_ext.inferers.encoding.encode_slice`.
            case: name of the case.
            k: number of the slice.
            prompts: the channel of a structure, and what is asked.
        """
        embeddings = encode_slice(network, plane, frame)
        decoded, _ = network.decode(embeddings, [prompt for _, prompt in prompts])
        masks = network.to_image(decoded, embeddings.size)[:, 0].float().cpu()
        names = list(self.labels)
        asked = []
        for number, ((channel, prompt), sam) in enumerate(zip(prompts, masks, strict=True)):
            view = View(
                key=f"{case}/{names[channel]}/{k}/{number}",
                image=plane,
                sam=sam,
                crop=self._crop(prompt, sam),
                prompt=_described(prompt),
                case={"case": case, "slice": k, "label": names[channel]},
                features=embeddings.features[0],
            )
            asked.append(Asked(channel, k, view, self.learners[names[channel]].infer(view)))
        return asked

    def ask_followed(self, logits: Tensor, plane: Tensor, case: str, k: int) -> list[Asked]:
        """Ask the learners for the structures that were found on a slice without a prompt.

        Args:
            logits: [L, H, W] of what was found; it takes SAM's place.
            plane: [C, H, W] in [0, 255].
            case: name of the case.
            k: number of the slice.
        """
        asked = []
        for channel, name in enumerate(self.labels):
            sam = logits[channel].float().cpu()
            if not bool((sam > 0).any()):
                continue
            place = {"case": case, "slice": k, "label": name}
            view = View(f"{case}/{name}/{k}/0", plane, sam, self._followed_crop(sam), {}, place)
            asked.append(Asked(channel, k, view, self.learners[name].infer(view)))
        return asked

    def _note_missed(self, k: int, asked: Sequence[Asked], seen: AnsweredCase) -> None:
        """Add a row for each structure that is on the slice and was not found, where the expert looks: who draws it."""
        if seen.truth is None or self.expert is None or not self.expert.looks_at(self.images):
            return
        there = {one.channel for one in asked}
        for channel, (name, value) in enumerate(self.labels.items()):
            if channel not in there and bool((seen.truth[..., k] == value).any()):
                row = {"image": self.images, "slice": k, "label": name, "status": "missed", "corrected": 0}
                row |= {"dice": 0.0, "dice_sam": 0.0}
                seen.rows.append({column: row.get(column) for column in self.COLUMNS})

    def _crop(self, prompt: Prompt, sam: Tensor) -> Crop:
        if not self.cropped:
            return _whole(sam)
        size = (sam.shape[0], sam.shape[1])
        if prompt.box is not None:
            return box_crop(prompt.box, size)
        x, y = prompt.points[0].tolist()
        return self._widened(mask_crop(sam > 0), (x, y), size)

    def _followed_crop(self, sam: Tensor) -> Crop:
        """Return the crop of what was found without a prompt; a window lies round its middle."""
        if not self.cropped:
            return _whole(sam)
        crop = mask_crop(sam > 0, least=0)
        middle = ((crop.x0 + crop.x1 - 1) / 2, (crop.y0 + crop.y1 - 1) / 2)
        return self._widened(crop, middle, (sam.shape[0], sam.shape[1]))

    def _widened(self, crop: Crop, centre: tuple[float, float], size: tuple[int, int]) -> Crop:
        return widen(crop, centre, self.point_window * max(size), size) if self.point_window else crop

    # ---- learning ----------------------------------------------------------------------------------------------------

    def _learn(self, waiting: Sequence[tuple[int, Sequence[Asked]]], seen: AnsweredCase) -> None:
        for image, asked in waiting:
            for channel in sorted({one.channel for one in asked}):
                own = [one for one in asked if one.channel == channel]
                self._learn_structure(image, own, seen)

    def _learn_structure(self, image: int, asked: Sequence[Asked], seen: AnsweredCase) -> None:
        """Let the expert look at one structure on one slice."""
        channel, k = asked[0].channel, asked[0].slice
        name, learner = list(self.labels)[channel], self.learners[list(self.labels)[channel]]
        expert = self.expert if self.expert is not None and self.expert.looks_at(image) else None
        mask = None if seen.truth is None else seen.truth[..., k] == self.labels[name]
        fused, sam = seen.logits[channel, :, :, k] > 0, seen.sam[channel, :, :, k] > 0
        scores = {} if mask is None else {"dice": dice(fused, mask), "dice_sam": dice(sam, mask)}
        corrected = mask is not None and expert is not None and expert.corrects(scores["dice"], scores["dice_sam"])
        for one in asked:
            said: dict[str, Any] = {}
            status = "not_corrected"
            if corrected and mask is not None:
                said, status = self._teach(learner, one, mask, "expert")
            elif self.pseudo_labels:
                said, status = self._teach(learner, one, fused, "pseudo")
            elif self.step_without_feedback:
                said = learner.step()
            seen.rows.append(self._row(image, name, one, status, {**scores, **self._own_score(one, mask), **said}))

    def _teach(self, learner: Learner, one: Asked, mask: Tensor, source: str) -> tuple[dict[str, Any], str]:
        """Correct one answer; a mask that is empty in its crop teaches nothing."""
        if not bool(one.view.crop.of(mask).any()):
            return {}, "empty"
        return learner.correct(one.answer, mask, source), "corrected" if source == "expert" else "pseudo"

    def _own_score(self, one: Asked, mask: Tensor | None) -> dict[str, float]:
        """Dice, within the crop, of what was learned without SAM."""
        own = one.answer.said.get("own")
        return {} if own is None or mask is None else {"dice_own": dice(own > 0, one.view.crop.of(mask))}

    def _row(self, image: int, name: str, one: Asked, status: str, said: Mapping[str, Any]) -> dict[str, Any]:
        alpha = one.answer.said.get("alpha")
        row = {"image": image, "slice": one.slice, "label": name, "prompt": one.view.key.rsplit("/", 1)[1]}
        row |= {"status": status, "crop": " ".join(map(str, one.view.crop)), "alpha": alpha}
        row |= {"corrected": int(status == "corrected"), **said}
        return {column: row.get(column) for column in self.COLUMNS}


def _whole(sam: Tensor) -> Crop:
    return Crop(0, 0, sam.shape[1], sam.shape[0])


def _described(prompt: Prompt) -> dict[str, Any]:
    points = torch.cat([prompt.points, prompt.labels[:, None].float()], dim=1).tolist()
    return {"points": points} if prompt.box is None else {"box": prompt.box.tolist(), "points": points}


def _indices(value: Any, image: MetaTensor, name: str, count: int | None = None) -> list[list[float]]:
    """Read voxel indices written one after the other, [i, j, k, i, j, k, ...]; frames have two each."""
    flat = list(_numbers(value))
    axes = 2 if not image.meta.get("slice_axis") else 3
    if flat and (len(flat) % axes or (count is not None and len(flat) != count * axes)):
        wanted = f"{count} times " if count else ""
        raise UserError(f"{name} has {len(flat)} numbers: give {wanted}{axes}, voxel indices of the image's file.")
    return [flat[n : n + axes] for n in range(0, len(flat), axes)]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield float(value)
    elif isinstance(value, (list, tuple, Tensor)):
        for one in value.flatten().tolist() if isinstance(value, Tensor) else value:
            yield from _numbers(one)
