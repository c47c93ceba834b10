"""Long trainings: repeatable draws, a progress bar, going on after a kill, and the weights at the end.

Where several processes train together, the first one shows and writes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler
from torch import Tensor, nn
from tqdm import tqdm

from monai_ext import processes
from monai_ext.data.provenance import WeightRecord, has_record, record_training
from monai_ext.errors import UserError
from monai_ext.files import atomic_path
from monai_ext.networks.lora import merged_state
from monai_ext.networks.state_dict import count_not_finite, refuse_diverged


class Stateful(Protocol):
    """A network, optimiser or scheduler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def stage_handlers(folder: Path, states: Mapping[str, Stateful | None], sampler: Any, scheduler: Any) -> list[Any]:
    """Return what a training inside a longer run needs: draws, learning rate, curves, resume, progress.

    Args:
        folder: of the checkpoint and TensorBoard's events.
        states: see :class:`ResumeTraining`.
        sampler: see :class:`EpochDraws`.
        scheduler: of the learning rate, stepped with each iteration.
    """
    return [
        EpochDraws(sampler),
        LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
        TensorBoardStatsHandler(log_dir=str(folder), tag_name="loss", output_transform=losses),
        ResumeTraining(folder, states),
        TrainingProgress(),
    ]


def losses(output: Mapping[str, float]) -> dict[str, float]:
    """Return the losses of an iteration's output, for TensorBoard."""
    return dict(output)


class EpochDraws:
    """Tells a sampler which epoch begins, so that its draws are those of that epoch also after a resume."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda e: self.sampler.set_epoch(e.state.epoch - 1))


class TrainingProgress:
    """Shows iterations and the losses, on stderr."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer whose output is a dictionary of numbers."""
        if processes.is_follower():
            return
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, lambda e: self._bar.close() if self._bar else None)

    def _open(self, engine: Engine) -> None:
        total = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
        self._bar = tqdm(total=total, initial=engine.state.iteration, desc="training", unit="it", mininterval=5)

    def _step(self, engine: Engine) -> None:
        if self._bar is not None:
            output: Any = engine.state.output
            self._bar.set_postfix({k: f"{v:.3f}" for k, v in output.items()}, refresh=False)
            self._bar.update()


class ResumeTraining:
    """Writes ``checkpoint.pt`` after each epoch and starts from it where it is there.

    Attach it after the handlers that draw and step, so that a checkpoint holds a whole epoch.

    Args:
        folder: of the checkpoint.
        states: name -> network, optimiser, scheduler; None entries are left out.
        every: epochs between checkpoints.
    """

    def __init__(self, folder: str | Path, states: Mapping[str, Stateful | None], every: int = 1) -> None:
        self.path = Path(folder) / "checkpoint.pt"
        self.states = {name: state for name, state in states.items() if state is not None}
        self.every = every

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self._load)
        if processes.is_first():
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self._save)

    def _load(self, engine: Engine) -> None:
        if not self.path.exists():
            return
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, state in self.states.items():
                state.load_state_dict(saved[name])
        except (KeyError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
            raise UserError(
                f"{self.path} belongs to another training or is damaged ({type(error).__name__}): give a new "
                "--output_dir, or delete it to start over."
            ) from error
        for key, option in (("epoch_length", "epoch length"), ("max_epochs", "number of epochs")):
            if saved[key] != getattr(engine.state, key):  # the learning rate's schedule would no longer fit
                raise UserError(
                    f"{self.path} was made with another {option} ({saved[key]}): repeat it, or give a new --output_dir."
                )
        engine.state.epoch, engine.state.iteration = saved["epoch"], saved["iteration"]

    def _save(self, engine: Engine) -> None:
        state = {name: state.state_dict() for name, state in self.states.items()}
        counts = {key: int(getattr(engine.state, key)) for key in ("epoch", "iteration", "epoch_length", "max_epochs")}
        with atomic_path(self.path) as path:
            torch.save({**state, **counts}, path)


class ExportWeights:
    """Writes the network as a plain state dict, ``<name>.pt``, with its record, when the training ends.

    LoRA is merged into the weights, so that the file is one of the plain network. Weights of a finished training and
    their record stay as they are.

    Args:
        folder: of the weights.
        network: what is written.
        record: what is said of the weights; its ``sha256`` is filled in.
        precision: of the numbers, ``float16`` or ``float32``, which is twice as large.
        state: returns the tensors to write, where these are not all of the network's.

    Raises:
        UserError: for another precision; at the end, for weights that are not finite, or not in this precision.
    """

    def __init__(
        self,
        folder: str | Path,
        network: nn.Module,
        record: WeightRecord,
        precision: str = "float16",
        state: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        if precision not in ("float16", "float32"):
            raise UserError(f"export_precision {precision!r} is unknown: choose float16 or float32.")
        self.folder, self.network, self.record = Path(folder), network, record
        self.dtype: torch.dtype = getattr(torch, precision)
        self.state = state

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if processes.is_first():
            engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        path = self.folder / f"{self.record.name}.pt"
        if has_record(path):
            return
        with atomic_path(path) as temporary:
            buffer = io.BytesIO()
            state = merged_state(self.network) if self.state is None else self.state()
            torch.save({name: self._plain(name, value) for name, value in state.items()}, buffer)
            temporary.write_bytes(buffer.getvalue())
        record_training(path, self.record, self.folder)

    def _plain(self, name: str, value: Tensor) -> Tensor:
        value = value.detach().cpu().contiguous()
        plain = value.to(self.dtype) if value.is_floating_point() else value
        refuse_diverged(name, value)
        if count_not_finite(plain):
            raise UserError(f"{name} is too large for float16: start again with --export_precision float32.")
        return plain
