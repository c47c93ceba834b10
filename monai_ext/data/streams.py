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
