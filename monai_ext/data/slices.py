"""Training on slices: volumes and frames cut once into 8-bit slices on disk, drawn in a repeatable order.

One case gives ``<case>_image.npy`` ([n, C, H, W] uint8, input frame) and ``<case>_label.npy`` ([n, H, W] uint8),
memory-mapped while training, so the size of a data set does not matter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler
from tqdm import tqdm

from monai_ext import processes
from monai_ext.data.contents import case_contents, content_key
from monai_ext.errors import UserError
from monai_ext.files import source_sha256


def cut_slices(
    cases: Sequence[Mapping[str, Any]],
    transform: Callable[[dict[str, Any]], dict[str, Any]],
    folder: str | os.PathLike,
    values: Sequence[int],
    settings: str = "",
) -> list[Path]:
    """Cut each case into the slices that hold a structure and store them; finished cases are kept.

    Args:
        cases: data-list entries with ``case``, ``image`` and ``label``. Files are recognised by their contents.
        transform: loads and maps a case to the input frame: image [C, H, W, D] in [0, 255], label [1, H, W, D].
        folder: where the arrays go.
        values: label values in the order of the classes 1, 2, ...; every other value becomes background.
        settings: text that stands for the transform's settings. Other settings, entries of a case, contents of its
            files or another source of this package make new files.

    Returns:
        The stem of each case's two files, without ``_image.npy``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stems = []
    for case in tqdm(cases, desc="cutting slices", disable=None):
        key = content_key([case_contents(case), list(values), settings, source_sha256()])
        stem = folder / f"{case['case']}_{key[:10]}"
        if not Path(f"{stem}_image.npy").exists():
            item = transform(dict(case))
            image = np.asarray(item["image"]).round().clip(0, 255).astype(np.uint8)
            raw = np.asarray(item["label"])[0]
            label = np.zeros(raw.shape, np.uint8)
            for index, value in enumerate(values, start=1):
                label[raw == value] = index
            kept = np.flatnonzero(label.any((0, 1)))
            _store(f"{stem}_label.npy", label[..., kept].transpose(2, 0, 1))
            _store(f"{stem}_image.npy", image[..., kept].transpose(3, 0, 1, 2))
        stems.append(stem)
    if not stems:
        raise UserError("there is no case to train on: check --datalist, --split and --fold.")
    return stems


def _store(name: str, array: np.ndarray) -> None:
    partial = f"{name}.part"
    with open(partial, "wb") as file:
        np.save(file, np.ascontiguousarray(array))
    os.replace(partial, name)


def store_drawn(
    draw: Callable[[np.random.Generator, int, str], tuple[np.ndarray, np.ndarray]],
    folder: str | os.PathLike,
    size: int,
    count: int,
    kinds: Sequence[str] = ("mr", "rgb"),
    seed: int = 0,
) -> list[Path]:
    """Draw ``count`` phantom slices of each kind and store them as :func:`cut_slices` does; return the stems."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stems = []
    for kind in kinds:
        stem = folder / f"phantom_{kind}_{size}_{count}_{seed}_{source_sha256()[:10]}"
        if not Path(f"{stem}_image.npy").exists():
            rng = np.random.default_rng([seed, len(kind)])
            drawn = [draw(rng, size, kind) for _ in tqdm(range(count), desc=f"drawing {kind}", disable=None)]
            _store(f"{stem}_label.npy", np.stack([label for _, label in drawn]).astype(np.uint8))
            _store(f"{stem}_image.npy", np.stack([image for image, _ in drawn]).round().astype(np.uint8))
        stems.append(stem)
    return stems


def store_regions(
    stems: Sequence[str | os.PathLike],
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    folder: str | os.PathLike,
    variants: int,
    seed: int = 0,
) -> list[Path]:
    """Cut the slices under ``stems`` anew into ``variants`` sets of regions each; return the stems.

    The labels of the slices are not read. Slices in which ``draw`` (:func:`monai_ext.data.regions.draw_regions`) finds
    no region are left out.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, source in enumerate(tqdm(stems, desc="cutting regions", disable=None)):
        stem = folder / f"{Path(source).name}_regions_{variants}_{seed}_{number}"
        if not Path(f"{stem}_image.npy").exists():
            rng = np.random.default_rng([seed, number])
            images = np.repeat(np.load(f"{source}_image.npy"), variants, axis=0)
            labels = np.stack([draw(image, rng) for image in images])
            kept = labels.any((1, 2))
            _store(f"{stem}_label.npy", labels[kept])
            _store(f"{stem}_image.npy", images[kept])
        found.append(stem)
    return found


class SliceDataset(Dataset):
    """Slices of several sources, padded to a square, one dictionary a slice.

    An item holds ``image`` [3, S, S] float32 in [0, 255], ``label`` [1, S, S] float32 (class indices), ``valid``
    [1, S, S] (1 where there is image, 0 in the padding) and ``source``, the index of its source. For a pair of numbers
    in place of one, the first three are [2, ...], both slices.

    Args:
        sources: name -> stems as :func:`cut_slices` returns them.
        size: side S of the square, in pixels.
    """

    def __init__(self, sources: Mapping[str, Sequence[str | os.PathLike]], size: int) -> None:
        self.size = size
        self.images: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.index: list[tuple[int, int]] = []
        self.source: list[int] = []
        for number, stems in enumerate(sources.values()):
            for stem in stems:
                self.images.append(np.load(f"{stem}_image.npy", mmap_mode="r"))
                self.labels.append(np.load(f"{stem}_label.npy", mmap_mode="r"))
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
