"""Resampling that survives MONAI Label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from typing import Any

from monai.transforms import Spacingd


class SafeSpacingd(Spacingd):
    """MONAI's ``Spacingd`` for items whose names begin with an image's key but hold no meta data.

    Since MONAI 1.6.0 ``Spacingd(keys="image")`` calls ``update`` on every ``image_*`` item of NIfTI input, and fails on
    a text: MONAI Label adds ``image_path`` to each request. Items that are no mappings are put aside for the call and
    come back as they were; ``Invertd`` works as before. No bundle here resamples to a fixed spacing; one that does
    names this class.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        prefixes = tuple(f"{key}_" for key in self.keys)
        aside = {
            name: value
            for name, value in data.items()
            if isinstance(name, str)
            and name.startswith(prefixes)
            and name not in self.keys
            and not isinstance(value, MutableMapping)
        }
        done: dict[Hashable, Any] = super().__call__(
            {name: value for name, value in data.items() if name not in aside}, lazy
        )
        done.update(aside)
        return done
