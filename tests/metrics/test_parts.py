"""Parts of a structure at two times."""

from __future__ import annotations

import numpy as np
import pytest

from monai_ext.metrics.parts import PartChange, match_parts, number_parts


def parts(*boxes: tuple[int, int]) -> np.ndarray:
    """Numbered parts on a line of 30 voxels, each from one place to before another."""
    mask = np.zeros((30, 3, 3), dtype=bool)
    for start, end in boxes:
        mask[start:end] = True
    return number_parts(mask)[0]


def test_parts_are_numbered_by_size_and_specks_left_out():
    mask = np.zeros((9, 9), dtype=bool)
    mask[0, 0] = mask[2:4, 2:4] = mask[6:9, 6:9] = True
    numbers, sizes = number_parts(mask, least=2)
    assert sizes == [9, 4]
    assert numbers[7, 7] == 1
    assert numbers[2, 2] == 2
    assert numbers[0, 0] == 0


CHANGES = {
    "kept": ([(2, 9)], [(3, 12)], [("kept", (1,), (1,))]),
    "new": ([(2, 9)], [(3, 12), (20, 24)], [("kept", (1,), (1,)), ("new", (), (2,))]),
    "gone": ([(2, 9), (20, 24)], [(3, 12)], [("kept", (1,), (1,)), ("gone", (2,), ())]),
    "split": ([(2, 20)], [(3, 9), (12, 15)], [("split", (1,), (1, 2))]),
    "merged": ([(2, 9), (12, 15)], [(2, 20)], [("merged", (1, 2), (1,))]),
    "regrouped": ([(2, 9), (12, 18)], [(1, 3), (8, 13)], [("regrouped", (1, 2), (1, 2))]),
    "nothing before": ([], [(3, 9)], [("new", (), (1,))]),
    "nothing after": ([(3, 9)], [], [("gone", (1,), ())]),
}


@pytest.mark.parametrize(("before", "after", "changes"), CHANGES.values(), ids=CHANGES)
def test_what_became_of_parts(before, after, changes):
    assert match_parts(parts(*before), parts(*after), (1, 1, 1)) == [PartChange(*change) for change in changes]


def test_a_part_that_lies_off_belongs_to_what_is_within_reach():
    before, after = parts((2, 6)), parts((8, 12))
    assert [change.kind for change in match_parts(before, after, (2, 1, 1), reach=5.9)] == ["gone", "new"]
    assert [change.kind for change in match_parts(before, after, (2, 1, 1), reach=6)] == ["kept"]
