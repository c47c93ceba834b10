"""The order of BIDS sessions, by evidence: the tables of the data set, else what the sessions' names say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from monai_ext.data import text
from monai_ext.data.folders import natural
from monai_ext.data.indexing.index import parse_visit_or_date
from monai_ext.data.manifest import has_year_last
from monai_ext.errors import UserError

VisitValue: TypeAlias = int | float | str
Visits: TypeAlias = dict[str, VisitValue]

STAGES = (
    re.compile(r"pre|base|bl[0-9]*$|screen|initial|before|first|diagnos|plan"),
    re.compile(r"post|follow|fu[0-9]*$|after|final|last|end|late|retest|rescan|recur"),
)
"""Beginnings of the names of first and of last sessions; all others lie between them."""

_DATED = re.compile(r"date|time")
_NUMBERED = re.compile(r"(^|_)(days?|weeks?|months?|years?|age|visit|order|time|timepoint|delay|interval)(_|$)")
_MOMENT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]([0-9]{2}:[0-9]{2}(?::[0-9.]+)?))?")
_SESSION = re.compile(r"(?:^|[/_])ses-([a-zA-Z0-9]+)")


@dataclass(frozen=True)
class SessionOrder:
    """The visits of all subjects' sessions.

    Args:
        visits: by subject and session; dates for all sessions of a subject, or numbers for all.
        notes: what was assumed where nothing but names, or a column that may mean something else, tells the order.
    """

    visits: dict[tuple[str, str], VisitValue]
    notes: list[str]


def order_sessions(
    root: Path, sessions: Mapping[str, Sequence[str]], given: Sequence[str] | None = None
) -> SessionOrder:
    """Order the sessions of each subject.

    What is known is asked in this order: ``given``; a column of dates in the sessions table; the dates of the scans
    tables; names that are dates or numbers, or that differ in one number (M00, M12); a column of numbers in the
    sessions table (days, age, ...); and last what the names mean (pre before post), else their alphabet.

    Args:
        root: of the data set.
        sessions: names of each subject's sessions, without "ses-".
        given: all names in their order.

    Raises:
        UserError: ``given`` lacks a session, or names one that no subject has.
    """
    if given is not None:
        return SessionOrder(_as_given(sessions, [name.removeprefix("ses-") for name in given]), [])
    visits: dict[tuple[str, str], VisitValue] = {}
    by_column: dict[str, int] = {}
    by_name: list[Sequence[str]] = []
    for subject, names in sessions.items():
        table = _rows_of(root, subject)
        found = _dates(table, names) or _dates_of_scans(root, subject, names) or _numbers_in(names)
        if found is None and (column := _numbers(table, names)):
            name, found = column
            by_column[name] = by_column.get(name, 0) + 1
        if found is None:
            found = {name: number for number, name in enumerate(sorted(names, key=_meaning))}
            by_name += [names] if len(names) > 1 else []
        visits |= {(subject, name): visit for name, visit in found.items()}
    return SessionOrder(visits, _notes(by_column, by_name))


def _as_given(sessions: Mapping[str, Sequence[str]], given: Sequence[str]) -> dict[tuple[str, str], VisitValue]:
    there = sorted({name for names in sessions.values() for name in names}, key=_meaning)
    for subject, names in sessions.items():
        if missing := [name for name in names if name not in given]:
            raise UserError(
                f"--sessions: sub-{subject} has the session {missing[0]!r}, which is not named; name all in their "
                f"order, such as --sessions {','.join(there)}"
            )
    for number, name in enumerate(given):
        if name not in there or name in given[:number]:
            what = "is named twice" if name in there else "is a session of no subject"
            raise UserError(f"--sessions: {name!r} {what}; the sessions there are: {', '.join(there)}")
    return {(subject, name): given.index(name) for subject, names in sessions.items() for name in names}


def _notes(by_column: Mapping[str, int], by_name: Sequence[Sequence[str]]) -> list[str]:
    notes = [
        f"sessions are ordered by the column {column!r} of sessions.tsv ({_patients(number)}); "
        "--sessions FIRST,NEXT,... gives another order"
        for column, number in by_column.items()
    ]
    if by_name:
        order = ",".join(sorted({name for names in by_name for name in names}, key=_meaning))
        notes.append(
            f"no date and no number orders the sessions ({_patients(len(by_name))}): by their names, the order is "
            f"assumed to be {order}; --sessions {order} says so, or gives another"
        )
    return notes


def _patients(number: int) -> str:
    return f"{number} patient" + ("" if number == 1 else "s")


# Tables


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table of BIDS; none if it is not there."""
    if not path.is_file():
        return []
    header, *lines = text.read_table(path, "save it as text with tabs, as BIDS asks", "\t") or [[]]
    return [dict(zip(header, line, strict=False)) for line in lines]


def is_known(value: str | None) -> bool:
    """Tell whether a cell holds something."""
    return value is not None and value.strip().lower() not in ("", "n/a")


