"""Tests of monai_ext.prompts.ties against the rule written out: within the tolerance, the first in reading order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_ext.prompts.ties import (
    LOGIT_TOLERANCE,
    TOLERANCE,
    first_largest,
    first_maximum,
    first_minimum,
    from_largest,
    likeliest_label,
)

ROUNDING = TOLERANCE / 4
near_ties = st.lists(  # a few levels far apart, each with rounding
    st.builds(lambda level, noise: level + noise * ROUNDING, st.integers(-2, 2), st.integers(-1, 1)),
    min_size=1,
    max_size=12,
)


def slow_first_maximum(values: list[float]) -> int:
    return next(i for i, value in enumerate(values) if value >= max(values) - TOLERANCE)


def slow_from_largest(values: list[float]) -> list[int]:
    order, left = [], list(range(len(values)))
    while left:
        largest = max(values[i] for i in left)
        group = [i for i in left if values[i] >= largest - TOLERANCE]
        order += group
        left = [i for i in left if i not in group]
    return order


@given(values=near_ties)
@settings(deadline=None)
def test_the_first_of_the_largest_and_of_the_smallest(values) -> None:
    given_values = torch.tensor(values, dtype=torch.float64)
    assert int(first_maximum(given_values)) == slow_first_maximum(values)
    assert int(first_minimum(given_values)) == slow_first_maximum([-v for v in values])


@given(values=near_ties)
@settings(deadline=None)
def test_groups_of_equal_values_keep_reading_order(values) -> None:
    assert from_largest(torch.tensor(values, dtype=torch.float64)).tolist() == slow_from_largest(values)


@pytest.mark.slow
@given(values=near_ties, count=st.integers(1, 12))
@settings(deadline=None)
def test_as_many_of_the_largest_as_asked_for(values, count) -> None:
    count = min(count, len(values))
    rows = torch.tensor([values, values[::-1]], dtype=torch.float64)
    expected = [sorted(slow_from_largest(row)[:count]) for row in rows.tolist()]
    assert first_largest(rows, count).tolist() == expected


def test_rounding_does_not_decide() -> None:
    exact = torch.tensor([0.1, 0.5, 0.5, 0.2, 0.5])
    noise = torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) * ROUNDING
    assert set(first_maximum(exact + noise).tolist()) == {1}
    assert {tuple(from_largest(row).tolist()) for row in exact + noise} == {(1, 2, 4, 3, 0)}
    assert {tuple(row) for row in first_largest(exact + noise, 2).tolist()} == {(1, 2)}


def test_what_is_larger_by_more_wins() -> None:
    assert int(first_maximum(torch.tensor([0.5, 0.5 + 1.1 * TOLERANCE]))) == 1
    assert from_largest(torch.tensor([0.5, 0.5 + 1.1 * TOLERANCE])).tolist() == [1, 0]
    assert int(first_maximum(torch.tensor([0.5, 0.6]), tolerance=0.2)) == 0


def test_any_axis_and_infinite_values() -> None:
    values = torch.tensor([[-math.inf, 1.0], [2.0, 1.0], [-math.inf, 0.0]])
    assert first_maximum(values, dim=0).tolist() == [1, 0]
    assert int(first_maximum(torch.full((3,), -math.inf))) == 0
    assert int(first_minimum(torch.tensor([math.inf, 3.0, 3.0]))) == 1
    assert from_largest(torch.tensor([-math.inf, 1.0, -math.inf, math.inf])).tolist() == [3, 1, 0, 2]
    assert first_largest(values.T, 2).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("noise", [0.0, LOGIT_TOLERANCE / 2, -LOGIT_TOLERANCE / 2])
def test_labels_tie_by_name_and_lose_to_background_at_zero(noise) -> None:
    logits = torch.tensor([[3.0, -1.0, 0.5, -2.0], [3.0 + noise, 2.0, 0.6, 0.0]])
    assert likeliest_label(logits).tolist() == [1, 2, 2, 0]


def test_a_label_below_zero_does_not_tie_with_one_above() -> None:
    assert likeliest_label(torch.tensor([[-LOGIT_TOLERANCE / 4], [LOGIT_TOLERANCE / 4]])).tolist() == [2]
