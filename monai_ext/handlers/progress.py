"""A progress bar over the cases of an evaluator."""

from __future__ import annotations

from ignite.engine import Engine, Events
from tqdm import tqdm

from monai_ext import processes


class CaseProgress:
    """Shows how many cases are done, on stderr; of several processes, the first one shows its own cases."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _open(self, engine: Engine) -> None:
        if engine.state.epoch_length and processes.is_first():
            several = f" (process 1 of {processes.count()})" if processes.count() > 1 else ""
            self._bar = tqdm(total=engine.state.epoch_length, desc=f"segmenting{several}", unit="case")

    def _step(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.update()

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error
