"""The journal: every correction in order, each in a file of its own, and a line that says what it is.

A folder holds ``journal.jsonl`` and ``corrections/000001.safetensors`` and so on. The file of a correction is written
first and its line after it, so a line always has its file; half a line, of a process that was killed, does not count.
Each line holds the sha256 of its file and a chain over all lines before it: a folder can be copied, checked and
replayed by somebody else, who needs neither SAM nor the images.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monai_ext.engines.online.view import Correction, tensor_sha256
from monai_ext.errors import UserError
from monai_ext.files import atomic_path, sha256_of
from monai_ext.prompts.crops import Crop

LINES = "journal.jsonl"
FOLDER = "corrections"
KINDS = ("correction", "undo", "restart", "step")


@dataclass(frozen=True)
class Entry:
    """One line of the journal.

    Attributes:
        number: its place, from 1.
        kind: ``correction``; ``undo`` of the correction ``target``; ``restart``, everything before is forgotten;
            ``step``, a step without a correction.
        chain: sha256 over this line and the chain of the line before.
        key: of a correction.
        source: likewise.
        sha256: of its file.
        target: of an ``undo``.
        about: where it is and what SAM was asked: case, slice, prompt, sha256 of image and mask.
    """

    number: int
    kind: str
    chain: str
    key: str = ""
    source: str = ""
    sha256: str = ""
    target: int = 0
    about: dict[str, Any] | None = None


class Journal:
    """The corrections that one learner has been given; opened, it reads the lines and drops half a line at the end.

    Args:
        folder: made if need be.
        read_only: a folder that is not there is an error, and nothing is written.

    Raises:
        UserError: the lines are not a journal, or cannot be read.
    """

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self.folder, self.read_only = Path(folder), read_only
        self._path = self.folder / LINES
        self.entries: list[Entry] = self._read_lines()

    def __len__(self) -> int:
        return len(self.entries)

    def chain(self, position: int) -> str:
        """Return the chain over the first ``position`` entries."""
        return self.entries[position - 1].chain if position else ""

    def append(self, kind: str, correction: Correction | None = None, target: int = 0) -> Entry:
        """Write an entry; when this returns, it is kept.

        Raises:
            UserError: it cannot be written; then it is not there.
        """
        number = len(self.entries) + 1
        described: dict[str, Any] = {"number": number, "kind": kind, "target": target}
        if correction is not None:
            path = self._file(number)
            write_tensors(path, _tensors(correction), _about(correction))
            described |= {"key": correction.key, "source": correction.source, "sha256": sha256_of(path)}
            described["about"] = {**_about(correction), "truth_sha256": tensor_sha256(correction.truth)}
        entry = Entry(chain=_link(self.chain(number - 1), described), **described)
        self._write_line(entry)
        self.entries.append(entry)
        return entry

    def read(self, number: int) -> Correction:
        """Read a correction back.

        Raises:
            UserError: its file is missing, or has changed.
        """
        entry, path = self.entries[number - 1], self._file(number)
        if not path.is_file():
            raise UserError(f"{path} is missing, which the journal beside it names: put it back; nothing was learned.")
        if sha256_of(path) != entry.sha256:
            raise UserError(f"{path} has changed since it was written: put it back as it was; nothing was learned.")
        tensors, about = read_tensors(path)
        own = ("image", "sam", "truth")
        return Correction(
            key=entry.key,
            source=entry.source,
            crop=Crop(*about["crop"]),
            size=(about["size"][0], about["size"][1]),
            prompt=about["prompt"],
            case=about["case"],
            image_sha256=about["image_sha256"],
            extra={name: value for name, value in tensors.items() if name not in own},
            image=tensors["image"],
            sam=tensors["sam"],
            truth=tensors["truth"].bool(),
        )

    def check(self) -> None:
        """Check the sha256 of every file.

        Raises:
            UserError: names the first file that is missing or has changed.
        """
        for entry in self.entries:
            if entry.kind == "correction":
                self.read(entry.number)

    def truncate(self, position: int) -> None:
        """Drop all entries after the first ``position``."""
        dropped = self.entries[position:]
        if not dropped:
            return
        text = "".join(_line(entry) for entry in self.entries[:position])
        with atomic_path(self._path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
        self.entries = self.entries[:position]
        for entry in dropped:
            self._file(entry.number).unlink(missing_ok=True)

    def undone(self, position: int) -> set[int]:
        """Return the corrections among the first ``position`` entries that were taken back there."""
        return {entry.target for entry in self.entries[:position] if entry.kind == "undo"}

    def _file(self, number: int) -> Path:
        return self.folder / FOLDER / f"{number:06d}.safetensors"

    def _write_line(self, entry: Entry) -> None:
        try:
            with open(self._path, "ab") as stream:
                before = stream.tell()
                try:
                    stream.write(_line(entry).encode("utf-8"))
                    stream.flush()
                    os.fsync(stream.fileno())
                except OSError:
                    os.truncate(self._path, before)
                    raise
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error.strerror or error}; the correction is not taken."
            ) from error

    def _read_lines(self) -> list[Entry]:
        if not self._path.is_file():
            if self.read_only:
                raise UserError(
                    f"{self.folder} holds no {LINES}: give the folder of a learner that has been corrected."
                )
            return []
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data) and not self.read_only:
            os.truncate(self._path, len(whole))
        entries: list[Entry] = []
        lines = whole.decode("utf-8", errors="replace").split("\n")[:-1]  # a name may hold other line separators
        for number, line in enumerate(lines, start=1):
            entries.append(self._read_line(number, line, entries[-1].chain if entries else ""))
        return entries

    def _read_line(self, number: int, line: str, before: str) -> Entry:
        try:
            content = json.loads(line)
            entry = Entry(**content)
        except (ValueError, TypeError) as error:
            raise UserError(f"{self._path}: line {number} is no entry of a journal; put the file back.") from error
        described = {name: value for name, value in content.items() if name != "chain"}
        if entry.number != number or entry.kind not in KINDS or entry.chain != _link(before, described):
            raise UserError(f"{self._path}: line {number} has changed since it was written; put the file back.")
        return entry


def _line(entry: Entry) -> str:
    kept = {name: value for name, value in asdict(entry).items() if value or name in ("number", "kind", "target")}
    return json.dumps(kept, ensure_ascii=False, sort_keys=True) + "\n"


def _link(before: str, described: dict[str, Any]) -> str:
    kept = {name: value for name, value in described.items() if value or name in ("number", "kind", "target")}
    text = before + json.dumps(kept, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _about(correction: Correction) -> dict[str, Any]:
    return {
        "case": dict(correction.case),
        "prompt": dict(correction.prompt),
        "crop": list(correction.crop),
        "size": list(correction.size),
        "image_sha256": correction.image_sha256,
    }


def _tensors(correction: Correction) -> dict[str, Tensor]:
    own = {"image": correction.image, "sam": correction.sam, "truth": correction.truth.to(torch.uint8)}
    return {**own, **correction.extra}


# ---- tensors and JSON in one file, whole or not at all, the same bytes for the same content --------------------------


def write_tensors(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write a safetensors file that also holds JSON; when this returns it is on disk.

    Raises:
        UserError: it cannot be written; a file that was there stays as it was.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata={"values": json.dumps(values, ensure_ascii=False, sort_keys=True)})
        except SafetensorError as error:  # hides the operating system's error number
            raise UserError(f"cannot write {path}: {error}; make room, or write somewhere else") from error
        sync(temporary)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises:
        UserError: it is damaged, or another file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})["values"])
            return {name: file.get_tensor(name) for name in file.keys()}, values  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or another file ({error}); put it back, or remove it.") from error


def sync(path: Path) -> None:
    """Let a written file reach the disk."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
