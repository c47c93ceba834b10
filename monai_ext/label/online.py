"""The service behind a MONAI Label app that learns: SAM, one learner a structure, and one thread that learns.

A request is answered with the weights of the moment and never waits. A submitted label is put into the
:class:`~monai_ext.label.inbox.Inbox`; the thread takes one after the other, so the journals have one order whoever
submits. Only one process at a time may learn in a folder.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from monai.data import MetaTensor
from safetensors import SafetensorError
from torch import Tensor

from monai_ext.data.images import read_geometry, read_label
from monai_ext.engines.online import Pending
from monai_ext.engines.online.view import tensor_sha256
from monai_ext.errors import UserError
from monai_ext.inferers.online import Asked, OnlineInferer
from monai_ext.inferers.reference import plain
from monai_ext.inferers.reference_inferer import BACKGROUND, ReferenceInferer
from monai_ext.label.answers import Answers, read_answer, trust
from monai_ext.label.inbox import Inbox, Submission
from monai_ext.label.parts import Parts
from monai_ext.label.viewer_prompts import read_prompts
from monai_ext.prompts.boxes import tight_box
from monai_ext.prompts.crops import is_small, paste
from monai_ext.prompts.prompt import Prompt
from monai_ext.transforms.request import REQUEST
from monai_ext.transforms.sam_input import frame_size

LOCK = "server.lock"
SAME_AFFINE = 1e-2
"""mm: viewers write NIfTI in single precision."""
SECONDS_TO_RETRY = 5.0

logger = logging.getLogger(__name__)


def take_lock(folder: Path, patience: float = 10.0) -> IO[str] | None:
    """Become the one process that learns in a folder, until the returned file is closed.

    Args:
        folder: of the learners; made where it is not there.
        patience: seconds to wait for another process to let go: one that was killed may take a moment to end.

    Returns:
        The open lock, or None: another process learns there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError:
            if time.monotonic() >= end:
                handle.close()
                return None
            time.sleep(0.2)


def check_label(image: Path, label: Path, values: Mapping[str, int]) -> None:
    """Refuse a label that teaches nothing, before it is kept.

    Raises:
        UserError: it lies on another grid than the image, holds none of the structures, or its segments have the name
            of none.
    """
    if not values:
        raise UserError(
            "the viewer's segments have the name of no structure: name them as the model does and submit the label."
        )
    one, other = read_geometry(image), read_geometry(label)
    if one.shape != other.shape:
        sizes = [" x ".join(map(str, geometry.shape)) for geometry in (other, one)]
        raise UserError(f"the label has {sizes[0]} voxels, the image {sizes[1]}: correct the mask on the image's grid.")
    if one.affine is not None and other.affine is not None and abs(one.affine - other.affine).max() > SAME_AFFINE:
        raise UserError("the label lies elsewhere in space than the image: correct the mask on the image's grid.")
    held = read_label(label)
    if not any(bool((held == value).any()) for value in values.values()):
        raise UserError(f"the label is empty: it holds none of {', '.join(values)}.")


