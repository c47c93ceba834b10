"""Changed copies of a slice, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_ext.transforms.views import LARGEST_ANGLE, View, draw_views

SIZE = (40, 64)


@pytest.fixture
def mask() -> torch.Tensor:
    """Logits of an asymmetric blob off the centre, [H, W]."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return torch.where(((y - 15) / 6.0) ** 2 + ((x - 40) / 11.0) ** 2 < 1, 10.0, -10.0)


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_undo_brings_a_mask_back_on_a_frame_that_is_no_square(mask):
    image = (mask > 0)[None] * 200.0
    for view in draw_views(8, np.random.default_rng(0)):
        changed = view.apply(image)[0] - 100 * 0.5**view.gamma
        assert dice(changed > 0, mask > 0) < 0.95
        assert dice(view.undo(changed, -20.0) > 0, mask > 0) > 0.93


def test_a_quarter_turn_moves_as_it_should():
    image = torch.zeros(1, 5, 5)
    image[0, 0, 1] = 255
    turned = View(math.pi / 2, 1.0, (0.0, 0.0), 1.0).apply(image)
    expected = torch.rot90(image, 1, (1, 2))
    torch.testing.assert_close(turned, expected, atol=1e-2, rtol=0)


def test_what_was_not_seen_is_outside():
    back = View(0.0, 1.0, (0.25, 0.0), 1.0).undo(torch.full(SIZE, 5.0), -20.0)
    assert float(back[:, :10].max()) == pytest.approx(-20, abs=1e-3)
    assert float(back[:, 24:].min()) == pytest.approx(5, abs=1e-3)


def test_gamma_alone_changes_grey_values_alone():
    image = torch.rand(1, *SIZE) * 255
    view = View(0.0, 1.0, (0.0, 0.0), 1.2)
    torch.testing.assert_close(view.apply(image), 255 * (image / 255) ** 1.2, atol=1e-2, rtol=0)


def test_the_same_seed_draws_the_same_views():
    one, other = (draw_views(5, np.random.default_rng(3)) for _ in range(2))
    assert one == other
    assert len({view.angle for view in one}) == 5
    assert max(abs(view.angle) for view in one) <= math.radians(LARGEST_ANGLE)
