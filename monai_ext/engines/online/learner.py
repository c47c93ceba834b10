"""One learner: answers at any time, learns from one correction after the other, and keeps all it was given.

Answers come from a copy of the method that never changes (:class:`~monai_ext.engines.online.view.Answer`); a correction
trains the method itself and, when the step is done, puts a new copy in the place of the old one. So an answer neither
waits for a step nor sees one half done, and any number of threads may ask.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_ext.data.text import read_json
from monai_ext.engines.online.journal import Entry, Journal
from monai_ext.engines.online.states import States
from monai_ext.engines.online.view import Answer, Correction, CroppedView, OnlineMethod, cut, tensor_sha256
from monai_ext.errors import UserError
from monai_ext.files import atomic_path
from monai_ext.inferers.view import View

SETTINGS = "settings.json"
FORMAT = 1


@dataclass(frozen=True)
class Pending:
    """An answer that waits for its correction. Nothing in it says what is true.

    Attributes:
        view: what was asked, without the pixels outside of the crop.
        key: see :class:`~monai_ext.inferers.view.View`.
        case: likewise.
        image_sha256: of the image.
        logits: [h, w] of the crop, fused: the mask is where they are above 0.
        said: ``alpha``, ``own`` and what else the method says.
        position: corrections that the answering weights had seen.
    """

    view: CroppedView
    key: str
    case: Mapping[str, Any]
    image_sha256: str
    logits: Tensor
    said: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0


class OnlineLearner:
    """A method with its journal and states; one a structure.

    Args:
        method: what learns; nothing else may use it.
        folder: where journal and states are kept; what is there is taken up again. None: nothing is kept.
        sam_sha256: of the frozen SAM that it learns beside; with another one a folder is refused.
        frozen: only answer; the folder has to be there and stays as it is.
        save_every: corrections after which a state is written; those since the last one are learned again when the
            folder is opened after a kill. None is lost, whatever this number is.

    Raises:
        UserError: the folder was made with other settings or another SAM, or a file in it has changed.

    Example:
        >>> learner = OnlineLearner(AuxiliaryFusion(AuxiliarySettings(base=8)), "states/lesion")
        >>> pending = learner.infer(View("case1/0", image, sam_logits, crop))  # image [C, H, W], sam_logits [H, W]
        >>> learner.correct(pending, true_mask)  # [H, W] bool
    """

    def __init__(
        self,
        method: OnlineMethod,
        folder: str | Path | None = None,
        sam_sha256: str = "",
        frozen: bool = False,
        save_every: int = 1,
    ) -> None:
        self.method, self.sam_sha256, self.frozen, self.save_every = method, sam_sha256, frozen, save_every
        self._lock = threading.RLock()
        self._marks: deque[int] = deque(maxlen=2)
        self._journal: Journal | None = None
        self._position = 0
        if folder is not None:
            self._open(Path(folder))
        self._served: tuple[Answer, int] = (method.serve(), self._position)

    @property
    def position(self) -> int:
        """Entries of the journal that have been learned."""
        return self._position

    @property
    def chain(self) -> str:
        """Checksum over all that has been learned; empty where nothing was, or nothing is kept."""
        return "" if self._journal is None else self._journal.chain(self._position)

    @property
    def taught_with(self) -> set[str]:
        """Kinds of the prompts whose masks were corrected: ``box``, ``points``, or ``none`` where nothing was asked.

        Empty where nothing was learned, or nothing is kept.
        """
        if self._journal is None:
            return set()
        counting = [self._journal.entries[number - 1] for number in self._counting(self._journal)]
        prompts = [(entry.about or {}).get("prompt") or {} for entry in counting]
        return {"box" if "box" in prompt else "points" if prompt.get("points") else "none" for prompt in prompts}

    # ---- use ---------------------------------------------------------------------------------------------------------

    def infer(self, view: View) -> Pending:
        """Answer with the weights as they are; never waits for a step."""
        answer, position = self._served
        seen = cut(view, self.method.with_features)
        logits, said = answer(seen)
        return Pending(seen, view.key, dict(view.case), tensor_sha256(view.image), logits, said, position)

    def correct(
        self, pending: Pending, truth: Tensor, source: str = "expert", image_sha256: str | None = None
    ) -> dict[str, Any]:
        """Learn from a correction; waits for the one before it.

        One with the key of an earlier correction replaces it in the online batch and among the alphas. What the
        weights took from the earlier one stays; :meth:`undo` and :meth:`replay` take that back as well.

        Args:
            pending: the answer that is corrected.
            truth: [H, W] of the slice, or [h, w] of the crop; not 0 where the structure is.
            source: ``expert``, or ``pseudo`` for the answer itself.
            image_sha256: of the image that was corrected, where the caller can tell.

        Returns:
            ``number`` in the journal, and what the method says: ``loss``, ``best_alpha`` and others.

        Raises:
            UserError: the mask is empty or of another grid, the image another one, or it cannot be written; then
                nothing is learned.
        """
        correction = self._correction(pending, torch.as_tensor(truth), source, image_sha256)
        with self._lock:
            self._refuse_frozen()
            entry = None if self._journal is None else self._journal.append("correction", correction)
            with self._taken_back():
                said = self.method.absorb(correction)
            self._learned()
            return {"number": self._position if entry is None else entry.number, **said}

    def step(self) -> dict[str, Any]:
        """Train once on the batch as it is, without a correction."""
        with self._lock:
            self._refuse_frozen()
            if self._journal is not None:
                self._journal.append("step")
            with self._taken_back():
                said = self.method.step()
            self._learned()
            return said

    def undo(self, number: int | None = None) -> int:
        """Take a correction back: the learner becomes what it would be without it.

        Args:
            number: of the correction in the journal; None: the last one that counts.

        Returns:
            Its number.

        Raises:
            UserError: there is no such correction, nothing is kept, or a file that is needed has changed.
        """
        with self._lock:
            journal = self._kept()
            there = self._counting(journal)
            if number is None and there:
                number = there[-1]
            if number not in there:
                raise UserError(f"correction {number} cannot be undone: those that count are {there or 'none'}.")
            with self._taken_back(rebuild=True):
                journal.append("undo", target=int(number))
                self._rebuild(journal, len(journal))
            self._save()
            return int(number)

    def restart(self) -> None:
        """Forget everything; the journal stays."""
        with self._lock:
            self._refuse_frozen()
            if self._journal is not None:
                self._journal.append("restart")
            self.method.reset()
            self._learned()

    def rewind(self, position: int) -> None:
        """Go back to the first ``position`` entries of the journal and drop the rest, for a run that goes on.

        Raises:
            UserError: there are fewer.
        """
        with self._lock:
            journal = self._kept()
            if position > len(journal):
                raise UserError(
                    f"{journal.folder} holds {len(journal)} corrections where {position} are expected: it is of "
                    "another run; give a new folder."
                )
            journal.truncate(position)
            if self._states is not None:
                self._states.drop_after(position)
            self._rebuild(journal, position)
            self._marks.append(position)
            self._save()

    def mark(self) -> int:
        """Write a state now and keep it beside the last ones: where a run could go on. Returns its position."""
        with self._lock:
            self._marks.append(self._position)
            if self._journal is not None and not self.frozen:
                self._save()
            return self._position

    def replay(self, final: bool = False) -> None:
        """Learn everything anew from the journal, checking every file.

        Args:
            final: of corrections with the same key only the last one, as if the others had never been sent; they are
                undone in the journal.

        Raises:
            UserError: a file is missing or has changed; then the learner stays as it was.
        """
        with self._lock:
            journal = self._kept()
            journal.check()
            with self._taken_back(rebuild=True):
                if final:
                    there = self._counting(journal)
                    last = {journal.entries[number - 1].key: number for number in there}
                    for number in there:
                        if last[journal.entries[number - 1].key] != number:
                            journal.append("undo", target=number)
                self._rebuild(journal, len(journal), from_states=False)
            self._save()

    def log(self) -> list[Entry]:
        """Return the entries of the journal."""
        return [] if self._journal is None else list(self._journal.entries)

    # ---- parts -------------------------------------------------------------------------------------------------------

    def _correction(self, pending: Pending, truth: Tensor, source: str, image_sha256: str | None) -> Correction:
        view = pending.view
        if image_sha256 is not None and image_sha256 != pending.image_sha256:
            raise UserError(
                f"the correction of {pending.key} is of another image with the same name; it is not learned."
            )
        if tuple(truth.shape) == view.size != view.crop.size:
            truth = view.crop.of(truth)
        if tuple(truth.shape) != view.crop.size:
            raise UserError(
                f"the correction of {pending.key} has {' x '.join(map(str, truth.shape))} pixels, the image "
                f"{' x '.join(map(str, view.size))}: correct the mask on the image's own grid."
            )
        mask = (truth != 0).cpu()
        if not bool(mask.any()):
            raise UserError(f"the correction of {pending.key} is empty where it was asked for; it is not learned.")
        extra = {} if view.features is None else {"features": view.features}
        return Correction(
            pending.key, view.image, view.sam, mask, view.crop, view.size, source, view.prompt, pending.case,
            pending.image_sha256, extra,
        )  # fmt: skip

    @contextmanager
    def _taken_back(self, rebuild: bool = False) -> Iterator[None]:
        """Drop what was written to the journal where it could not be learned.

        Args:
            rebuild: the method may have been left half-way; it returns to where it was.
        """
        try:
            yield
        except Exception:
            if self._journal is not None:
                self._journal.truncate(self._position)
                if rebuild:
                    with suppress(UserError):  # the first error is the one to tell
                        self._rebuild(self._journal, self._position)
            raise

    def _learned(self) -> None:
        """Answer with what has been learned, then save it: a full disk must not delay answers."""
        self._position += 1
        self._served = (self.method.serve(), self._position)
        if self._journal is not None and self._position % self.save_every == 0:
            self._save()

    def _save(self) -> None:
        if self._journal is None or self._states is None:
            return
        tensors, values = self.method.state()
        self._states.write(self._position, self._journal.chain(self._position), tensors, values)
        self._states.prune(self._marks)

    def _open(self, folder: Path) -> None:
        self._check_settings(folder)
        self._states = States(folder)
        self._journal = Journal(folder, read_only=self.frozen)
        self._rebuild(self._journal, len(self._journal))
        if self.frozen or not self._position:
            return
        if self._position in self._states.positions():
            self._states.prune(self._marks)  # a kill may have come between writing a state and removing an older one
        else:
            self._save()  # or between an entry of the journal and its state

    _states: States | None = None

    def _rebuild(self, journal: Journal, position: int, from_states: bool = True) -> None:
        """Rebuild the method from the first ``position`` entries, from the nearest state; files are checked first."""
        found = self._find_state(journal, position) if from_states else None
        restarts = [entry.number for entry in journal.entries[:position] if entry.kind == "restart"]
        begin = found[0] if found is not None else max(restarts, default=0)
        undone = journal.undone(position)
        counting = [e for e in journal.entries[begin:position] if e.kind == "step" or e.number not in undone]
        for entry in counting:
            if entry.kind == "correction":
                journal.read(entry.number)
        if found is None:
            self.method.reset()
        else:
            self.method.load_state(*found[1:])
        for entry in counting:
            if entry.kind == "correction":
                self.method.absorb(journal.read(entry.number))
            elif entry.kind == "step":
                self.method.step()
        self._position = position
        self._served = (self.method.serve(), position)

    def _find_state(self, journal: Journal, position: int) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Read the last state from which ``position`` can be reached."""
        for one in [] if self._states is None else self._states.usable(journal, position):
            chain, tensors, values = self._states.read(one)  # type: ignore[union-attr]
            if chain == journal.chain(one):
                return one, tensors, values
        return None

    def _check_settings(self, folder: Path) -> None:
        path = folder / SETTINGS
        now = {"format": FORMAT, "sam_sha256": self.sam_sha256, **self.method.describe()}
        if not path.is_file():
            if self.frozen:
                raise UserError(f"{folder} holds no learner ({SETTINGS}): give the folder of one, --state_dir DIR.")
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
            return
        before: Any = None
        with suppress(OSError, ValueError):
            before = read_json(path)
        if not isinstance(before, dict):
            raise UserError(f"{path} is damaged: put it back, or give a new folder.")
        if before.get("sam_sha256") != self.sam_sha256:
            raise UserError(
                f"{folder} was learned beside the SAM with sha256 {str(before.get('sam_sha256'))[:12]}, not "
                f"{self.sam_sha256[:12]}: give those weights with --checkpoint, or a new folder."
            )
        now = json.loads(json.dumps(now))
        if before != now:
            from monai_ext.configuration import first_difference  # imports MONAI, which takes seconds

            found = first_difference(before, now) or (SETTINGS, before, now)
            raise UserError(
                f"{folder} was learned with {found[0]} {found[1]}, now {found[2]}: give the same, or a new folder."
            )

    def _counting(self, journal: Journal) -> list[int]:
        """Return the numbers of the corrections that the present state is made of."""
        undone = journal.undone(len(journal))
        start = max((e.number for e in journal.entries if e.kind == "restart"), default=0)
        numbers = (e.number for e in journal.entries if e.kind == "correction" and e.number > start)
        return [number for number in numbers if number not in undone]

    def _kept(self) -> Journal:
        self._refuse_frozen()
        if self._journal is None:
            raise UserError("this learner keeps no journal: give it a folder.")
        return self._journal

    def _refuse_frozen(self) -> None:
        if self.frozen:
            raise UserError("this learner is frozen: it answers, and is not corrected.")
