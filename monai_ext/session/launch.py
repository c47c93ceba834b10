"""How a run begins and ends: mistakes are shown as one sentence, seeds are fixed, the cases are run."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from types import TracebackType
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import set_determinism

from monai_ext import processes
from monai_ext.configuration import running_parser
from monai_ext.errors import UserError, find_user_error, report_user_errors
from monai_ext.made import keep_made, remove_made
from monai_ext.session.options import check_options


def start(seed: int = 0, threads: int | None = None, device: str | torch.device | None = None) -> None:
    """Begin a run: report mistakes as one sentence, refuse unknown options, fix all seeds.

    Processes that torchrun has started join each other, where the config shares the work out among them.

    Args:
        seed: of Python, NumPy and torch.
        threads: of torch, in each process; None leaves its choice.
        device: of this process; None: the config does not share its work out, and several processes are refused.

    Raises:
        UserError: for an option of the command line that no config file declares or whose value is of another kind, or
            where torchrun has started several processes and the config does not share its work out.
    """
    if device is not None:
        processes.join()
        processes.open_group(device)
    _report_mistakes()
    read = check_options(sys.argv)
    for name, value in read.items():
        _correct(name, value)
    seed, threads = read.get("seed", seed), read.get("threads", threads)  # MONAI has resolved these two already
    if not _is_whole(seed) or not 0 <= int(seed) < 2**32:
        raise UserError(f"--seed is {seed}: give a whole number from 0 to 4294967295.")
    if threads is not None and (not _is_whole(threads) or int(threads) < 1):
        raise UserError(f"--threads is {threads}: give a whole number, 1 or more, or null for torch's own choice.")
    if processes.started_by_torchrun() != processes.count():
        processes.join()
        _report_mistakes()
        raise UserError(
            f"torchrun has started {processes.started_by_torchrun()} processes, but each would do all of the work: "
            "add the bundle's configs/train_multi_gpu.yaml to --config_file, where it has one, or run without torchrun."
        )
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")  # of no concern: we read no DICOM with it
    set_determinism(seed=int(seed))
    if threads:
        torch.set_num_threads(int(threads))


def _is_whole(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and number == int(number)


def _correct(name: str, value: Any) -> None:
    """Replace a value in the config whose ``$`` expression is making this call.

    Setting an entry of MONAI's parser would make it forget what it has resolved, so all places that hold the value are
    changed.
    """
    parser = running_parser()
    if parser is None:
        return
    parent, _, key = name.rpartition("::")
    holder = parser[parent] if parent else parser.get()
    holder[int(key) if isinstance(holder, list) else key] = value
    item = parser.ref_resolver.get_item(name)
    if item is not None:
        item.update_config(value)
    if name in parser.ref_resolver.resolved_content:
        parser.ref_resolver.resolved_content[name] = value


def choose_device() -> torch.device:
    """Return the GPU where there is one, else the CPU; of torchrun's processes each has the GPU of its LOCAL_RANK.

    Raises:
        UserError: if torchrun has started more processes on this machine than it has GPUs.
    """
    processes.join()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if processes.count() == 1:
        return torch.device("cuda")
    index, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= gpus:
        _report_mistakes()
        raise UserError(
            f"torchrun has started more than {gpus} processes for {gpus} GPUs: set --nproc_per_node {gpus}."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def finish() -> None:
    """End a run: leave the group of torchrun's processes."""
    processes.close_group()


def run_cases(evaluator: Engine) -> None:
    """Run an evaluator; where no case is left to be run, let its handlers write the tables all the same.

    MONAI's engines leave an empty data loader without calling any handler.
    """
    keep_made()
    if evaluator.state.epoch_length:
        evaluator.run()
        return
    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
        evaluator.fire_event(event)


def run_training(trainer: Any) -> None:
    """Run a training, whose folder keeps from now on what is in it, for a start that goes on with it.

    Args:
        trainer: a MONAI trainer, or another with a method ``run``.
    """
    keep_made()
    trainer.run()


def _report_mistakes() -> None:
    """Show a mistake as one sentence; of several processes, the first that fails says why, the others are silent."""
    report_user_errors()
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it tells of each exception twice before it ends the run
    report = sys.excepthook

    def report_once(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if find_user_error(error) is not None:
            remove_made()
        if processes.count() == 1:
            report(kind, error, traceback)
        elif processes.fails_first():
            print(file=sys.stderr)  # the line may hold another process's progress bar
            report(kind, error, traceback)

    sys.excepthook = report_once
