"""Objects to correct: bright, speckled ellipses, a SAM that sees them too large, a network that learns in no time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from monai_ext.engines.online import AuxiliaryFusion, View
from monai_ext.engines.online.auxiliary import AuxiliarySettings
from monai_ext.prompts.crops import mask_crop


def draw(number: int) -> tuple[View, torch.Tensor]:
    """View and truth [48, 40] of an object, a function of its number alone."""
    generator = torch.Generator().manual_seed(number)
    y, x = 18 + 12 * torch.rand(1, generator=generator), 14 + 12 * torch.rand(1, generator=generator)
    rows, columns = torch.arange(48.0)[:, None], torch.arange(40.0)[None]
    distance = ((rows - y) / 11) ** 2 + ((columns - x) / 8) ** 2
    truth = distance <= 1
    noise = torch.randn(1, 48, 40, generator=generator)
    image = (90 + 10 * noise + 90 * truth).clamp(0, 255)
    sam = 3 * (2.5 - distance)
    place = {"case": f"case{number}", "slice": 0}
    view = View(f"case{number}/0", image, sam, mask_crop(sam > 0), {"points": [[float(x), float(y), 1.0]]}, place)
    return view, truth


@pytest.fixture(scope="session")
def make_object() -> Callable[[int], tuple[View, torch.Tensor]]:
    return draw


@pytest.fixture(scope="session")
def make_method() -> Callable[..., AuxiliaryFusion]:
    def make(**options) -> AuxiliaryFusion:
        settings = {"base": 2, "crop": 32, "batch": 3, "learning_rate": 5e-3, "steps_per_feedback": 1, **options}
        return AuxiliaryFusion(AuxiliarySettings(**settings))

    return make
