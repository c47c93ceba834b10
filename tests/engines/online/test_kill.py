"""A process that is killed with -9, again and again, wherever it is, ends in the same bytes as one that is not."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from forked import Forked

TOTAL = 12

PROGRAM = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("objects", {str(Path(__file__).parent / "conftest.py")!r})
objects = importlib.util.module_from_spec(spec); spec.loader.exec_module(objects)
from monai_ext.engines.online import AuxiliaryFusion, OnlineLearner
from monai_ext.engines.online.auxiliary import AuxiliarySettings
print("imported", flush=True)
learner = OnlineLearner(AuxiliaryFusion(AuxiliarySettings(base=2, crop=32, batch=3)), sys.argv[0])
print("opened", flush=True)
for number in range(learner.position, {TOTAL}):
    view, truth = objects.draw(number)
    learner.correct(learner.infer(view), truth)
    print("learned", number, flush=True)
"""


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def finish(process: Forked) -> None:
    said = process.communicate()
    assert process.returncode == 0, said


@pytest.mark.slow
def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path):
    finish(Forked(PROGRAM, [tmp_path / "whole"]))
    rng = random.Random(0)
    for _ in range(3):
        process, lines = Forked(PROGRAM, [tmp_path / "killed"]), rng.randint(2, 5)
        while process.printed().count("\n") < lines and process.poll() is None:  # up to three corrections
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(Forked(PROGRAM, [tmp_path / "killed"]))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