def _rows_of(root: Path, subject: str) -> dict[str, dict[str, str]]:
    """Return the rows of a subject's sessions by their name, of its own table or of one for all subjects."""
    rows = read_table(root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv")
    for row in read_table(root / "sessions.tsv"):
        if row.get("participant_id", "").removeprefix("sub-") == subject:
            rows.append(row)
    return {row["session_id"].removeprefix("ses-"): row for row in rows if row.get("session_id")}


def _column(table: Mapping[str, Mapping[str, str]], names: Sequence[str], column: str) -> dict[str, str] | None:
    """Return a column's cells; None if one of the sessions has none."""
    cells = {name: table.get(name, {}).get(column, "").strip() for name in names}
    return cells if all(is_known(cell) for cell in cells.values()) else None


def _columns(table: Mapping[str, Mapping[str, str]], like: re.Pattern[str]) -> list[str]:
    names = {column: None for row in table.values() for column in row if like.search(column.lower())}
    return sorted(names, key=lambda column: column != "acq_time")


def _dates(table: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> Visits | None:
    for column in _columns(table, _DATED):
        cells = _column(table, names, column)
        if cells is not None and (visits := _from_moments(cells)):
            return visits
    return None


def _dates_of_scans(root: Path, subject: str, names: Sequence[str]) -> Visits | None:
    """Read when the first scan of each session was made, of its anatomical ones if there are any."""
    folder = root / f"sub-{subject}"
    rows = read_table(folder / f"sub-{subject}_scans.tsv")
    for name in names:
        rows += read_table(folder / f"ses-{name}" / f"sub-{subject}_ses-{name}_scans.tsv")
    scans: dict[str, list[str]] = {}
    anatomical = [row for row in rows if "anat/" in row.get("filename", "")]
    for row in anatomical or rows:
        match = _SESSION.search(row.get("filename", ""))
        if match and is_known(row.get("acq_time")):
            scans.setdefault(match[1], []).append(row["acq_time"])
    return _from_moments({name: min(scans[name]) for name in names}) if all(name in scans for name in names) else None


def _from_moments(cells: Mapping[str, str]) -> Visits | None:
    """Return the dates of all sessions, or their numbers in time where several are of one day; None if unknown."""
    moments = {name: match for name, cell in cells.items() if (match := _MOMENT.match(cell))}
    dates = {name: date for name, match in moments.items() if isinstance(date := parse_visit_or_date(match[1]), str)}
    if len(dates) < len(cells):
        return None
    if len(set(dates.values())) == len(dates):
        return dict(dates)
    times = {name: (match[1], match[2] or "") for name, match in moments.items()}
    if len(set(times.values())) < len(times) or not all(time for _, time in times.values()):
        return None
    return {name: number for number, name in enumerate(sorted(times, key=lambda name: times[name]))}


def _numbers(table: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> tuple[str, Visits] | None:
    """Return the column of numbers that orders the sessions, if there is one and no other one disagrees."""
    found: list[tuple[str, Visits]] = []
    for column in _columns(table, _NUMBERED):
        cells = _column(table, names, column)
        read = {} if cells is None else {name: parse_visit_or_date(cell) for name, cell in cells.items()}
        numbers = {name: value for name, value in read.items() if isinstance(value, int | float)}
        if len(names) > 1 and len(set(numbers.values())) == len(names):
            found.append((column, dict(numbers)))
    orders = {tuple(sorted(visits, key=lambda name: visits[name])) for _, visits in found}
    return found[0] if len(orders) == 1 else None


# Names


def _numbers_in(names: Sequence[str]) -> Visits | None:
    """Read names that are all dates or all numbers, or that differ in one number only; None for others.

    Dates whose year is last are none of these: as numbers they would be ordered by their days.
    """
    if any(has_year_last(digits) for name in names for digits in re.findall(r"[0-9]+", name)):
        return None
    read = {name: visit for name in names if (visit := parse_visit_or_date(name)) is not None}
    if len(read) == len(names) and len({type(visit) is str for visit in read.values()}) == 1:
        return dict(read) if len(set(read.values())) == len(read) else None
    parts = {name: re.split(r"([0-9]+)", name.lower()) for name in names}
    alike = {(split[0], split[2]) for split in parts.values() if len(split) == 3}
    if len(alike) == 1 and all(len(split) == 3 for split in parts.values()):
        numbers = {name: int(split[1]) for name, split in parts.items()}
        return dict(numbers) if len(set(numbers.values())) == len(numbers) else None
    return None


def _meaning(name: str) -> tuple[int, list[tuple[bool, int, str]]]:
    """Return a sorting key: first sessions (pre, baseline), others, last ones (post, follow-up); then the alphabet."""
    first, last = (stage.match(name.lower()) is not None for stage in STAGES)
    return (0 if first else 2 if last else 1, natural(name.lower()))
