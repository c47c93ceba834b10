"""The processes of one job that torchrun started: which one this is, what the first found out, whether all are done.

They share the cases out and meet only here; those of a training, which meet in every step, do so in
:mod:`monai_ext.engines.lockstep`. They leave notes in torchrun's key-value store instead of calling
collectives: one may be hours ahead of another, and one that fails must not leave the others waiting. Without
torchrun there is one process, and every function returns at once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

INTERVAL = 0.1  # seconds between two looks into the store
FOREVER = timedelta(days=365)


class Job:
    """One process's view of its job.

    Args:
        store: that all processes of the job see.
        rank: number of this process; 0 is the first.
        size: number of processes.
    """

    def __init__(self, store: dist.Store, rank: int = 0, size: int = 1) -> None:
        self.store, self.rank, self.size = store, rank, size
        self._barriers = 0

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Return what ``make`` gives in the first process; the others wait for it and call nothing.

        Every process must come here in the same order.

        Args:
            make: returns what JSON can hold.
        """
        key = self._next_barrier()
        if self.rank == 0:
            self.store.set(key, json.dumps(make()))
        self._wait([key])
        return json.loads(self.store.get(key))

    def wait_for_all(self) -> None:
        """Wait, for hours if need be, until every process has come here."""
        key = self._next_barrier()
        self.store.set(f"{key}/{self.rank}", "")
        self._wait([f"{key}/{rank}" for rank in range(self.size)])

    def fails_first(self) -> bool:
        """Tell the others that this process fails; True in the process that was the first to fail."""
        return self.store.add("failures", 1) == 1

    def _next_barrier(self) -> str:
        self._barriers += 1
        return f"barrier/{self._barriers}"

    def _wait(self, keys: Sequence[str]) -> None:
        """Wait for notes of others.

        Raises:
            SystemExit: another process has failed, and says why.
        """
        while not self.store.check(list(keys)):
            if self.store.check(["failures"]):
                raise SystemExit(1)
            time.sleep(INTERVAL)


_job = Job(dist.HashStore())


def rank() -> int:
    """Return the number of this process; 0 for the first and for one alone."""
    return _job.rank


def count() -> int:
    """Return the number of processes."""
    return _job.size


def is_first() -> bool:
    """Tell whether this process is the one that prints and writes tables."""
    return _job.rank == 0


def is_follower() -> bool:
    """Tell whether this process leaves printing and writing to the first: what configs disable handlers by."""
    return _job.rank != 0


def from_first(make: Callable[[], Any]) -> Any:
    """See :meth:`Job.from_first`."""
    return _job.from_first(make)


def wait_for_all() -> None:
    """See :meth:`Job.wait_for_all`."""
    _job.wait_for_all()


def fails_first() -> bool:
    """See :meth:`Job.fails_first`."""
    return _job.fails_first()


def started_by_torchrun() -> int:
    """Return how many processes torchrun (or another launcher that sets its variables) has started, 1 without."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def join() -> None:
    """Join the job that torchrun has started; does nothing without torchrun or for the second time."""
    global _job
    if _job.size == 1 and started_by_torchrun() > 1:
        store, rank, size = next(dist.rendezvous("env://", timeout=FOREVER))
        _job = Job(dist.PrefixStore("monai_ext", store), rank, size)


def open_group(device: str | torch.device) -> None:
    """Open torch's process group, gloo for the CPU and nccl besides for GPUs, so that MONAI knows of the processes."""
    if _job.size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
        store = dist.PrefixStore("group", _job.store)
        dist.init_process_group(backend, store=store, rank=_job.rank, world_size=_job.size)


def close_group() -> None:
    """Close torch's process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share_out(items: Sequence[Any]) -> list[Any]:
    """Return this process's items: parts of equal length (up to one), each in one piece."""
    first, last = (len(items) * part // _job.size for part in (_job.rank, _job.rank + 1))
    return list(items[first:last])
