"""Commands and programs in processes of their own that need not import torch and MONAI again, which takes seconds.

The first call starts a process that imports them once; each program is a fork of it, and a process like any other: with
arguments, folder, output and exit code of its own, and it can be killed.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONTEXT: Any = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch.utils.tensorboard", "monai.bundle", "monai.engines", "monai_ext.session.blocks", "monai_ext.networks.sam"]
)

BUNDLE = """import runpy, sys
sys.orig_argv[2:2] = ["monai.bundle"]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


class Forked:
    """A program that runs; it has what is needed of :class:`subprocess.Popen`.

    Args:
        program: its text.
        words: ``sys.argv``.
        cwd: its folder; None: that of the tests.
        join: standard error is written into the standard output.
    """

    def __init__(
        self,
        program: str,
        words: Sequence[Any] = (),
        cwd: str | os.PathLike[str] | None = None,
        join: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [str(Path(self._folder.name) / name) for name in (("out", "out") if join else ("out", "err"))]
        given = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        given.pop("PYTEST_CURRENT_TEST", None)
        arguments = (program, [str(word) for word in words], os.fspath(cwd or os.getcwd()), given, *self._files)
        self._process = CONTEXT.Process(target=_run, args=arguments)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, or None."""
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self._process.pid, signal.SIGKILL)

    def printed(self) -> str:
        """Return what was written to standard output until now."""
        return Path(self._files[0]).read_text() if os.path.exists(self._files[0]) else ""

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait for the end; return what was written to standard output and to standard error."""
        self._process.join(timeout)
        assert self.returncode is not None, "the command takes too long"
        return self.printed(), Path(self._files[1]).read_text()


class BundleCommand(Forked):
    """``python -m monai.bundle`` with these words; see :class:`Forked`."""

    def __init__(self, words: Sequence[Any], cwd: str | os.PathLike[str] | None = None, join: bool = False) -> None:
        super().__init__(BUNDLE, ["-m", *words], cwd, join)


def _run(program: str, words: list[str], folder: str, environment: Mapping[str, str], out: str, err: str) -> None:
    """Do what the interpreter does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.path.insert(0, folder)
    sys.argv, sys.orig_argv = list(words), ["python", *words]
    code: Any = 0
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
