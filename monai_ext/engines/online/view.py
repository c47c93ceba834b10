"""What a learner hands to its method: a view cut to its crop, and corrections; and the answers that it gets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from monai_ext.inferers.view import View
from monai_ext.prompts.crops import Crop


@dataclass(frozen=True)
class Correction:
    """What is learned from, and kept in the journal: nothing outside of the crop, as compact as images are in files.

    Attributes:
        key: see :class:`View`.
        image: [C, h, w] uint8, C is 1 or 3.
        sam: [h, w] float32 logits.
        truth: [h, w] bool.
        crop: place of h and w in the image.
        size: (H, W) of the image.
        source: ``expert``, or ``pseudo`` for a mask that nobody has looked at.
        prompt: see :class:`View`.
        case: see :class:`View`.
        image_sha256: of the image [C, H, W].
        extra: further tensors that a method asked for (features).
    """

    key: str
    image: Tensor
    sam: Tensor
    truth: Tensor
    crop: Crop
    size: tuple[int, int]
    source: str = "expert"
    prompt: Mapping[str, Any] = field(default_factory=dict)
    case: Mapping[str, Any] = field(default_factory=dict)
    image_sha256: str = ""
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def view(self) -> CroppedView:
        """The correction without its truth."""
        return CroppedView(self.image, self.sam, self.crop, self.size, self.prompt, self.extra.get("features"))


@dataclass(frozen=True)
class CroppedView:
    """What a method sees of a view: the crop; see :class:`Correction` for the fields."""

    image: Tensor
    sam: Tensor
    crop: Crop
    size: tuple[int, int]
    prompt: Mapping[str, Any]
    features: Tensor | None


def cut(view: View, with_features: bool = False) -> CroppedView:
    """Return what is in the crop of a view, on the CPU, grey values rounded to whole numbers."""
    image = view.crop.of(view.image).round().clamp(0, 255).to("cpu", torch.uint8).contiguous()
    sam = view.crop.of(view.sam).to("cpu", torch.float32).contiguous()
    features = view.features.detach().float().cpu() if with_features and view.features is not None else None
    return CroppedView(image, sam, view.crop, view.size, dict(view.prompt), features)


class Answer(Protocol):
    """A method as it is at one moment: never changes, so that any thread may ask it at any time."""

    def __call__(self, view: CroppedView) -> tuple[Tensor, dict[str, Any]]:
        """Return fused logits [h, w] of the crop, and what is to be said of them (``alpha``, ``own``)."""
        ...


class OnlineMethod(Protocol):
    """What learns from corrections, one after the other. The result depends on their order alone.

    Attributes:
        with_features: ask for the encoder's features with each view.
    """

    with_features: bool

    def describe(self) -> dict[str, Any]:
        """Return, as JSON, all settings that decide what it becomes."""
        ...

    def serve(self) -> Answer:
        """Return the method as it is now."""
        ...

    def absorb(self, correction: Correction) -> dict[str, Any]:
        """Learn from a correction, or raise and stay as before; return what is to be said (``loss``, ``alpha``)."""
        ...

    def step(self) -> dict[str, Any]:
        """Train once more on what is there, without a correction."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that has been learned: tensors by name, and JSON."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Become what :meth:`state` returned."""
        ...


def tensor_sha256(tensor: Tensor) -> str:
    """Return a checksum of a tensor's type, shape and numbers."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
