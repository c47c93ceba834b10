"""The one exception for what a user can mend, and how it reaches the terminal.

MONAI wraps whatever a transform or a config expression raises, and `python -m monai.bundle run` would show a
traceback of MONAI's own frames. :func:`report_user_errors` makes the sentence of a :class:`UserError` the last line
on stderr instead, with exit code 1; every other exception keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave: one sentence that names the case and the file, what is wrong, what to do."""


def find_user_error(error: BaseException | None) -> UserError | None:
    """Return the first :class:`UserError` in the chain of causes and contexts of ``error``, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    user_error = find_user_error(error)
    if isinstance(error, BrokenPipeError):  # whoever read our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif user_error is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        sentence = " ".join(str(user_error).splitlines())  # a file's name may hold a line break
        print(f"error: {sentence}", file=sys.stderr)


def answer_user_errors() -> None:
    """Show a :class:`UserError` as one sentence, whichever program builds a bundle's network.

    A MONAI Label server answers a request that it ends with status 422 and the sentence; by itself it would say
    "Internal Server Error". Called while the server starts; starlette builds its handlers again at the next request. In
    any other process (``python -m monai.bundle ckpt_export`` never comes to ``initialize``) see
    :func:`report_user_errors`.
    """
    server = sys.modules.get("monailabel.app")
    if server is None:
        if sys.excepthook is sys.__excepthook__:
            report_user_errors()
        return
    from starlette.responses import JSONResponse

    async def answer(request: Any, error: Exception) -> Any:
        mistake = find_user_error(error)
        if mistake is None:
            raise error
        return JSONResponse({"detail": " ".join(str(mistake).splitlines())}, status_code=422)

    for kind in (UserError, RuntimeError):  # MONAI wraps what a reader raises in a RuntimeError
        server.app.add_exception_handler(kind, answer)
    server.app.middleware_stack = None


def report_user_errors() -> None:
    """Show a :class:`UserError` that ends this process as one sentence on stderr (the exit code stays 1)."""
    sys.excepthook = _excepthook
