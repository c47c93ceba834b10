"""Visits that are called by the names of folders: which patient, and when."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from monai_ext.data.folders import natural
from monai_ext.data.indexing.index import parse_visit_or_date
from monai_ext.data.manifest import has_year_last
from monai_ext.errors import UserError

Visit: TypeAlias = int | float | str

CONTENTS = ("anat", "nii", "nifti", "data", "raw", "scan", "scans", "mr", "mri", "ct", "pet", "us")
"""Folders below a visit that say what lies in them."""
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
FIRST = ("pre", "before", "baseline", "base", "bl", "initial", "first", "screening", "native")
LATER = ("post", "after", "followup", "follow", "fu", "late", "last", "final")

_TIMES = frozenset(("day", "week", "month", "year", "visit", "session", "ses", "timepoint", "tp", "scan", "exam"))
_DATE = re.compile(r"(?<![0-9])((?:19|20)[0-9]{2})[-_.]?([01][0-9])[-_.]?([0-3][0-9])(?![0-9])")
_ONE_NUMBER = re.compile(r"([^0-9]*)([0-9]+)([^0-9]*)")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def words(name: str) -> list[str]:
    """Return the words of a name in small letters: "LesionMask_02" gives lesion and mask."""
    return [word.lower() for word in _WORD.findall(name)]


def names_a_visit(folder: str) -> bool:
    """Whether a folder is called as a time: a date, a number, "week 6", "baseline"."""
    of_time = not _TIMES.isdisjoint(words(folder)) and re.search("[0-9]", folder) is not None
    return of_time or parse_visit_or_date(folder) is not None or _date_in(folder) is not None or _rank(folder) != 0


def patients_and_visits(folders: Iterable[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read ``patient/visit`` from the folders that hold one case each.

    Folders that all have above the patient are no part of its name; others are (``site A/p1`` is ``site A_p1``).
    Folders such as ``anat/`` below the visit are passed over.

    Args:
        folders: ``p1/week 6``, relative to the root, with ``/``.

    Returns:
        ``patient`` and ``visit`` of each folder, nothing of one without a patient above it; and sentences on what was
        assumed.
    """
    parts = {folder: folder.split("/") for folder in folders}
    while parts and all(len(names) > 2 and names[-1].lower() in CONTENTS for names in parts.values()):
        parts = {folder: names[:-1] for folder, names in parts.items()}
    parts = {folder: names for folder, names in parts.items() if len(names) > 1 and names[-2].lower() not in SPLITS}
    above = _common([names[:-2] for names in parts.values()])
    patients: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for folder, names in parts.items():
        patients["_".join(names[above:-1])][folder] = names[-1]
    found: dict[str, dict[str, Any]] = {}
    assumed = ""
    for patient, theirs in patients.items():
        visits, told = order_visits(sorted(set(theirs.values())))
        found |= {folder: {"patient": patient, "visit": visits[name]} for folder, name in theirs.items()}
        if not told and len(visits) > 1:
            assumed = assumed or ", ".join(visits)
    notes = [
        f"visits are in the order of their folders' names ({assumed}); call the folders by date or number if time had "
        "another"
    ]
    return found, notes if assumed else []


def order_visits(names: Sequence[str]) -> tuple[dict[str, Visit], bool]:
    """Give each visit of one patient a date or a number.

    Args:
        names: different ones.

    Returns:
        The dates or numbers in the names where all have one ("2024-02-26", "CT_20240226", "6", "week 6"); else the
        place of each in their order: words such as "pre" and "baseline" first, such as "post" and "followup" last,
        the rest by name. Visits in order of time; and whether dates or numbers told it.

    Raises:
        UserError: dates have the year last, so that their digits are no order.
    """
    late = [name for name in names if any(map(has_year_last, re.findall(r"[0-9]+", name)))]
    if late and len(names) > 1:
        raise UserError(
            f"visit {late[0]!r}: a date whose year is last does not tell the order; call the folders 2024-02-26 or "
            "20240226"
        )
    if late:
        return {late[0]: 0}, False
    for read in (parse_visit_or_date, _date_in):
        found = {name: read(name) for name in names}
        if None not in found.values() and len({isinstance(visit, str) for visit in found.values()}) == 1:
            return _sorted({name: visit for name, visit in found.items() if visit is not None}), True
    numbered = [_ONE_NUMBER.fullmatch(name) for name in names]
    if len({(match[1], match[3]) if match else None for match in numbered} - {None}) == 1 and all(numbered):
        return _sorted({match[0]: int(match[2]) for match in numbered if match}), True
    ordered = sorted(names, key=lambda name: (_rank(name), natural(name)))
    return {name: place for place, name in enumerate(ordered)}, False


def _sorted(visits: dict[str, Visit]) -> dict[str, Visit]:
    return dict(sorted(visits.items(), key=lambda item: str(item[1]) if isinstance(item[1], str) else item[1]))


def _date_in(name: str) -> Visit | None:
    """Return the only date in a name."""
    dates = _DATE.findall(name)
    return parse_visit_or_date("-".join(dates[0])) if len(dates) == 1 else None


def _rank(name: str) -> int:
    said = words(name)
    return -1 if any(word in FIRST for word in said) else int(any(word in LATER for word in said))


def _common(paths: Sequence[Sequence[str]]) -> int:
    """Return how many first parts all paths share."""
    shared = 0
    for level in zip(*paths, strict=False):
        if len(set(level)) > 1:
            break
        shared += 1
    return shared
