"""Finished cases of a stream: what a method learned online from the cases before is part of every result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from monai_ext import processes
from monai_ext.data.contents import content_key
from monai_ext.errors import UserError
from monai_ext.evaluation.case_record import CaseRecord, read_case_record
from monai_ext.handlers.finished_cases import FinishedCases


class FinishedStream(FinishedCases):
    """Keeps a record of each finished case of a stream; a run that goes on keeps the longest finished beginning.

    The key of a case holds the keys of all cases before it, in their order. So a case that has changed, or whose mask
    was altered, is run again with all that come after it. One process runs all, in order.

    Args:
        output_dir: see :class:`FinishedCases`.
        cases: the stream, in its order.
        settings: see :class:`FinishedCases`.
        seed: likewise.

    Raises:
        UserError: torchrun has started several processes.
    """

    def __init__(
        self, output_dir: str | Path, cases: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], seed: int = 0
    ) -> None:
        if processes.count() > 1:
            raise UserError("a stream is run by one process, case after case: start it without torchrun.")
        super().__init__(output_dir, cases, settings, seed=seed)

    def own(self) -> list[dict[str, Any]]:
        """Return the cases that are left, in the order of the stream."""
        return self.left

    def last(self) -> CaseRecord | None:
        """Return the record of the last case of the finished beginning; None where there is none."""
        done = len(self.cases) - len(self.left)
        return read_case_record(self.output_dir, self.cases[done - 1]["case"]) if done else None

    def _find_left(self) -> list[str]:
        names = super()._find_left()
        done = len(list(takewhile(lambda case: case["case"] not in set(names), self.cases)))
        return [case["case"] for case in self.cases[done:]]

    def _key(self, case: Mapping[str, Any]) -> str:
        for one in self.cases[len(self._keys) :]:
            before = self._keys[self.cases[len(self._keys) - 1]["case"]] if self._keys else ""
            self._keys[one["case"]] = content_key([self._settings_key, self._entries(one), before])
        return self._keys[case["case"]]
