"""Which cases are finished: a run that was killed, started again, does the others and ends in the same bytes.

The order of things for one case: the other handlers write its mask and overlay and hand over their rows, then this
one writes ``cases/<case>.json`` (:mod:`monai_ext.evaluation.case_record`). When all cases are done, the tables are
made of these files, in the order of the data list, whichever process, run or shard has made them.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from monai_ext import processes
from monai_ext.data.contents import case_contents, content_key
from monai_ext.data.shards import parse_shard
from monai_ext.evaluation.case_record import (
    FOLDER,
    SHARD_FILE,
    CaseRecord,
    read_case_record,
    record_path,
)
from monai_ext.evaluation.table import write_text

FOLDERS = (FOLDER, "masks", "overlays", "uncertainty", "supports", "phantom")
"""Of a run's outputs, where a killed run may have left half-written files."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}-.+")  # of monai_ext.files.atomic_path


class FinishedCases:
    """Keeps a record of each finished case, and tells which cases are left.

    A case is finished if its record has the case's key and all files written for it are as they were. The key is
    the sha256 over the contents of the case's files (image, references, their labels, the label of an evaluation),
    the case's further entries, and ``settings``. So a changed image, option or weight, and a mask deleted or
    altered, mean that a case is run again.

    Every case begins with the same seeds: its result does not depend on which cases were run before it. A
    method that goes on from the mask of an earlier case names that case in the entry ``previous``
    (:func:`monai_ext.data.pairs.with_previous`) and reads the mask that was written for it: then this case's key
    holds that case's key, one process does both, the earlier one first, and a run that was killed goes on from the
    file. A method that carries anything else from case to case (one that learns online) takes
    :class:`monai_ext.handlers.finished_stream.FinishedStream` instead.

    Handlers that write something for a case take this object as ``finished`` and add it to :meth:`record`. Attach
    it after them and before a :class:`~monai_ext.handlers.run_record.RunRecord`.

    Args:
        output_dir: folder of the run's outputs.
        cases: all cases in the order of the data list, each with ``case``, ``patient`` and its files.
        settings: all that decides a result besides the case itself; see
            :func:`monai_ext.session.case_settings`.
        shard: such as ``"0/4"``: take these cases only; ``shard.json`` then tells
            :mod:`monai_ext.evaluation.merge` what the whole is.
        seed: of Python, NumPy and torch at the beginning of each case.

    Attributes:
        cases: the cases of this run, those of its shard.
        left: those that are still to be done, by all processes.

    Raises:
        UserError: for an impossible shard, or a file that cannot be read.

    Example:
        >>> finished = FinishedCases("OUT", pairs, settings, seed=0)
        >>> handlers = [MaskWriter("OUT", {"LV": 3}, finished), finished]
        >>> evaluator = CaseEvaluator(device, Dataset(finished.own(), preprocessing), sam, inferer, handlers=handlers)
    """

    def __init__(
        self,
        output_dir: str | Path,
        cases: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        shard: str | None = None,
        seed: int = 0,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.settings = dict(settings)
        self.seed = seed
        self.shard = parse_shard(shard)
        self.list = [str(case["case"]) for case in cases]
        self.cases = [dict(case) for case in cases if self.shard is None or self.shard.holds(case)]
        self.summary_options: dict[str, Any] = {}
        self._by_name = {str(case["case"]): case for case in self.cases}
        self._settings_key = content_key(self.settings)
        self._keys: dict[str, str] = {}
        self._open: dict[str, CaseRecord] = {}
        names = set(processes.from_first(self._find_left))
        self.left = [case for case in self.cases if case["case"] in names]

    def own(self) -> list[dict[str, Any]]:
        """Return the cases that this process has to do; a patient's are kept together where that is fair."""
        by_patient: dict[str, list[dict[str, Any]]] = {}
        for case in self.left:
            by_patient.setdefault(str(case.get("patient") or case["case"]), []).append(case)
        if any(case.get("previous") for case in self.left):
            own = [case for cases in processes.share_out(list(by_patient.values())) for case in _in_sequence(cases)]
        else:
            own = processes.share_out([case for cases in by_patient.values() for case in cases])
        for case in own:
            self._key(case)  # of the files as they are now, not as they may be when the case is done
        return own

    def record(self, case: str) -> CaseRecord:
        """Return the record of a case that is being run, to add files and rows to; it is written at the case's end."""
        if case not in self._open:
            self._open[case] = CaseRecord(case, self._key(self._by_name[case]))
        return self._open[case]

    def kept(self) -> list[Path]:
        """Return the files of the cases that are not run again, for :meth:`RunRecord.keep`."""
        left = {case["case"] for case in self.left}
        names = [case["case"] for case in self.cases if case["case"] not in left]
        records = [(name, read_case_record(self.output_dir, name)) for name in names]
        files = [self.output_dir / file for _, record in records if record for file in record.files]
        return [*files, *(record_path(self.output_dir, name) for name in names)]

    def records(self) -> Iterator[CaseRecord]:
        """Yield the record of each case of this run, in the order of the data list.

        Raises:
            RuntimeError: a case has none.
        """
        for case in self.cases:
            record = read_case_record(self.output_dir, case["case"])
            if record is None:
                raise RuntimeError(f"case {case['case']!r} has no record in {self.output_dir / FOLDER}")
            yield record

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, after the handlers that write something for a case."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._wait)  # all have looked at what is there
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._seed)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._save)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._wait)  # the tables are made of all cases
        engine.add_event_handler(Events.COMPLETED, self._describe)

    def _start(self, engine: Engine) -> None:
        self._open = {}
        done = len(self.cases) - len(self.left)
        if done and processes.is_first():
            print(f"{done} of {len(self.cases)} cases are finished and kept as they are", flush=True)
        if processes.is_first() and (unexpected := self._unexpected()):
            print(
                f"warning: {self.output_dir} holds the files of {len(unexpected)} cases that this run does not have "
                f"({', '.join(unexpected[:3])}{', ...' if len(unexpected) > 3 else ''}); they stay as they are",
                file=sys.stderr,
                flush=True,
            )

    def _unexpected(self) -> list[str]:
        """Return the cases of another run, whose masks and overlays lie among those of this one."""
        records = (self.output_dir / FOLDER).glob("*.json")
        return sorted({path.stem for path in records} - {str(case["case"]) for case in self.cases})

    def _seed(self, engine: Engine) -> None:
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)

    def _save(self, engine: Engine) -> None:
        for record in self._open.values():
            record.write(self.output_dir)
        self._open = {}

    def _wait(self, engine: Engine) -> None:
        processes.wait_for_all()

    def _describe(self, engine: Engine) -> None:
        if self.shard is None or not processes.is_first():
            return
        content = {
            "shard": str(self.shard),
            "list": self.list,
            "cases": {case["case"]: self._key(case) for case in self.cases},
            "settings": self.settings,
            "summary": self.summary_options,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
        write_text(self.output_dir / SHARD_FILE, text + "\n")

    def _find_left(self) -> list[str]:
        _remove_temporaries(self.output_dir)
        bar = tqdm(self.cases, desc="looking for finished cases", unit="case", delay=2, leave=False)
        return [case["case"] for case in bar if not self._is_finished(case)]

    def _is_finished(self, case: Mapping[str, Any]) -> bool:
        record = read_case_record(self.output_dir, case["case"])
        return record is not None and record.key == self._key(case) and record.find_change(self.output_dir) is None

    def _key(self, case: Mapping[str, Any]) -> str:
        chain = [case]
        while (before := self._by_name.get(chain[-1].get("previous", ""))) and before["case"] not in self._keys:
            chain.append(before)
        for one in reversed(chain):
            if one["case"] not in self._keys:
                self._keys[one["case"]] = content_key([self._settings_key, self._entries(one)])
        return self._keys[case["case"]]

    def _entries(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Replace what a case names by what stands there: files by their contents, the case before by its key."""
        entries = case_contents(case)
        for known in ("previous_image", "previous_modality"):  # are in that case's key
            entries.pop(known, None)
        if case.get("previous"):
            entries["previous"] = self._keys.get(case["previous"], case["previous"])
        return entries


def _in_sequence(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order a patient's cases so that each comes after the one it goes on from."""
    waiting = {case["case"]: case for case in cases}
    ordered: list[dict[str, Any]] = []
    for name in list(waiting):
        chain = []
        while name in waiting:
            chain.append(waiting.pop(name))
            name = chain[-1].get("previous", "")
        ordered += reversed(chain)
    return ordered


def _remove_temporaries(output_dir: Path) -> None:
    """Remove half-written files that a killed run has left."""
    for folder in (output_dir, *(output_dir / name for name in FOLDERS)):
        for path in folder.glob(".*") if folder.is_dir() else ():
            if path.is_file() and _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
