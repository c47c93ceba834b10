"""Tests of monai_ext.prompts.prompt."""

from __future__ import annotations

import pytest
import torch

from monai_ext.prompts.prompt import Prompt

ONE_POINT = torch.tensor([[3.0, 4.0]])


def test_positives_come_first() -> None:
    prompt = Prompt.from_points(ONE_POINT, torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    assert prompt.points.tolist() == [[3, 4], [5, 6], [7, 8]]
    assert prompt.labels.tolist() == [1, 0, 0]
    assert prompt.box is None


def test_no_points_and_no_box_is_a_prompt() -> None:
    prompt = Prompt.from_points(torch.empty(0, 2))
    assert prompt.points.shape == (0, 2)
    assert prompt.labels.shape == (0,)
    assert prompt.labels.dtype == torch.long


def test_box_may_be_a_single_pixel() -> None:
    assert Prompt.from_points(ONE_POINT, box=torch.tensor([2.0, 3.0, 2.0, 3.0])).box is not None


@pytest.mark.parametrize(
    ("points", "labels", "box", "message"),
    [
        (torch.zeros(2), torch.ones(1), None, r"points must be floating \[N, 2\]"),
        (torch.zeros(1, 3), torch.ones(1), None, r"points must be floating \[N, 2\]"),
        (torch.zeros(1, 2, dtype=torch.long), torch.ones(1), None, r"points must be floating \[N, 2\]"),
        (torch.zeros(2, 2), torch.ones(1), None, r"labels must be \[2\]"),
        (torch.zeros(2, 2), torch.tensor([1, -1]), None, "labels must be 1 or 0"),
        (torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 4), r"box must be \[4\]"),
        (torch.zeros(1, 2), torch.ones(1), torch.tensor([0.0, 5.0, 9.0, 4.0]), "x0 <= x1 and y0 <= y1"),
    ],
)
def test_malformed_prompts_are_refused(points, labels, box, message) -> None:
    with pytest.raises(ValueError, match=message):
        Prompt(points, labels, box)
