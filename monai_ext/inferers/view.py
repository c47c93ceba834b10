"""What a method that learns online is asked, one object on one slice, and the interface through which it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from monai_ext.prompts.crops import Crop


@dataclass(frozen=True)
class View:
    """One object on one slice, as SAM sees it: what a method is asked.

    Attributes:
        key: of the correction that may follow; one with the same key replaces it.
        image: [C, H, W] in [0, 255], the input frame.
        sam: [H, W] logits of SAM.
        crop: the part that is looked at.
        prompt: for the journal, JSON: ``box`` (four numbers) or ``points`` ([x, y, 1 or 0] each), in input-frame
            pixels.
        case: for the journal: ``case``, ``slice`` and whatever else tells where it is.
        features: [C, g, g] of SAM's encoder, for methods that look at them.
    """

    key: str
    image: Tensor
    sam: Tensor
    crop: Crop
    prompt: Mapping[str, Any] = field(default_factory=dict)
    case: Mapping[str, Any] = field(default_factory=dict)
    features: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.image.shape[-2], self.image.shape[-1]


class Waiting(Protocol):
    """An answer that may be corrected.

    Attributes:
        key: of the view.
        logits: [h, w] of the crop.
        said: what the method says of it.
    """

    @property
    def key(self) -> str: ...

    @property
    def logits(self) -> Tensor: ...

    @property
    def said(self) -> Mapping[str, Any]: ...


class Learner(Protocol):
    """The part of :class:`monai_ext.engines.online.OnlineLearner` that an inferer uses."""

    @property
    def position(self) -> int: ...

    def infer(self, view: View) -> Any:
        """Answer a view: a :class:`Waiting`."""
        ...

    def correct(self, pending: Any, truth: Tensor, source: str = "expert") -> dict[str, Any]:
        """Learn from the corrected mask [H, W]."""
        ...

    def step(self) -> dict[str, Any]:
        """Train once more without a correction."""
        ...

    def restart(self) -> None:
        """Forget everything."""
        ...

    def rewind(self, position: int) -> None:
        """Go back to an earlier place in the journal."""
        ...

    def mark(self) -> int:
        """Keep the state as it is now; return its place in the journal."""
        ...
