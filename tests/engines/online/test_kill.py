"""A process that is killed with -9, again and again, wherever it is, ends in the same bytes as one that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
TOTAL = 12

PROGRAM = f"""
import importlib.util, sys, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("objects", {str(HERE / "conftest.py")!r})
objects = importlib.util.module_from_spec(spec); spec.loader.exec_module(objects)
from monai_ext.engines.online import AuxiliaryFusion, OnlineLearner
from monai_ext.engines.online.auxiliary import AuxiliarySettings
print("imported", flush=True)
learner = OnlineLearner(AuxiliaryFusion(AuxiliarySettings(base=2, crop=32, batch=3)), sys.argv[1])
print("opened", flush=True)
for number in range(learner.position, {TOTAL}):
    view, truth = objects.draw(number)
    learner.correct(learner.infer(view), truth)
    print("learned", number, flush=True)
"""


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, env=environment)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait(300) == 0
    rng = random.Random(0)
    for _ in range(3):
        process = start(tmp_path / "killed")
        assert process.stdout is not None
        for _ in range(rng.randint(2, 5)):  # imported, opened, and up to three corrections
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    last = start(tmp_path / "killed")
    assert last.wait(300) == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
