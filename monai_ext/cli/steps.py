"""The steps of a verb: calls of modules that anyone can make by themselves, run in this process."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import runpy
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_ext.cli.arguments import explained
from monai_ext.errors import UserError

WIDTH = 11  # of the name of a stage


@dataclass(frozen=True)
class Step:
    """One command, ``python -m MODULE WORDS``.

    Args:
        module: with a function ``main(arguments)``, or ``monai.bundle``.
        words: its command line.
    """

    module: str
    words: tuple[str, ...]

    def command(self) -> str:
        """Return the command as it is typed into a shell."""
        return " ".join(map(_quote, ["python", "-m", self.module, *self.words]))

    def run(self) -> str:
        """Run it in this process.

        Returns:
            What it has printed on stdout.

        Raises:
            UserError: of the command.
            SystemExit: it ended with another code than 0.
        """
        with contextlib.redirect_stdout(io.StringIO()) as printed, explained():
            importlib.import_module(self.module).main(list(self.words))
        return printed.getvalue()


def _quote(word: str) -> str:
    """Quote a word for a shell; a list of config files, with quotes inside, is put into double ones."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def bundle_step(bundle: Path, files: Sequence[Path], options: Sequence[str]) -> Step:
    """Return the step that runs config files of a bundle.

    Raises:
        UserError: a path holds a ``#``, which MONAI takes for ``::``.
    """
    for path in (str(bundle), *(word for word in options if not word.startswith("--"))):
        if "#" in path and path[:1] not in "$@%":
            raise UserError(f"{path}: MONAI takes '#' for '::' in options; give a name without it.")
    listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
    return Step("monai.bundle", ("run", "--config_file", listed, "--bundle_root", str(bundle), *options))


def run_bundle(step: Step) -> None:
    """Run a bundle as ``python -m monai.bundle run`` does, its options read and checked by the same code.

    MONAI's warning that a config can run code is left out: the caller has checked what the config names, or has been
    told to trust it.

    Raises:
        UserError: of the bundle, as the cause of what MONAI raises.
    """
    import monai.bundle.workflows

    logging.getLogger(monai.bundle.workflows.__name__).setLevel(logging.WARNING)
    argv, hook = sys.argv, sys.excepthook
    sys.argv = [step.module, *step.words]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="parsing config_file")
            runpy.run_module(step.module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv, sys.excepthook = argv, hook


def say(stage: str, text: str) -> None:
    """Print one line on a stage of a run."""
    print(f"{stage:<{WIDTH}}{text}", flush=True)
