from __future__ import annotations

import sys

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader
from monai.engines.evaluator import Evaluator
from monai.utils import set_determinism

from monai_ext import processes, session
from monai_ext.errors import UserError
from monai_ext.session import launch

MONAI = "/site-packages/monai/bundle/__main__.py"


def test_start_seeds_and_limits_threads(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    before = torch.get_num_threads()
    try:
        session.start(5, threads=1)
        first = torch.rand(3)
        session.start(5)
        assert torch.equal(torch.rand(3), first)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
        set_determinism(None)
    assert sys.excepthook is not sys.__excepthook__


def test_torchrun_without_its_overlay_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "join", lambda: None)
    with pytest.raises(UserError, match=r"started 2 processes.*add the bundle's configs/train_multi_gpu.yaml"):
        session.start()


def test_a_mistake_is_told_by_the_first_process_that_fails(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(processes, "_job", processes.Job(torch.distributed.HashStore(), 1, 2))
    error = UserError("wrong")
    for told in ("error: wrong", ""):
        launch._report_mistakes()
        sys.excepthook(UserError, error, None)
        assert capsys.readouterr().err.strip() == told


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert session.choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert session.choose_device() == torch.device("cuda"), "one process takes torch's own choice"
    monkeypatch.setattr(processes, "_job", processes.Job(torch.distributed.HashStore(), 1, 2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert session.choose_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="--nproc_per_node 2"):
        session.choose_device()


def test_start_refuses_the_command_line(config, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", [MONAI, "run", "--config_file", config, "--sead", "3"])
    with pytest.raises(UserError, match="--sead"):
        session.start()


@pytest.mark.parametrize(("seed", "threads"), [(-1, None), (2**32, None), (1.5, None), ("x", None), (0, 0), (0, "x")])
def test_impossible_seeds_and_threads_are_refused(monkeypatch, seed, threads):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    with pytest.raises(UserError, match="--threads is" if seed == 0 else "--seed is"):
        session.start(seed, threads)


def test_words_of_yaml_reach_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    path = tmp_path / "config.yaml"
    path.write_text(
        "imports: ['$import monai_ext.session as session']\n"
        "seed: 0\nearly_stop: true\ntrain: {rounds: 2, stop: '@early_stop'}\n"
        "seen: '$(@seed, @train#stop, @train#rounds)'\ninitialize: ['$session.start(@seed)']\nrun: ['@seen']\n"
    )
    given = {"seed": 100.0, "early_stop": "false", "train#rounds": 3.0}
    words = [f"--{name}={value}" for name, value in given.items()]
    monkeypatch.setattr(sys, "argv", [MONAI, "run", "--config_file", str(path), *words])
    workflow = ConfigWorkflow(str(path), logging_file=False, **given)
    try:
        workflow.initialize()
        assert workflow.run() == [(100, False, 3)]
        assert type(workflow.parser["seed"]) is int
        assert workflow.parser["early_stop"] is False
    finally:
        set_determinism(None)


def test_a_mistake_removes_what_was_made(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    launch._report_mistakes()
    session.make_folder(tmp_path / "a" / "out")
    sys.excepthook(UserError, UserError("wrong"), None)
    assert capsys.readouterr().err == "error: wrong\n"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("cases", [[1, 2], []])
def test_handlers_end_a_run_without_cases_too(cases):
    events = []
    evaluator = Evaluator(torch.device("cpu"), DataLoader(cases), iteration_update=lambda engine, case: None)
    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
        evaluator.add_event_handler(event, lambda engine, event=event: events.append(event))
    session.run_cases(evaluator)
    assert events == [Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED]
