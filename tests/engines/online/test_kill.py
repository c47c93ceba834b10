"""A process that is killed with -9, again and again, wherever it is, ends in the same bytes as one that is not."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monai_ext.engines.online import OnlineLearner

TOTAL = 12
FORK = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import MONAI


@pytest.fixture
def start(make_object, make_method) -> Callable[[Path], tuple[Any, Any]]:
    """Folder -> a process that learns in it what is not learned yet, and the end of a pipe that tells how far it is."""

    def learn(folder: Path, told: Any) -> None:
        learner = OnlineLearner(make_method(), folder)
        told.send("opened")
        for number in range(learner.position, TOTAL):
            view, truth = make_object(number)
            learner.correct(learner.infer(view), truth)
            told.send(number)

    def run(folder: Path) -> tuple[Any, Any]:
        heard, told = FORK.Pipe(duplex=False)
        process = FORK.Process(target=learn, args=(folder, told))
        process.start()
        return process, heard

    return run


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def finish(process: Any) -> None:
    process.join(300)
    assert process.exitcode == 0


@pytest.mark.slow
def test_killed_anywhere_it_ends_in_the_same_bytes(start, tmp_path):
    finish(start(tmp_path / "whole")[0])
    rng = random.Random(0)
    for _ in range(3):
        process, heard = start(tmp_path / "killed")
        for _ in range(rng.randint(1, 4)):  # opened, and up to three corrections
            heard.recv()
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    finish(start(tmp_path / "killed")[0])
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
