"""Writes ``run.json``: what ran, on what, with what, so that somebody else can repeat it and check files."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_ext.data.images import atomic_path
from monai_ext.files import sha256_of

PACKAGES = (
    "monai-ext",
    "monai",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "POT",
    "nibabel",
    "pillow",
    "segment-anything",
    "pytorch-ignite",
)
FILE_KEYS = ("image", "label", "scribble", "reference_image", "reference_label")
FILE_NAME = "run.json"
FileState = tuple[int, int, int]


class RunRecord:
    """Records one run of an engine and writes ``run.json`` when it ends.

    Attach it last: it lists the files that the handlers before it wrote.

    Content: package versions, command line, config options, seed; path, size and sha256 of every input, of
    the weights and of every file that the run wrote under ``output_dir`` (files left there by earlier runs
    are not its outputs); hardware, start, wall time of the engine's run, peak memory of the process. A run
    that fails leaves no record.

    Args:
        output_dir: folder of the run's outputs.
        config: options of the run by name; what JSON cannot hold is written as text.
        inputs: paths, or cases and pairs, of which the entries ``image``, ``label``, ``scribble``,
            ``reference_image`` and ``reference_label`` are taken.
        checkpoint: file of the weights; None: there are none.
        seed: of the run.
    """

    def __init__(
        self,
        output_dir: str | Path,
        config: Mapping[str, Any] | None = None,
        inputs: Iterable[str | os.PathLike[str] | Mapping[str, Any]] = (),
        checkpoint: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.config = dict(config or {})
        self.inputs = sorted({str(path) for item in inputs for path in _paths(item)})
        self.checkpoint = checkpoint
        self.seed = seed
        self._started = datetime.now(timezone.utc)
        self._clock = time.perf_counter()
        self._before: dict[Path, FileState] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to any ignite engine, as the last handler."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._started, self._clock = datetime.now(timezone.utc), time.perf_counter()
        self._before = self._files()

    def _write(self, engine: Engine) -> None:
        wall_seconds = time.perf_counter() - self._clock
        files = self._files()
        written = [path for path, state in files.items() if self._before.get(path) != state]
        record = {
            "command": shlex.join(sys.orig_argv),
            "started": self._started.isoformat(timespec="seconds"),
            "wall_seconds": round(wall_seconds, 3),
            "peak_memory_bytes": _peak_memory(),
            "seed": self.seed,
            "config": self.config,
            "versions": _versions(),
            "hardware": _hardware(),
            "checkpoint": None if self.checkpoint is None else _fingerprint(Path(self.checkpoint)),
            "inputs": [_fingerprint(Path(path)) for path in self.inputs],
            "outputs": [_fingerprint(path, self.output_dir) for path in sorted(written)],
        }
        text = json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False)
        with atomic_path(self.output_dir / FILE_NAME) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def _files(self) -> dict[Path, FileState]:
        """Return the files under the output folder, each with what changes when it is written again."""
        states = {}
        for path in self.output_dir.rglob("*"):
            if path.is_file() and path.name != FILE_NAME and not path.name.startswith("."):
                stat = path.stat()
                states[path] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        return states


def _paths(item: str | os.PathLike[str] | Mapping[str, Any]) -> Iterator[str | os.PathLike[str]]:
    if not isinstance(item, Mapping):
        yield item
        return
    for key in FILE_KEYS:
        value = item.get(key)
        if isinstance(value, (str, os.PathLike)):
            yield value
        elif value is not None:
            yield from value


def _fingerprint(path: Path, root: Path | None = None) -> dict[str, Any]:
    name = path if root is None else path.relative_to(root)
    return {"path": name.as_posix(), "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    versions["torch"] = str(torch.__version__)  # with its build: +cu132, +cpu
    return versions


def _hardware() -> dict[str, Any]:
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _peak_memory() -> int | None:
    """Return the largest resident size of this process so far in bytes; None where it is not known."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _plain(value: Any) -> Any:
    """Return what JSON can hold of a value: anything unknown, NaN and Inf as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
