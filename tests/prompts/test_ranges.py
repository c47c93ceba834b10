from __future__ import annotations

import pytest

from monai_ext.prompts.ranges import RANGES, parse_counts


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (4, [4]),
        ([1, 3], [1, 2, 3]),
        ((2, 2), [2]),
        ("45", [45]),
        ("1-3", [1, 2, 3]),
        ("1, 5-10", [1, 5, 6, 7, 8, 9, 10]),
        ("0", [0]),
        ("3-4,1-3", [1, 2, 3, 4]),
    ],
)
def test_counts_are_read_as_the_paper_prints_them(counts, expected) -> None:
    assert parse_counts(counts) == expected


@pytest.mark.parametrize("counts", ["", "a", "3-1", "1-", "1,,2", [1], [3, 1], [-1, 2], [1.0, 2]])
def test_other_things_are_refused(counts) -> None:
    with pytest.raises(ValueError, match="no range of points"):
        parse_counts(counts)


def test_each_row_of_the_tables_is_a_range() -> None:
    assert all(parse_counts(n_pos) and parse_counts(n_neg) for n_pos, n_neg in RANGES.values())
    assert RANGES["4d_lung_meta"] == ("1-2", "45")
