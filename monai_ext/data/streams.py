"""The order in which cases come: a method that learns online depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_ext.errors import UserError


def order_stream(cases: Sequence[Mapping[str, Any]], order: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Bring the cases of a stream into an order.

    Args:
        cases: each with ``patient``; one without it is a patient of its own.
        order: None: as they stand. A number: the patients in the order of this number, shuffled; all cases of a patient
            (visits, modalities) stay together, in the order in which they stand.
        seed: of the shuffled orders.

    Raises:
        UserError: for an impossible number.
    """
    if order is None:
        return [dict(case) for case in cases]
    if isinstance(order, bool) or not isinstance(order, int) or order < 0:
        raise UserError(f"order is {order}: give the number of a shuffled order, from 0, or null for that of the list.")
    by_patient: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        by_patient.setdefault(str(case.get("patient") or case["case"]), []).append(dict(case))
    patients = list(by_patient)
    shuffled = np.random.default_rng([seed, order]).permutation(len(patients))
    return [case for number in shuffled for case in by_patient[patients[int(number)]]]


def as_stream(
    cases: Sequence[Mapping[str, Any]],
    restart_by: str | None = None,
    box: Sequence[float] | None = None,
    points: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Give every case the entries that :class:`monai_ext.inferers.online.OnlineInferer` takes.

    Args:
        cases: of :func:`monai_ext.data.pairs.single_images`.
        restart_by: entry whose value becomes ``group``.
        box: of a case that has no ``box`` of its own: two corners as voxel indices, one after the other.
        points: likewise, points inside.

    Raises:
        UserError: a case lacks the entry ``restart_by``.
    """
    found = []
    for case in cases:
        if restart_by is not None and restart_by not in case:
            raise UserError(f"case {case['case']!r} has no {restart_by!r} to begin anew by: add it, or leave it out.")
        given = {"box": case.get("box") or box, "points": case.get("points") or points}
        prompts = {name: "" if value is None else list(value) for name, value in given.items()}
        group = "" if restart_by is None else str(case[restart_by])
        found.append({**case, **prompts, "group": group})
    return found
