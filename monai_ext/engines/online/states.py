"""States of a learner on disk: the last ones, each named by its place in the journal, each whole or not there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_ext.engines.online.journal import Journal, read_tensors, write_tensors

FOLDER = "states"
KEPT = 2
"""States that are kept: the last one, and the one before it, from which the last correction is undone."""


class States:
    """``states/000012.safetensors``: what a learner was after the first 12 entries of its journal.

    Args:
        folder: of the learner.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder) / FOLDER

    def positions(self) -> list[int]:
        """Return the places in the journal of which there is a state, ascending."""
        found = (re.fullmatch(r"([0-9]+)\.safetensors", path.name) for path in self.folder.glob("*.safetensors"))
        return sorted(int(match[1]) for match in found if match)

    def write(self, position: int, chain: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Write a state; see :func:`~monai_ext.engines.online.journal.write_tensors`."""
        write_tensors(self._path(position), tensors, {"position": position, "chain": chain, "values": values})

    def read(self, position: int) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
        """Return chain, tensors and JSON of a state."""
        tensors, content = read_tensors(self._path(position))
        return content["chain"], tensors, content["values"]

    def prune(self, marked: Iterable[int] = ()) -> None:
        """Remove all but the last states and those at the marked positions."""
        there = self.positions()
        kept = {*there[-KEPT:], *marked}
        for position in there:
            if position not in kept:
                self._path(position).unlink(missing_ok=True)

    def drop_after(self, position: int) -> None:
        """Remove the states of later places."""
        for other in self.positions():
            if other > position:
                self._path(other).unlink(missing_ok=True)

    def usable(self, journal: Journal, position: int) -> list[int]:
        """Return the states from which place ``position`` of the journal can be reached by going on, the last first.

        A correction that a state has learned and that was taken back later makes the state useless; so does a restart
        after it, which begins anew.
        """
        later = journal.entries[:position]
        start = max((entry.number for entry in later if entry.kind == "restart"), default=0)
        return [
            one
            for one in reversed(self.positions())
            if start <= one <= position and all(entry.target > one for entry in later[one:] if entry.kind == "undo")
        ]

    def _path(self, position: int) -> Path:
        return self.folder / f"{position:06d}.safetensors"