class OnlineService:
    """Answers requests, and learns from submitted labels in a thread of its own.

    Args:
        parts: of the bundle.
        folder: where answers and submissions are kept; those left over are learned.
        modality: study's file -> modality, for grey values.
        find: study's file -> what serves it as a reference, see :class:`~monai_ext.data.studies.Studies`; for parts
            with a ``follow_up``.
    """

    def __init__(
        self,
        parts: Parts,
        folder: Path,
        modality: Callable[[Path], str] = lambda path: "",
        find: Callable[[Mapping[Any, Any]], Mapping[str, Any] | None] = lambda item: None,
    ) -> None:
        self.parts, self.modality, self.find = parts, modality, find
        self._following = threading.Lock()  # it keeps the references of one patient
        self.inbox, self.answers = Inbox(folder), Answers(folder)
        self._inferer = OnlineInferer(parts.labels, parts.learners, point_window=parts.point_window)
        self._wake, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="online", daemon=True)

    def start(self) -> None:
        """Begin to learn from what was submitted."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the correction that it is at."""
        self._ended = True
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """Say that something was submitted; without it the thread looks by itself, a little later."""
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """Return, as JSON, how many submissions wait, what has been learned, and the last outcome."""
        learned = {name: learner.position for name, learner in self.parts.learners.items()}
        return {"waiting": self.inbox.count(), "learned": learned, "last": self.inbox.last()}

    # ---- answering ---------------------------------------------------------------------------------------------------

    def ask(self, study: str, path: Path, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Answer a request.

        Args:
            study: its name.
            path: its file.
            params: see :func:`~monai_ext.label.viewer_prompts.read_prompts`.

        Returns:
            The mask on the file's grid, an array, and as JSON what is to be said of it.

        Raises:
            UserError: the image or the prompts are not usable.
        """
        image = self._load(path)
        if self.parts.follow_up is None:
            found = read_prompts(params, image, self.parts.labels).items()
            asked = [self._ask(image, study, name, k, prompt) for (name, k), prompt in found]
        else:
            asked = self._follow(image, study, path, params)
        logits = torch.full((len(self.parts.labels), *image.shape[1:]), BACKGROUND)
        said: list[dict[str, Any]] = []
        for one in asked:
            self.answers.keep(study, cast(Pending, one.answer))
            paste(logits[one.channel, :, :, one.slice], one.answer.logits, one.view.crop)
            said.append(self._describe(str(one.view.case["label"]), one.slice, cast(Pending, one.answer)))
        mask = self.parts.postprocessing({"image": image, "pred": MetaTensor(logits)})["pred"]
        return plain(mask)[0].numpy(), {"labels": dict(self.parts.labels), "answers": said}

    def _follow(self, image: MetaTensor, study: str, path: Path, params: Mapping[str, Any]) -> list[Asked]:
        """Find the structures by an annotated earlier visit, and ask the learners for each slice of each."""
        if any(params.get(name) for name in ("roi", "foreground", "background", *self.parts.labels)):
            raise UserError(
                "structures are found by the patient's annotated visit here, without prompts: leave box and points out."
            )
        found = self.find({"image_path": str(path)})
        if found is None:
            raise UserError(f"study {study} has no reference: later visits are found in a folder of studies alone.")
        follow_up = cast(ReferenceInferer, self.parts.follow_up)
        names = [name for name in found["labels"] if name in self.parts.labels]
        image.meta[REQUEST] = {**found, "labels": {name: found["labels"][name] for name in names}}
        with self._following:
            some = plain(follow_up(image[None], self.parts.network))[0]
        del image.meta[REQUEST]
        every = torch.full((len(self.parts.labels), *image.shape[1:]), BACKGROUND)
        for number, name in enumerate(names):
            every[list(self.parts.labels).index(name)] = some[number]
        planes = plain(image)
        asked: list[Asked] = []
        for k in range(planes.shape[-1]):
            asked += self._inferer.ask_followed(every[..., k], planes[..., k], study, k)
        return asked

    def _describe(self, name: str, k: int, answer: Pending) -> dict[str, Any]:
        alpha = answer.said.get("alpha")
        return {"structure": name, "slice": k, "alpha": alpha, "trust": trust(answer), "corrections": answer.position}

    def _ask(self, image: MetaTensor, study: str, name: str, k: int, prompt: Prompt) -> Asked:
        channel = list(self.parts.labels).index(name)
        plane = plain(image)[..., k]
        return self._inferer.ask(self.parts.network, plane, frame_size(image), study, k, [(channel, prompt)])[0]

    def _load(self, path: Path) -> MetaTensor:
        return cast(
            MetaTensor, self.parts.preprocessing({"image": str(path), "modality": self.modality(path)})["image"]
        )

    # ---- learning ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._ended:
            for submission in self.inbox.waiting():
                if self._ended:
                    return
                try:
                    self._take(submission)
                except Exception as error:  # whatever it is, later requests are to be answered and nothing is lost
                    logger.exception("submission %s is kept and tried again: %s", submission.number, error)
                    self._wake.wait(SECONDS_TO_RETRY)
                    break
            self._wake.wait(0.5)
            self._wake.clear()

    def _take(self, submission: Submission) -> None:
        try:
            outcome = self._replay(submission) if submission.what["kind"] == "replay" else self._learn(submission)
        except UserError as error:
            if _is_disk(error):
                raise
            outcome = {"learned": [], "refused": [str(error)]}
        refused = bool(outcome["refused"]) and not outcome["learned"]
        logger.info("submission %s: %s", submission.number, outcome)
        kept = {name: value for name, value in submission.what.items() if name in ("kind", "study")}
        self.inbox.finish(submission, {"number": submission.number, **kept, **outcome}, refused)

    def _learn(self, submission: Submission) -> dict[str, Any]:
        """Learn from a label: of the answers that it corrects, or, where it corrects none, of its own boxes."""
        what = submission.what
        names = list(self.parts.labels)
        answers = [read_answer(path) for path in submission.answers]
        answers.sort(key=lambda answer: (names.index(str(answer.case["label"])), int(answer.case["slice"])))
        return self._learn_label(submission.number, what, submission.label, answers)

    def _learn_label(self, number: str, what: Mapping[str, Any], label: Path, answers: list[Pending]) -> dict[str, Any]:
        image, truth = self._load_label(Path(what["image"]), label)
        values: Mapping[str, int] = what["values"]
        if not answers and self.parts.prompt != "box":
            how = "ask for a mask of the study first, then submit."
            if self.parts.follow_up is not None:
                how = f"it serves later visits as it is; to teach, {how}"
            raise UserError(f"the label of {what['study']} corrects no answer: {how}")
        pendings = answers or self._derive(image, truth, str(what["study"]), values)
        learned: list[dict[str, Any]] = []
        refused: list[str] = []
        for pending in pendings:
            name, k = str(pending.case["label"]), int(pending.case["slice"])
            if name not in values or self._has(name, number, pending.key):
                continue
            marked = replace(pending, case={**pending.case, "submission": number})
            try:
                if k >= image.shape[-1]:
                    raise UserError(f"the correction of {pending.key} is of another image with the same name.")
                plane = tensor_sha256(plain(image)[..., k])
                said = self.parts.learners[name].correct(marked, truth[..., k] == values[name], image_sha256=plane)
            except UserError as error:
                if _is_disk(error):
                    raise
                refused.append(str(error))
                continue
            learned.append({"structure": name, "slice": k, **said})
        return {"learned": learned, "refused": refused}

    def _has(self, name: str, number: str, key: str) -> bool:
        """Whether a correction was learned before the server was killed."""
        found = (entry for entry in self.parts.learners[name].log() if entry.key == key and entry.about is not None)
        return any(entry.about["case"].get("submission") == number for entry in found if entry.about is not None)

    def _load_label(self, image: Path, label: Path) -> tuple[MetaTensor, Tensor]:
        item = {"image": str(image), "label": str(label), "modality": self.modality(image)}
        loaded = self.parts.label_preprocessing(item)
        return loaded["image"], plain(loaded["label"])[0]

    def _derive(self, image: MetaTensor, truth: Tensor, study: str, values: Mapping[str, int]) -> Iterator[Pending]:
        """Ask with the box of a label itself, slice by slice: what an expert would have drawn who knew it."""
        for name, value in values.items():
            for k in range(truth.shape[-1]):
                box = tight_box(truth[..., k] == value)
                if box is not None and not is_small(box, (truth.shape[0], truth.shape[1])):
                    prompt = Prompt.from_points(torch.zeros(0, 2), box=box)
                    yield cast(Pending, self._ask(image, study, name, k, prompt).answer)

    def _replay(self, submission: Submission) -> dict[str, Any]:
        """Learn the final labels that were never learned, then everything anew: of each answer the last label alone."""
        learned: list[dict[str, Any]] = []
        refused: list[str] = []
        for final in submission.what["finals"]:
            if self.parts.prompt != "box" or self._knows(final["study"]):
                continue
            try:
                check_label(Path(final["image"]), Path(final["label"]), final["values"])
                one = self._learn_label(submission.number, final, Path(final["label"]), [])
            except UserError as error:
                if _is_disk(error):
                    raise
                one = {"learned": [], "refused": [f"{final['study']}: {error}"]}
            learned += one["learned"]
            refused += one["refused"]
        for learner in self.parts.learners.values():
            learner.replay(final=True)
        positions = {name: learner.position for name, learner in self.parts.learners.items()}
        return {"learned": learned, "refused": refused, "replayed": positions}

    def _knows(self, study: str) -> bool:
        logs = (learner.log() for learner in self.parts.learners.values())
        return any(e.about is not None and e.about["case"].get("case") == study for log in logs for e in log)


def _is_disk(error: UserError) -> bool:
    """Whether an error comes from the disk and not from the label."""
    return isinstance(error.__cause__, (OSError, SafetensorError))
