"""From one map of logits per label to one mask."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import KeepLargestConnectedComponent, MapTransform
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.prompts.ties import likeliest_label
from monai_ext.transforms.request import REQUEST


class MergeLabelsd(MapTransform):
    """Merge the logits of labels that were predicted one by one into an integer mask.

    A voxel gets the label of its largest logit, and background where no logit is above 0; of equal logits
    (:mod:`monai_ext.prompts.ties`) the label named first. MetaTensors keep their meta and applied operations.

    Args:
        keys: logits [L, *spatial], one channel a label.
        values: the L mask values, in the order of the channels; background is 0.
        overlap: return uint8 [L, *spatial] instead, 1 where a label's own logit is above 0, for predictions
            whose labels are not told apart.
        image_key: image whose request (:mod:`monai_ext.transforms.request`) names labels that go before ``values``; its
            mask then has no channel axis, which MONAI Label takes off volumes alone, and the item ``result`` is the
            request's ``answer``.
        allow_missing_keys: do not raise for a key that is absent.
        largest_piece: keep only the largest connected piece of each label; not with ``overlap``.

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
        image_key: str | None = None,
        allow_missing_keys: bool = False,
        largest_piece: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = [int(value) for value in values]
        self.overlap, self.image_key, self.largest_piece = overlap, image_key, largest_piece
        if not self.values or min(self.values) < 1 or len(set(self.values)) < len(self.values):
            raise UserError(f"label values {list(values)} must be distinct and above 0 (background); mend `labels`")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        request = self._request(d)
        for key in self.key_iterator(d):
            mask = self._merge(d[key], self.values if request is None else list(request["labels"].values()))
            d[key] = mask if request is None else mask[0]
        if request is not None:
            d["result"] = request["answer"]
        return d

    def _request(self, data: Mapping[Hashable, Any]) -> dict[str, Any] | None:
        image = data.get(self.image_key) if self.image_key is not None else None
        return image.meta.get(REQUEST) if isinstance(image, MetaTensor) else None

    def _merge(self, logits: Tensor, values: list[int]) -> Tensor:
        if logits.shape[0] != len(values):
            raise UserError(
                f"the prediction has {logits.shape[0]} channels, `labels` names {len(values)} values; "
                "give the labels that the network predicts"
            )
        plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        merged = (plain > 0).to(torch.uint8) if self.overlap else self._largest(plain, values)
        if isinstance(logits, MetaTensor):
            return MetaTensor(merged, meta=logits.meta, applied_operations=logits.applied_operations)
        return merged

    def _largest(self, logits: Tensor, label_values: list[int]) -> Tensor:
        values = torch.tensor([0, *label_values], dtype=torch.int32, device=logits.device)
        mask = values[likeliest_label(logits)][None]
        if not self.largest_piece:
            return mask
        return torch.as_tensor(KeepLargestConnectedComponent(label_values, is_onehot=False)(mask))
