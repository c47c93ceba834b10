"""Command lines whose mistakes are answered with one sentence and the nearest word that is known."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from monai_ext.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises :class:`UserError` where argparse prints its usage and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`UserError` with the sentence of :func:`explain`."""
        raise UserError(explain(self, message))


def explain(parser: argparse.ArgumentParser, message: str) -> str:
    """Say what is wrong with a command line, which option is the nearest, and how to see them all."""
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown:
        word = unknown[1].partition("=")[0]
        if not word.startswith("-"):
            return f"{word!r} is one argument too many: put names with spaces in quotes, or see {parser.prog} --help."
        return f"unknown option {word}, {nearest(word, parser._option_string_actions, parser.prog)}"
    return f"{parser.prog}: {message}; see {parser.prog} --help."


def set_apart(words: Iterable[str], known: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the words of known options and of others, each with the value after it.

    argparse would take the value of an option that it does not know for a positional argument.
    """
    known = set(known)
    own: list[str] = []
    others: list[str] = []
    waiting = False  # the last option of the others still wants its value
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in known:
            others.append(word)
            waiting = "=" not in word
        elif waiting and not word.startswith("--"):
            others.append(word)
            waiting = False
        else:
            own.append(word)
            waiting = False
    return own, others


def nearest(word: str, known: Iterable[str], program: str) -> str:
    """Return "did you mean ...?", or where to look where nothing known is near."""
    near = difflib.get_close_matches(word, sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else f"see {program} --help."


@contextmanager
def explained() -> Iterator[None]:
    """Let the parsers of the modules that are called in this block answer mistakes as :class:`Parser` does."""
    usual = argparse.ArgumentParser.error

    def answer(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(explain(self, message))

    argparse.ArgumentParser.error = answer  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = usual  # type: ignore[method-assign]
