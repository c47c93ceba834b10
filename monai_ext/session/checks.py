"""Mistakes that can be seen without weights and images, looked for before anything is read, built or written."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_ext.configuration import running_parser
from monai_ext.data.phantoms import PATIENT_LABELS
from monai_ext.errors import UserError

STAND_INS = {
    "cases": SimpleNamespace(dataset="", modality=None, labels=PATIENT_LABELS, ignore=None, cases=[]),
    "label_values": PATIENT_LABELS,
    "targets": [],
    "pairs": [],
    "network_def": SimpleNamespace(image_size=256),
    "network": None,
    "sam": None,
    "prompts": None,
    "auxiliary": None,
    "finished": SimpleNamespace(output_dir=".", seed=0, shard=None, cases=[]),
    "learners": {},
}
"""Values for the entries of a config that are read from files or take long to build, while components are tried out."""


def try_out(*ids: str) -> None:
    """Build components of the running config with :data:`STAND_INS`, so that each refuses what it cannot do.

    The components of the run are built later, of the data and the network.

    Args:
        ids: of the components, such as ``inferer``.

    Raises:
        UserError: of the component.
    """
    running = running_parser()
    if running is None:
        return
    parser = ConfigParser(dict(running.get()))
    parser.update({name: value for name, value in STAND_INS.items() if name in running})
    with torch.random.fork_rng(devices=[]):
        for name in ids:
            if name in parser:
                parser.get_parsed_content(name)


def check_device(device: Any) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        UserError: names those there are.
    """
    try:
        torch.empty(0, device=torch.device(device))
    except Exception as error:
        gpus = ", ".join(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        raise UserError(f"--device {device} is not at hand: this machine has cpu{gpus and ', '}{gpus}.") from error


def at_least(least: float, **options: float | None) -> None:
    """Refuse numbers below ``least``; None passes.

    Raises:
        UserError: names the first option.
    """
    for name, value in options.items():
        if value is not None and not (_is_number(value) and value >= least):
            raise UserError(f"--{name} is {value}: give {least} or more.")


def share(**options: float | None) -> None:
    """Refuse numbers that are no shares or probabilities, from 0 to 1; None passes.

    Raises:
        UserError: names the first option.
    """
    for name, value in options.items():
        if value is not None and not (_is_number(value) and 0 <= value <= 1):
            raise UserError(f"--{name} is {value}: give a number from 0 to 1.")


def multiple_of(divisor: int, **options: int) -> None:
    """Refuse numbers that are no multiples of ``divisor``, or below it.

    Raises:
        UserError: names the first option.
    """
    for name, value in options.items():
        if not _is_number(value) or value < divisor or value % divisor:
            raise UserError(f"--{name} is {value}: give a multiple of {divisor}.")


def one_of(choices: Sequence[str], **options: str | None) -> None:
    """Refuse what is not among ``choices``; None passes.

    Raises:
        UserError: names the first option.

    Example:
        >>> one_of(("float32", "bfloat16"), precision="float16")
        monai_ext.errors.UserError: precision 'float16' is unknown: choose one of float32, bfloat16.
    """
    for name, value in options.items():
        if value is not None and value not in choices:
            raise UserError(f"{name} {value!r} is unknown: choose one of {', '.join(choices)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
