"""Grey values of any modality to the [0, 255] that segment_anything's networks expect.

What is done follows from the case alone (its modality, or else what the image looks like), so that no data
set needs a configuration of its own; a window or percentiles can be asked for instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.grey_values import factor_to_8_bits

CT_WINDOW = (-160.0, 240.0)
"""HU: the soft-tissue window (level 40, width 400). A lung overlay sets {"window": [-910, 590]} instead."""

PERCENTILES = (0.5, 99.5)

CHOICES = 'null, {"window": [low, high]}, {"percentiles": [low, high]} or "none"'


class Intensityd(MapTransform):
    """Map grey values to float32 in [0, 255].

    ``intensity`` null chooses case by case, in this order:

    1. a picture (three channels, or a 2-D frame) whose type and values say what is black and white
       (:func:`~monai_ext.grey_values.factor_to_8_bits`: 8 bits, decimals in [0, 1] or [0, 255], 8 bits stored in 16):
       brought to [0, 255], whatever the modality, because somebody has windowed it already;
    2. modality "CT": the window :data:`CT_WINDOW`;
    3. every other modality ("MR", "PET", "US", ...), a missing or unknown one included: the 0.5th to 99.5th
       percentiles of the whole image. Voxels at the image's minimum are left out of them: air and padding
       hold one constant value there, and how much of it surrounds the patient must not move the grey values
       of tissue.

    Explicitly: {"window": [low, high]} in the image's own units (HU), {"percentiles": [low, high]} in
        percent, as in 3,
    or "none" for values that are in [0, 255] already. Values outside the range are clipped to it.

    Args:
        keys: images [C, X, Y, Z] or frames [C, W, H], MetaTensor or Tensor.
        intensity: see above.
        modality_key: item of the data that names the modality, case-insensitive.
        allow_missing_keys: do not raise for a key that is absent.

    Raises:
        UserError: an ``intensity`` that is none of the choices; a constant image, or with "none" one that
            leaves [0, 255] (names case and file).
    """

    def __init__(
        self,
        keys: KeysCollection,
        intensity: Mapping[str, Any] | str | None = None,
        modality_key: str = "modality",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.rule, self.range = _parse(intensity)
        self.modality_key = modality_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._scale(d[key], d.get(self.modality_key), _name(d, key))
        return d

    def _scale(self, image: Tensor, modality: str | None, name: str) -> Tensor:
        image = image.float()
        low, high = float(image.min()), float(image.max())
        if low == high:
            raise UserError(f"{name}: every pixel has the value {low:g}; give an image that shows something")
        rule, bounds = (self.rule, self.range) if self.rule != "auto" else _choose(image, modality, low, high)
        if rule == "none":
            if low < 0 or high > 255:
                raise UserError(
                    f"{name}: intensity 'none' needs values in [0, 255], these run from {low:g} to {high:g}; "
                    f"choose another of {CHOICES}"
                )
            return image
        if rule == "percentiles":
            bounds = _percentiles(image, bounds, low, high)
        return ((image - bounds[0]) / (bounds[1] - bounds[0]) * 255).clamp(0, 255)


def _parse(intensity: Mapping[str, Any] | str | None) -> tuple[str, tuple[float, float]]:
    """Return the rule ("auto", "none", "window" or "percentiles") and its two numbers."""
    if intensity is None:
        return "auto", (0.0, 255.0)
    if intensity == "none":
        return "none", (0.0, 255.0)
    if isinstance(intensity, Mapping) and len(intensity) == 1 and set(intensity) <= {"window", "percentiles"}:
        ((rule, bounds),) = intensity.items()
        try:
            low, high = (float(bound) for bound in bounds)
        except (TypeError, ValueError):
            low, high = np.nan, np.nan
        in_range = rule == "window" or (low >= 0 and high <= 100)
        if np.isfinite([low, high]).all() and low < high and in_range:
            return rule, (low, high)
    raise UserError(f"intensity {intensity!r} is not understood; choose {CHOICES}, low < high")


def _choose(image: Tensor, modality: str | None, low: float, high: float) -> tuple[str, tuple[float, float]]:
    is_picture = image.shape[0] == 3 or image.ndim == 3
    factor = factor_to_8_bits(_plain(image).cpu().numpy(), _is_float(image)) if is_picture else None
    if factor is not None:
        return ("none" if factor == 1 and low >= 0 and high <= 255 else "window"), (0.0, 255.0 / factor)
    if isinstance(modality, str) and modality.strip().lower() == "ct":
        return "window", CT_WINDOW
    return "percentiles", PERCENTILES


def _is_float(image: Tensor) -> bool:
    """Tell whether the file stores decimals; of an image that says nothing of its file, whether there are any."""
    stored = image.meta.get("stored_type") if isinstance(image, MetaTensor) else None
    if stored is not None:
        return np.dtype(stored).kind == "f"
    return bool((image != image.round()).any())


def _plain(image: Tensor) -> Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _percentiles(image: Tensor, percentiles: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    values = _plain(image)
    above = values[values > low].cpu().numpy()
    first, second = (float(value) for value in np.percentile(above, percentiles))
    return (first, second) if first < second else (low, high)


def _name(data: Mapping[Hashable, Any], key: Hashable) -> str:
    meta = data[key].meta if isinstance(data[key], MetaTensor) else {}
    parts = [f"case {data['case']}" if "case" in data else "", str(meta.get("filename_or_obj", ""))]
    return ", ".join(part for part in parts if part) or str(key)
