"""What a check is and what it finds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

Level: TypeAlias = Literal["error", "warning", "note"]
T = TypeVar("T")

LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""An error stops a run; a warning is likely a mistake; a note is worth knowing."""


@dataclass(frozen=True)
class Problem:
    """What a check has to say.

    Args:
        sentence: what is wrong, without a full stop.
        fix: what to do.
        case: name of the case, "" if it concerns the whole list.
        file: path of the file, "" if it concerns none.
    """

    sentence: str
    fix: str
    case: str = ""
    file: str = ""


@dataclass(frozen=True)
class Finding:
    """A problem, and the check that found it.

    Args:
        code: name of the check.
        number: of the check in the list of things that go wrong, None for further ones.
        level: "error", "warning" or "note".
        case: its name, "" for what concerns the whole list.
        file: path of the file, "" for what concerns none.
        sentence: what is wrong, without a full stop.
        fix: what to do.
    """

    code: str
    number: int | None
    level: Level
    case: str
    file: str
    sentence: str
    fix: str

    def __str__(self) -> str:
        """Return one line: case, what is wrong and what to do."""
        case = f"case {self.case}: " if self.case else ""
        return " ".join(f"{case}{self.sentence}; {self.fix}".splitlines())


@dataclass(frozen=True)
class Check(Generic[T]):
    """A function that looks for one kind of problem; its name is the code, its docstring what users read.

    Args:
        level: of what it finds.
        find: yields the problems of a data list or a folder.
        number: see :class:`Finding`.
    """

    level: Level
    find: Callable[[T], Iterator[Problem]]
    number: int | None = None

    @property
    def code(self) -> str:
        """Name of the check."""
        return getattr(self.find, "__name__", "")

    @property
    def doc(self) -> str:
        """What it looks for and why it matters."""
        return inspect.getdoc(self.find) or ""

    def run(self, subject: T) -> Iterator[Finding]:
        """Yield what is found."""
        for problem in self.find(subject):
            yield Finding(self.code, self.number, self.level, **vars(problem))


def run_checks(checks: Sequence[Check[Any]], subject: Any) -> list[Finding]:
    """Run all checks and sort what they find by level, else in the order of the checks."""
    found = [finding for check in checks for finding in check.run(subject)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def stops(findings: Iterable[Finding]) -> bool:
    """Tell whether one of the findings stops a run."""
    return any(finding.level == "error" for finding in findings)


def some(values: Iterable[object], most: int = 3) -> str:
    """Write the first few: "a, b, c and 4 more"."""
    listed = [str(value) for value in values]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def many(number: int, noun: str) -> str:
    """Write "1 case", "2 cases"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
