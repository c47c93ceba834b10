"""Shards: parts of a data list that different machines take, `--shard 0/4` to `--shard 3/4`.

A patient's cases stay together, since they share the reference, and which shard takes a patient is a matter of the
patient's name alone: neither the order of the list nor what else is in it changes it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monai_ext.errors import UserError

MOST = 10_000
_FORM = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts.

    Args:
        index: 0 for the first, ``count - 1`` for the last.
        count: number of parts.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder(self) -> str:
        """Name of the folder below ``output_dir`` that takes its outputs."""
        return f"shard-{self.index}-of-{self.count}"

    def holds(self, case: Mapping[str, Any]) -> bool:
        """Tell whether a case is of this shard, by its ``patient`` or, without one, its ``case``."""
        return shard_of(str(case.get("patient") or case["case"]), self.count) == self.index


def parse_shard(text: str | None) -> Shard | None:
    """Read ``"i/n"``, i counted from 0; None is no shard but the whole list.

    Raises:
        UserError: it is not of this form, or there is no such shard.
    """
    if text is None:
        return None
    match = _FORM.fullmatch(str(text).strip())
    if match is None:
        raise UserError(f"--shard {text} is not of the form i/n: the first of four shards is 0/4, the last 3/4")
    index, count = map(int, match.groups())
    if not 0 < count <= MOST:
        raise UserError(f"--shard {text}: the number of shards must be between 1 and {MOST}")
    if index >= count:
        raise UserError(f"--shard {text}: shards are counted from 0, so the last of {count} is {count - 1}/{count}")
    return Shard(index, count)


def shard_of(patient: str, count: int) -> int:
    """Return the number of the shard that takes a patient: the sha256 of the name, modulo ``count``."""
    return int.from_bytes(hashlib.sha256(patient.encode("utf-8")).digest()[:8], "big") % count
