"""Everything that could stop a run half-way is checked before its first case."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from monai.utils import ensure_tuple

from monai_ext import processes
from monai_ext.data.checks import check_pairs
from monai_ext.data.doctor import examine, warn_and_stop
from monai_ext.data.manifest import FILE_KEYS, DataList
from monai_ext.inferers.slice_match import refuse_volumes_apart
from monai_ext.made import make_folder


def prepare(
    pairs: Sequence[Mapping[str, Any]],
    labels: dict[str, int],
    cases: DataList,
    output_dir: str | os.PathLike,
    slice_match: str = "position",
) -> None:
    """Check everything that could stop a run half-way, before its first case: outputs, images, reference labels.

    Then the doctor looks at headers and doubtful values; what it only warns of is printed once.

    Of several processes, the first one checks for all.

    Args:
        pairs: the targets that are to be run, with their references.
        labels: name -> value of the structures asked for.
        cases: the data list, for its values.
        output_dir: must be writable.
        slice_match: rule by which slices are matched; ``position`` needs volumes that overlap in space.

    Raises:
        UserError: see :func:`monai_ext.data.checks.check_pairs`.
    """

    def check() -> None:
        make_folder(output_dir)
        if pairs:
            check_pairs(pairs, cases.labels, cases.ignore, asked=labels)
            refuse_volumes_apart(pairs, slice_match)
            _look_at_headers(cases, pairs)

    processes.from_first(check)


def look_at_headers(cases: DataList | Sequence[DataList], used: Sequence[Mapping[str, Any]]) -> None:
    """Let the doctor look at the headers of the files that a run uses: print its warnings, stop at its first error.

    It also reads the few files whose values a run may take for something else.

    Of several processes, the first one looks for all.

    Args:
        cases: the data list, or several.
        used: what the run uses of them: cases, or targets with their references.

    Raises:
        UserError: see :mod:`monai_ext.data.doctor`.
    """
    lists = [cases] if isinstance(cases, DataList) else cases

    def look() -> None:
        for one in lists:
            _look_at_headers(one, used)

    processes.from_first(look)


def _look_at_headers(cases: DataList, used: Sequence[Mapping[str, Any]]) -> None:
    files = {path for item in used for key in FILE_KEYS for path in ensure_tuple(item.get(key) or ())}
    warn_and_stop(examine(cases, only=files, glance=True, leave_out=("visits_apart",), follow_up=False))
