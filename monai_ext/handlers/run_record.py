"""Writes ``run.json`` when an engine's run ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import distributed

from monai_ext.configuration import described_config, running_parser
from monai_ext.evaluation.record import RUN_FILE, output_files, peak_memory, write_record

FileState = tuple[int, int, int]


class RunRecord:
    """Records one run of an engine: see :func:`monai_ext.evaluation.record.write_record` for the content.

    Attach it last: it lists the files that the handlers before it wrote. Files that earlier runs left under
    ``output_dir`` are not outputs of this one, unless :meth:`keep` says so. Wall time is that of the engine's
    run. A run that fails leaves no record, nor that of an earlier run, whose files it may have changed.

    With several processes (torch.distributed) the first one writes, for all of them: inputs are united, memory
    is that of the largest.

    Args:
        output_dir: folder of the run's outputs, the same for all processes.
        config: options of the run by name; None: what the running config holds, with overlays and the command line's
            options, however deep they reach (:func:`monai_ext.configuration.described_config`). What JSON cannot hold
            is written as text.
        inputs: paths, or cases and pairs, of which the paths of images and labels are taken.
        checkpoint: file of the weights; None: there are none.
        seed: of the run.
        datalist: the data list; names the data set and its licence.
        data_root: folder that inputs are named relative to; None: the folder of the data list.
        shard: such as "1/4" where only a part of the cases is run.
        note: what a reader of the results has to know; "": nothing.
    """

    def __init__(
        self,
        output_dir: str | Path,
        config: Mapping[str, Any] | None = None,
        inputs: Iterable[str | os.PathLike[str] | Mapping[str, Any]] = (),
        checkpoint: str | Path | None = None,
        seed: int = 0,
        datalist: str | Path | None = None,
        data_root: str | Path | None = None,
        shard: str | None = None,
        note: str = "",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.config = config
        self._parser = running_parser() if config is None else None
        self.inputs = list(inputs)
        self.checkpoint = checkpoint
        self.seed = seed
        self.datalist = datalist
        self.data_root = data_root
        self.shard, self.note = shard, note
        self._started = datetime.now(timezone.utc)
        self._clock = time.perf_counter()
        self._before: dict[Path, FileState] = {}
        self._kept: set[Path] = set()

    def attach(self, engine: Engine) -> None:
        """Attach to any ignite engine, as the last handler."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def keep(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Count files of an interrupted run, which this run did not write again, among its outputs."""
        self._kept |= {Path(path) for path in paths}

    def _start(self, engine: Engine) -> None:
        self._started, self._clock = datetime.now(timezone.utc), time.perf_counter()
        self._before = self._files()
        if _is_first():
            (self.output_dir / RUN_FILE).unlink(missing_ok=True)
        _gather(None)  # no process writes before the first one has looked

    def _write(self, engine: Engine) -> None:
        parts = _gather((self.inputs, self._kept, peak_memory()))
        if _is_first():
            kept = {path for _, paths, _ in parts for path in paths}
            write_record(
                self.output_dir,
                inputs=[item for inputs, _, _ in parts for item in inputs],
                outputs=[path.relative_to(self.output_dir) for path in self._written(kept)],
                config=described_config(self._parser) if self.config is None else self.config,
                checkpoint=self.checkpoint,
                seed=self.seed,
                datalist=self.datalist,
                data_root=self.data_root,
                started=self._started,
                wall_seconds=time.perf_counter() - self._clock,
                peak_memory_bytes=max((peak for *_, peak in parts if peak), default=None),
                processes=len(parts),
                shard=self.shard,
                note=self.note,
            )
        _gather(None)  # when any process has ended its run, the record is there

    def _written(self, kept: set[Path]) -> list[Path]:
        same = {path.resolve() for path in kept}
        files = self._files()
        return [path for path in files if self._before.get(path) != files[path] or path.resolve() in same]

    def _files(self) -> dict[Path, FileState]:
        """Return the files under the output folder, each with what changes when it is written again."""
        states = {}
        for path in output_files(self.output_dir):
            stat = path.stat()
            states[path] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        return states


def _gather(value: Any) -> list[Any]:
    """Return the value of every process; all of them have to come here."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _is_first() -> bool:
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
