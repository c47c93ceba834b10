"""The simulated user: where it prompts, and which images it corrects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.inferers.simulated_user import Expert, TruthPrompts, centre_point


def two_squares() -> torch.Tensor:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[5:15, 10:30] = True
    mask[40:60, 40:50] = True
    mask[30, 5] = True  # smaller than 1/32 of 64 pixels
    return mask


def test_each_component_gets_a_box_and_tiny_ones_none():
    boxes = [prompt.box.tolist() for prompt in TruthPrompts("box")(two_squares(), 0)]
    assert boxes == [[10, 5, 29, 14], [40, 40, 49, 59]]


def test_each_component_gets_its_centroid():
    points = [prompt.points.tolist() for prompt in TruthPrompts("point")(two_squares(), 0)]
    assert points == [[[20, 10]], [[45, 50]]]


def test_a_centroid_outside_is_replaced_by_the_deepest_pixel():
    ring = np.zeros((41, 41), bool)
    ring[5:36, 5:36] = True
    ring[12:36, 9:32] = False
    x, y = centre_point(ring)
    assert ring[y, x]
    assert y < 12  # the thick side


def test_shifted_boxes_are_of_seed_and_key_and_stay_in_the_image():
    draw = TruthPrompts("box", box_shift=0.4)
    one, again, other = (draw(two_squares(), key)[1].box for key in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert bool((one >= 0).all() and (one <= 63).all() and (one[:2] <= one[2:]).all())


@pytest.mark.parametrize(
    ("feedback", "expected"), [(1.0, range(12)), (0.5, range(0, 12, 2)), (0.25, range(0, 12, 4)), (0.0, [])]
)
def test_feedback_is_spread_evenly_from_the_first_image(feedback, expected):
    assert [image for image in range(12) if Expert(feedback).looks_at(image)] == list(expected)


def test_a_third_of_three_hundred_images():
    assert sum(Expert(1 / 3).looks_at(image) for image in range(300)) == 100


def test_the_threshold_judges_what_it_is_told_to():
    assert Expert().corrects(1.0, 1.0)
    assert [Expert(threshold=0.85).corrects(fused, 0.5) for fused in (0.8, 0.9)] == [True, False]
    assert Expert(threshold=0.85, judged="sam").corrects(0.9, 0.5)


@pytest.mark.parametrize("options", [{"feedback": 1.5}, {"threshold": 2}, {"judged": "own"}, {"feedback": True}])
def test_impossible_experts_are_refused(options):
    with pytest.raises(UserError):
        Expert(**options)


def test_an_unknown_prompt_is_refused():
    with pytest.raises(UserError, match="box, point"):
        TruthPrompts("scribble")
