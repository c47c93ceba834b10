"""Training on dense labels: slices of several sources, drawn in a repeatable order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler

from monai_ext import processes
from monai_ext.data.slice_store import StoredCase
from monai_ext.errors import UserError


class SliceDataset(Dataset):
    """Slices of several sources, padded to a square, one dictionary a slice.

    An item holds ``image`` [3, S, S] float32 in [0, 255], ``label`` [1, S, S] float32 (class indices,
    :data:`~monai_ext.data.slice_store.IGNORE` where the class is not known), ``valid`` [1, S, S] (1 where there is
    image, 0 in the padding) and ``source``, the index of its source. For a pair of numbers in place of one, the first
    three are [2, ...], both slices.

    Args:
        sources: name -> cases as :func:`monai_ext.data.slice_store.store_slices` returns them.
        size: side S of the square, in pixels.
    """

    def __init__(self, sources: Mapping[str, Sequence[StoredCase]], size: int) -> None:
        self.size = size
        self.images: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.index: list[tuple[int, int]] = []
        self.source: list[int] = []
        for number, cases in enumerate(sources.values()):
            for case in cases:
                self.images.append(case.load("image"))
                self.labels.append(case.load("label"))
                count = len(self.labels[-1])
                self.index += [(len(self.images) - 1, k) for k in range(count)]
                self.source += [number] * count

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int | tuple[int, int]) -> dict[str, Any]:
        if isinstance(number, tuple):
            first, second = (self[n] for n in number)
            return {"source": first.pop("source"), **{key: torch.stack([first[key], second[key]]) for key in first}}
        case, k = self.index[number]
        image = torch.from_numpy(np.array(self.images[case][k])).float().expand(3, -1, -1)
        label = torch.from_numpy(np.array(self.labels[case][k])).float()[None]
        return {
            "image": self._square(image),
            "label": self._square(label),
            "valid": self._square(torch.ones_like(label)),
            "source": self.source[number],
        }

    def _square(self, array: Tensor) -> Tensor:
        height, width = array.shape[-2:]
        return torch.nn.functional.pad(array, (0, self.size - width, 0, self.size - height))


class MixedSampler(Sampler[Any]):
    """Draws slices with replacement: the source by its share, then a slice of it uniformly.

    The draws of an epoch depend on (seed, epoch) alone, so that a run can be resumed: call
    :meth:`set_epoch` before each epoch.

    Args:
        dataset: the slices.
        shares: one weight a source.
        length: draws in an epoch.
        seed: seeds the draws.
        reach: draw pairs of slices: of the first source, the labelled cases, with another slice of the case, at most so
            many slices away; of the others, whose slices have nothing in common, each slice with itself. None: single
            slices.
    """

    def __init__(
        self, dataset: SliceDataset, shares: Sequence[float], length: int, seed: int = 0, reach: int | None = None
    ) -> None:
        sources = np.asarray(dataset.source)
        self.members = [np.flatnonzero(sources == s) for s in range(len(shares))]
        if any(len(m) == 0 and s > 0 for m, s in zip(self.members, shares, strict=True)):
            raise UserError("a source of training slices is empty: no slice of its cases holds a structure.")
        self.shares = np.asarray(shares, float) / sum(shares)
        self.length, self.seed, self.epoch, self.reach = length, seed, 0, reach
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of ``epoch`` (0, 1, ...)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int | tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        for source in rng.choice(len(self.shares), self.length, p=self.shares):
            number = int(rng.choice(self.members[source]))
            if self.reach is None:
                yield number
            else:
                yield number, self._partner(number, rng) if source == 0 else number

    def _partner(self, number: int, rng: np.random.Generator) -> int:
        """Draw a slice of the same case, the slice itself included."""
        index, reach = self.dataset.index, self.reach or 0
        near = range(max(0, number - reach), min(len(index), number + reach + 1))
        return int(rng.choice([n for n in near if index[n][0] == index[number][0]]))


class SharedBatches(Sampler[list[Any]]):
    """Batches of a sampler's draws, of each the part of this process; of one process alone the whole.

    The sampler must draw the same in every process.

    Args:
        sampler: draws slices.
        batch_size: of all processes together. The draws are a multiple of it.

    Raises:
        UserError: if there are more processes than slices in a batch.
    """

    def __init__(self, sampler: MixedSampler, batch_size: int) -> None:
        if batch_size < processes.count():
            raise UserError(
                f"{processes.count()} processes cannot share out batches of {batch_size}: raise --batch_size, which "
                "is that of all together, or start fewer."
            )
        if len(sampler) % batch_size:
            raise ValueError(f"{len(sampler)} draws are no whole number of batches of {batch_size}")
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in BatchSampler(self.sampler, self.batch_size, drop_last=False):
            yield processes.share_out(batch)
