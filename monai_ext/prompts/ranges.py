"""Retrieval ranges: how many positive and negative points are tried (P²SAM, Appendix C, Tables 9 and 10)."""

from __future__ import annotations

import re
from collections.abc import Sequence

Counts = int | str | Sequence[int]

RANGES: dict[str, tuple[str, str]] = {
    "coco_20i": ("1,5-10", "1"),
    "fss_1000": ("1-5", "1"),
    "lvis_92i": ("1,5-10", "1"),
    "perseg": ("1-5", "1"),
    "4d_lung_meta": ("1-2", "45"),
    "4d_lung_lora_base": ("1-3", "1"),
    "4d_lung_lora_large": ("1-3", "1"),
    "4d_lung_full_base": ("1-3", "1"),
    "4d_lung_full_large": ("1-3", "1"),
    "cvc_clinicdb_meta": ("1-5", "1-3"),
    "cvc_clinicdb_lora_base": ("1-3", "1-3"),
    "cvc_clinicdb_lora_large": ("1-2", "1-3"),
    "cvc_clinicdb_full_base": ("1-2", "1"),
    "cvc_clinicdb_full_large": ("1-5", "1-3"),
}
"""Name -> positive and negative points, as Table 9 (the first four) and Table 10 print them. ``meta`` is SAM as Meta
released it (huge), ``lora`` and ``full`` the two ways of adapting it, ``base`` and ``large`` its size."""

_TERM = re.compile(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?")


def parse_counts(counts: Counts) -> list[int]:
    """Return the numbers of points to try, ascending.

    Args:
        counts: one number; the fewest and the most, ``[1, 3]``; or text as in the paper's tables, ``"1,5-10"``.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(counts, str):
        return sorted({n for term in counts.split(",") for n in _span(term)})
    span = [counts, counts] if isinstance(counts, int) else list(counts)
    if len(span) != 2 or not all(isinstance(n, int) for n in span) or not 0 <= span[0] <= span[1]:
        raise ValueError(f"{counts!r} is no range of points")
    return list(range(span[0], span[1] + 1))


def _span(term: str) -> range:
    match = _TERM.fullmatch(term)
    if match is None:
        raise ValueError(f"{term!r} is no range of points")
    first = int(match[1])
    last = int(match[2] or first)
    if last < first:
        raise ValueError(f"{term!r} is no range of points")
    return range(first, last + 1)
