"""Orders of a stream: by patient, together, repeatable."""

from __future__ import annotations

from itertools import pairwise

import pytest

from monai_ext.data.streams import as_stream, order_stream
from monai_ext.errors import UserError

CASES = [{"case": f"{patient}{n}", "patient": patient} for patient in "abcdef" for n in range(2)]
CASES.append({"case": "a2", "patient": "a"})


def names(cases) -> list[str]:
    return [case["case"] for case in cases]


def test_the_stated_order_is_kept():
    assert names(order_stream(CASES)) == names(CASES)


def test_patients_are_shuffled_and_their_cases_stay_together():
    orders = [names(order_stream(CASES, order)) for order in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    for order in orders:
        assert sorted(order) == sorted(names(CASES))
        patients = [name[0] for name in order]
        assert len([a for a, b in pairwise(patients) if a != b]) == 5
        assert [name for name in order if name[0] == "a"] == ["a0", "a1", "a2"]
    assert orders[1] == names(order_stream(CASES, 1))
    assert orders[1] != names(order_stream(CASES, 1, seed=1))


@pytest.mark.parametrize("order", [-1, "first", True, 0.5])
def test_impossible_orders_are_refused(order):
    with pytest.raises(UserError, match="order"):
        order_stream(CASES, order)


def test_a_case_keeps_its_own_prompt():
    stream = as_stream([{"case": "a", "box": [1, 2, 3, 4]}, {"case": "b"}], box=[5, 6, 7, 8])
    assert [case["box"] for case in stream] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [case["points"] for case in stream] == ["", ""]


def test_groups_need_their_entry():
    assert as_stream([{"case": "a", "kind": "benign"}], "kind")[0]["group"] == "benign"
    with pytest.raises(UserError, match="'kind'"):
        as_stream([{"case": "a"}], "kind")
