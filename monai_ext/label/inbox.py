"""Submitted labels until they have been learned: a folder each, whole or not there.

A label is in ``inbox/<number>/`` with the answers that it corrects before its submission is confirmed, and leaves it
when it has been learned. So a server that is killed finds on its next start what it had confirmed, and another process
may put something in.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_ext.data.text import read_json
from monai_ext.errors import UserError
from monai_ext.files import atomic_path

WHAT = "what.json"
KEPT_OUTCOMES = 500


@dataclass(frozen=True)
class Submission:
    """A label, or a request to learn everything anew, that waits to be processed.

    Attributes:
        number: its name; later ones are larger.
        folder: its files.
        what: ``kind``, ``label`` or ``replay``, and whatever goes with it.
    """

    number: str
    folder: Path
    what: dict[str, Any]

    @property
    def answers(self) -> list[Path]:
        """Files of the answers that a label corrects, in the order of their names."""
        return sorted((self.folder / "answers").glob("*.safetensors"))

    @property
    def label(self) -> Path:
        """The label's file."""
        return self.folder / str(self.what["label"])


class Inbox:
    """The submissions of an app, the oldest first.

    Args:
        folder: of the app's state; ``inbox``, ``outcomes`` and ``refused`` lie in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.outcomes, self.refused = folder / "inbox", folder / "outcomes", folder / "refused"
        for path in (self.folder, self.outcomes, self.refused):
            path.mkdir(parents=True, exist_ok=True)

    def put(self, what: Mapping[str, Any], label: Path | None = None, answers: Iterable[Path] = ()) -> str:
        """Keep a submission; when this returns, it is on disk. Returns its number.

        Raises:
            UserError: it cannot be written; then it is not there.
        """
        number = f"{time.time_ns():020d}-{uuid.uuid4().hex[:6]}"
        temporary = self.folder / f".{number}"
        content = dict(what)
        try:
            (temporary / "answers").mkdir(parents=True)
            for path in answers:
                _copy(path, temporary / "answers" / path.name)
            if label is not None:
                content["label"] = "label" + "".join(label.suffixes[-2:])
                _copy(label, temporary / content["label"])
            _write(temporary / WHAT, json.dumps(content).encode("utf-8"))
            temporary.rename(self.folder / number)
            _sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"the label cannot be kept in {self.folder} ({error.strerror or error}): make room, submit it again."
            ) from error
        return number

    def waiting(self) -> list[Submission]:
        """Return the submissions that wait, the oldest first."""
        names = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        return [Submission(name, self.folder / name, read_json(self.folder / name / WHAT)) for name in names]

    def count(self) -> int:
        """Return how many submissions wait."""
        return sum(not path.name.startswith(".") for path in self.folder.iterdir())

    def finish(self, submission: Submission, outcome: Mapping[str, Any], refused: bool = False) -> None:
        """Record the outcome of a submission and remove it from the inbox; a refused one is kept in ``refused``."""
        with atomic_path(self.outcomes / f"{submission.number}.json") as temporary:
            temporary.write_text(json.dumps(dict(outcome), indent=1) + "\n", encoding="utf-8")
        if refused:
            submission.folder.rename(self.refused / submission.number)
            return
        done = submission.folder.rename(self.folder / f".{submission.number}")
        shutil.rmtree(done, ignore_errors=True)
        for path in sorted(self.outcomes.glob("*.json"))[:-KEPT_OUTCOMES]:
            path.unlink(missing_ok=True)

    def outcome(self, number: str) -> dict[str, Any] | None:
        """Return the outcome of a submission; None: it still waits."""
        path = self.outcomes / f"{number}.json"
        return dict(read_json(path)) if path.is_file() else None

    def last(self) -> dict[str, Any] | None:
        """Return the outcome of the last submission."""
        paths = sorted(self.outcomes.glob("*.json"))
        return dict(read_json(paths[-1])) if paths else None


def _copy(source: Path, target: Path) -> None:
    _write(target, source.read_bytes())


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
