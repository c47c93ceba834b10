"""Puts masks that are to be kept back over the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_ext.data.images import read_label
from monai_ext.handlers.mask_writer import decollated


class KeptMasks:
    """Restores, in the prediction of each case that brings ``kept`` and ``kept_mask``, what was to be kept.

    Inside of such a mask there is its structure, where the run has one of this name, and no other; where several are
    kept, the first goes before the others.

    Args:
        labels: name -> value in the masks, in the order of channels.
    """

    def __init__(self, labels: Mapping[str, int]) -> None:
        self.labels = dict(labels)

    def attach(self, engine: Engine) -> None:
        """Attach after postprocessing and before handlers that use the masks."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for case, output in decollated(engine):
            for name, path in reversed(list(zip(_texts(case.get("kept")), _texts(case.get("kept_mask")), strict=True))):
                output["pred"] = self._kept(output["pred"], name, torch.from_numpy(read_label(path) != 0))

    def _kept(self, pred: torch.Tensor, name: str, mask: torch.Tensor) -> torch.Tensor:
        """Return [1, *spatial] integer or [L, *spatial] masks in which the structure alone is inside of its mask."""
        inside, kept = mask.to(pred.device), pred.clone()
        kept[:, inside] = 0
        if name in self.labels:
            by_channel = len(kept) == len(self.labels)
            channel = list(self.labels).index(name) if by_channel else 0
            kept[channel, inside] = 1 if by_channel and len(self.labels) > 1 else self.labels[name]
        return kept


def _texts(value: Any) -> list[str]:
    """Flatten what collation makes of a list of texts."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [text for part in value for text in _texts(part)]
