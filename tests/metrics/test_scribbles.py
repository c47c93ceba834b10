"""Tests of monai_ext.metrics.scribbles on shapes whose numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_ext.metrics.scribbles import axis_length, scribble_dice, scribble_statistics


def test_length_of_straight_and_diagonal_lines() -> None:
    line = np.zeros((20, 20), bool)
    line[5, 3:14] = True
    assert axis_length(line) == 10
    assert axis_length(line, (2.0, 3.0)) == 30
    diagonal = np.eye(20, dtype=bool)
    assert axis_length(diagonal) == pytest.approx(19 * math.sqrt(2))
    assert axis_length(diagonal[:, ::-1], (3.0, 4.0)) == pytest.approx(19 * 5)
    assert axis_length(np.zeros((5, 5), bool)) == 0


def test_width_of_a_line_hardly_changes_its_length() -> None:
    line = np.zeros((20, 60), bool)
    line[8:11, 5:55] = True
    assert axis_length(line) == pytest.approx(49, abs=3)


def test_corner_is_two_straight_steps() -> None:
    corner = np.zeros((6, 6), bool)
    corner[1:4, 1] = corner[3, 1:4] = True
    assert axis_length(corner) in (4.0, pytest.approx(2 + math.sqrt(2)))  # thinning may cut the corner


def test_statistics_of_a_line_through_a_square() -> None:
    structure = np.zeros((40, 40), bool)
    structure[10:31, 10:31] = True
    scribble = np.zeros_like(structure)
    scribble[20, 12:29] = True
    found = scribble_statistics(scribble, structure, (0.5, 0.5))
    assert found is not None
    assert found.length == 8
    assert found.relative_length == pytest.approx(8 / (21 * 0.5))
    assert found.coverage == pytest.approx(17 / 441)
    distances = [min(11, x - 9, 31 - x) for x in range(12, 29)]  # to the outside, in pixels
    assert found.depth == pytest.approx(np.mean(distances) / 11)
    assert found.pieces == 1


def test_nothing_to_measure() -> None:
    some, none = np.ones((3, 3), bool), np.zeros((3, 3), bool)
    assert scribble_statistics(none, some) is None
    assert scribble_statistics(some, none) is None


def test_masks_are_compared_with_scribbles_class_by_class() -> None:
    drawn = np.array([0, 0, 0, 0, 1, 1, 2])
    assert scribble_dice(drawn, drawn) == 1
    found = np.array([0, 0, 1, 3, 1, 1, 0])  # 2 is missed, 3 is found where nothing of it is drawn
    assert scribble_dice(found, drawn) == pytest.approx((2 * 2 / (3 + 4) + 2 * 2 / (3 + 2) + 0) / 3)
    with pytest.raises(ValueError, match="no pixel"):
        scribble_dice(drawn[:0], drawn[:0])
