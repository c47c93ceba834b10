"""A progress bar over the cases of an evaluator."""

from __future__ import annotations

from ignite.engine import Engine, Events
from tqdm import tqdm


class CaseProgress:
    """Shows how many cases are done, on stderr."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _open(self, engine: Engine) -> None:
        self._bar = tqdm(total=engine.state.epoch_length, desc="segmenting", unit="case")

    def _step(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.update()

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error
