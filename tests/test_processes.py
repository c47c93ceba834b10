"""Processes of one job, played by threads that share a store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from monai_ext import processes
from monai_ext.processes import Job


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(processes, "INTERVAL", 0.001)


def in_processes(size: int, work: Callable[[Job], Any]) -> list[Any]:
    """What ``work`` returns, or raises, in each process."""
    store, results = dist.HashStore(), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Job(store, rank, size))
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "a process waits for ever"
    return results


def test_only_the_first_finds_out_and_all_know():
    calls = []

    def work(job: Job) -> list[Any]:
        def find(what: str) -> Callable[[], list[Any]]:
            return lambda: (calls.append(job.rank), [what, None])[1]

        return [job.from_first(find("a")), job.from_first(find("b"))]

    assert in_processes(3, work) == [[["a", None], ["b", None]]] * 3
    assert calls == [0, 0]


def test_nobody_goes_on_before_the_last_has_come():
    came: list[int] = []

    def work(job: Job) -> list[int]:
        time.sleep(0.02 * job.rank)
        came.append(job.rank)
        job.wait_for_all()
        return list(came)

    assert [sorted(seen) for seen in in_processes(3, work)] == [[0, 1, 2]] * 3


@pytest.mark.parametrize("failing", [0, 1])
def test_who_waits_for_one_that_failed_ends(failing):
    def work(job: Job) -> Any:
        if job.rank == failing:
            return job.fails_first()
        return job.from_first(lambda: None), job.wait_for_all()

    results = in_processes(2, work)
    assert results[failing] is True
    assert isinstance(results[1 - failing], SystemExit)
    assert results[1 - failing].code == 1


def test_one_process_is_the_first_to_fail():
    assert sorted(in_processes(3, Job.fails_first)) == [False, False, True]


@pytest.mark.parametrize(("items", "size"), [(10, 3), (2, 2), (1, 3), (0, 2), (7, 1)])
def test_items_are_shared_out_once_each(monkeypatch, items, size):
    parts = []
    for rank in range(size):
        monkeypatch.setattr(processes, "_job", Job(dist.HashStore(), rank, size))
        parts.append(processes.share_out(range(items)))
        assert (processes.is_first(), processes.is_follower()) == (rank == 0, rank > 0)
    assert [item for part in parts for item in part] == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_waits(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes.join()
    processes.open_group("cpu")
    assert (processes.rank(), processes.count(), processes.is_first()) == (0, 1, True)
    assert processes.from_first(lambda: 3) == 3
    processes.wait_for_all()
    processes.close_group()
    assert not dist.is_initialized()


def test_torchrun_is_seen_by_its_variables(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    assert processes.started_by_torchrun() == 1
    monkeypatch.setenv("RANK", "0")
    assert processes.started_by_torchrun() == 4
