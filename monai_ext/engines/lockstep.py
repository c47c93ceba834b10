"""Processes that train one network together: each takes its part of every batch, all take the same step.

Torch's ``DistributedDataParallel`` gathers gradients behind calls of ``forward``. Interactive training calls
``encode`` once and ``decode_batch`` several times a batch, and a process whose part holds no structure calls neither
backwards, so gradients are added up here, explicitly, between the backward pass and the clipping.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from monai_ext import processes


class ProcessGroup:
    """One process's view of those that train with it; by default it is alone, and nothing is exchanged.

    All of them must make the same calls in the same order.

    Args:
        rank: number of this process; 0 is the first.
        size: number of processes.
        group: torch's process group; None is the one that :func:`monai_ext.processes.open_group` opened.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self.group = rank, size, group

    def total(self, values: Sequence[float]) -> list[float]:
        """Add numbers up, each over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self.group)
        return sums.tolist()

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes.

        A gradient that no process has stays None: AdamW would decay a parameter whose gradient is 0.
        """
        if self.size == 1:
            return
        present = self.total([float(p.grad is not None) for p in parameters])
        pending = []
        for parameter, count in zip(parameters, present, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                pending.append(dist.all_reduce(parameter.grad, group=self.group, async_op=True))
        for work in pending:
            work.wait()

    def copy_first(self, *modules: nn.Module | None) -> None:
        """Overwrite parameters and buffers by those of the first process; modules that are None are left out."""
        if self.size == 1:
            return
        for module in modules:
            for value in module.state_dict().values() if module is not None else ():
                dist.broadcast(value, group=self.group, group_src=0)


class BarrierHandler:
    """Lets processes begin with the same weights, and wait after each epoch while the first validates and writes.

    Waiting in the middle of a step would time out. Attach it to a trainer as its last handler.

    Args:
        group: the processes.
        network: begins as that of the first process.
        auxiliary: too; None where there is none.
    """

    def __init__(self, group: ProcessGroup, network: nn.Module, auxiliary: nn.Module | None = None) -> None:
        self.group, self.network, self.auxiliary = group, network, auxiliary

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, lambda: self.group.copy_first(self.network, self.auxiliary))
        engine.add_event_handler(Events.EPOCH_COMPLETED, processes.wait_for_all)


def join() -> ProcessGroup:
    """Return the processes that torchrun has started, or the only one."""
    return ProcessGroup(processes.rank(), processes.count())
