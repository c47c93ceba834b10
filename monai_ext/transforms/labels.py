"""From one map of logits per label to one mask."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from monai_ext.errors import UserError


class MergeLabelsd(MapTransform):
    """Merge the logits of labels that were predicted one by one into an integer mask.

    A voxel gets the label of its largest logit, and background where no logit is above 0 (of equal logits,
    the label named first). MetaTensors keep their meta and applied operations.

    Args:
        keys: logits [L, *spatial], one channel a label.
        values: the L mask values, in the order of the channels; background is 0.
        overlap: return uint8 [L, *spatial] instead, 1 where a label's own logit is above 0, for predictions
            whose labels are not told apart.
        allow_missing_keys: do not raise for a key that is absent.

    Returns:
        int32 mask [1, *spatial] under each key.

    Raises:
        UserError: values that repeat or are not positive; another number of channels than values.
    """

    def __init__(
        self,
        keys: KeysCollection,
        values: Sequence[int],
        overlap: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = [int(value) for value in values]
        self.overlap = overlap
        if not self.values or min(self.values) < 1 or len(set(self.values)) < len(self.values):
            raise UserError(f"label values {list(values)} must be distinct and above 0 (background); mend `labels`")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._merge(d[key])
        return d

    def _merge(self, logits: Tensor) -> Tensor:
        if logits.shape[0] != len(self.values):
            raise UserError(
                f"the prediction has {logits.shape[0]} channels, `labels` names {len(self.values)} values; "
                "give the labels that the network predicts"
            )
        plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        merged = (plain > 0).to(torch.uint8) if self.overlap else self._largest(plain)
        if isinstance(logits, MetaTensor):
            return MetaTensor(merged, meta=logits.meta, applied_operations=logits.applied_operations)
        return merged

    def _largest(self, logits: Tensor) -> Tensor:
        largest, channel = logits.max(dim=0, keepdim=True)
        values = torch.tensor(self.values, dtype=torch.int32, device=logits.device)
        return values[channel].where(largest > 0, 0)
