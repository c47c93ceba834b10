"""The user of AuxOL's protocol, simulated from the true masks: who prompts SAM and corrects the masks.

All that a protocol takes from ground truth is in here, and only here: prompts (each connected component of a structure
on a slice gets one, a box or a point), and the corrected mask where a correction is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.prompts.boxes import tight_box
from monai_ext.prompts.crops import LEAST, is_small
from monai_ext.prompts.prompt import Prompt
from monai_ext.prompts.sampling import centre_click

PROMPTS = ("box", "point")


@dataclass(frozen=True)
class TruthPrompts:
    """One prompt for each connected component of a true mask.

    Args:
        kind: ``box``, around the component, or ``point``, its centroid; where that lies outside of the component, the
            pixel deepest inside.
        least: components narrower or lower than this share of the image's longer side get no prompt, but count in
            Dice.
        box_shift: each side of a box is moved by up to this share of the box's extent, as no user draws it tight.
        seed: of these shifts, with ``key`` of the call.

    Raises:
        UserError: for an unknown kind.

    Example:
        >>> mask = torch.zeros(64, 64, dtype=torch.bool)
        >>> mask[10:20, 30:50] = True
        >>> TruthPrompts("box")(mask, 0)[0].box
        tensor([30., 10., 49., 19.])
    """

    kind: str = "box"
    least: float = LEAST
    box_shift: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in PROMPTS:
            raise UserError(f"prompt {self.kind!r} is unknown: choose one of {', '.join(PROMPTS)}.")

    def __call__(self, truth: Tensor, key: int) -> list[Prompt]:
        """Prompt for a structure on a slice.

        Args:
            truth: [H, W] bool.
            key: a number of the slice and structure, the same in every run.
        """
        mask = truth.cpu().numpy()
        numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
        found = []
        for number in range(1, count + 1):
            component = numbers == number
            box = tight_box(torch.from_numpy(component))
            if box is not None and not is_small(box, mask.shape, self.least):
                found.append(self._prompt(component, box, [self.seed, key, number]))
        return found

    def _prompt(self, component: np.ndarray, box: Tensor, seed: list[int]) -> Prompt:
        if self.kind == "point":
            return Prompt.from_points(torch.tensor([centre_point(component)], dtype=torch.float32))
        nothing = torch.zeros(0, 2)
        return Prompt.from_points(nothing, box=self._shifted(box, component.shape, np.random.default_rng(seed)))

    def _shifted(self, box: Tensor, size: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        if not self.box_shift:
            return box
        extent = (box[2:] - box[:2] + 1).repeat(2)
        moved = box + torch.from_numpy(rng.uniform(-self.box_shift, self.box_shift, 4)).float() * extent
        limits = torch.tensor([size[1] - 1, size[0] - 1]).repeat(2).float()
        moved = torch.minimum(moved.clamp(min=0), limits)
        return torch.cat([torch.minimum(moved[:2], moved[2:]), torch.maximum(moved[:2], moved[2:])])


def centre_point(mask: np.ndarray) -> tuple[int, int]:
    """Return the pixel (x, y) nearest to the centroid of a mask [H, W]; its deepest pixel where that is outside."""
    rows, columns = np.nonzero(mask)
    y, x = int(np.floor(rows.mean() + 0.5)), int(np.floor(columns.mean() + 0.5))
    return (x, y) if mask[y, x] else centre_click(mask)


@dataclass(frozen=True)
class Expert:
    """Which answers are corrected.

    Args:
        feedback: share of the images that are corrected, spread evenly: 0.25 is every fourth, the first included, as
            in the authors' code; 0 none.
        threshold: of these images, correct only structures whose Dice is below; None: all.
        judged: the mask whose Dice counts: ``fused``, what the expert sees, or ``sam``, as in the authors' code.

    Raises:
        UserError: for an impossible value.

    Example:
        >>> expert = Expert(feedback=0.5, threshold=0.8)
        >>> expert.looks_at(0), expert.looks_at(1), expert.corrects(fused=0.7, sam=0.9)
        (True, False, True)
    """

    feedback: float = 1.0
    threshold: float | None = None
    judged: str = "fused"

    def __post_init__(self) -> None:
        if isinstance(self.feedback, bool) or not 0 <= self.feedback <= 1:
            raise UserError(f"feedback is {self.feedback}: give a share of the images from 0 to 1.")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold}: give a Dice from 0 to 1, or null.")
        if self.judged not in ("fused", "sam"):
            raise UserError(f"judged {self.judged!r} is unknown: choose fused or sam.")

    def looks_at(self, image: int) -> bool:
        """Whether the image of this number, from 0, is corrected at all."""
        if not self.feedback:
            return False
        passed = round(image * self.feedback * 1_000_000), round((image - 1) * self.feedback * 1_000_000)
        return image == 0 or passed[0] // 1_000_000 > passed[1] // 1_000_000

    def corrects(self, fused: float, sam: float) -> bool:
        """Whether an answer with these Dices is corrected, of an image that is looked at."""
        return self.threshold is None or (fused if self.judged == "fused" else sam) < self.threshold
