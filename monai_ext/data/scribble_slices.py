"""Training on scribbles: every slice of the scribbled cases, drawn in a repeatable order."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from monai_ext.data.manifest import DataList
from monai_ext.data.slice_store import IGNORE, StoredCase, Transform, class_indices, store_slices
from monai_ext.errors import UserError
from monai_ext.files import PathLike, atomic_path
from monai_ext.prompts.scribble_grid import resize_scribble


def scribbled_cases(datalist: DataList, simulated: bool = False) -> list[dict[str, Any]]:
    """Return the cases to train on: those with a scribble, or with a label that scribbles are simulated from.

    Raises:
        UserError: there is none, or drawn scribbles without a value for what they leave unlabelled.
    """
    items = [
        {
            "case": case.case,
            "patient": case.patient or case.case,
            "image": case.image,
            "scribble": case.label if simulated else case.scribble,
            "label": case.label,
            "modality": case.modality or datalist.modality or "",
        }
        for case in datalist.cases
    ]
    found = [item for item in items if item["scribble"] is not None]
    if not found:
        what = "label to simulate scribbles from" if simulated else "scribble"
        raise UserError(f"{datalist.dataset} has no case with a {what} to train on: check --split and --fold.")
    if not simulated and datalist.ignore is None:
        raise UserError(
            f"{datalist.dataset} has scribbles but no 'ignore' value: add to the data list the value that they "
            "have where nothing is drawn."
        )
    return found


def store_scribbles(
    cases: Sequence[Mapping[str, Any]],
    transform: Transform,
    folder: PathLike,
    labels: Mapping[str, int],
    unlabelled: int,
    known: Sequence[int] = (),
    settings: str = "",
    label_transform: Transform | None = None,
    dataset: str = "",
) -> list[StoredCase]:
    """Store all slices of the cases, also those without a scribble; see :func:`store_slices`.

    Args:
        cases: of :func:`scribbled_cases`.
        transform: maps a case to image [C, H, W, D] in [0, 255] and scribble [1, H, W, D].
        folder: of the files.
        labels: name -> value of the structures, in the order of the classes 1, 2, ...
        unlabelled: value of what is not scribbled on.
        known: values of further structures: their scribbles are background.
        settings: text that stands for those of the transforms.
        label_transform: maps a case to label [1, H, W, D]; None: dense labels are not read.
        dataset: of the cases.

    Raises:
        UserError: a scribble has a value that the data list does not know, or nothing is scribbled on.
    """
    stored = store_slices(
        cases,
        transform,
        folder,
        labels,
        mask="scribble",
        ignore=unlabelled,
        known=known,
        further=None if label_transform is None else {"label": label_transform},
        every_slice=True,
        settings=settings,
        dataset=dataset,
    )
    if not any(case.load("pixels")[:, 1:].any() for case in stored):
        raise UserError("no slice has a scribble of a structure: check the scribbles, --labels and --split.")
    return stored


def write_classes(path: Path, classes: np.ndarray, affine: np.ndarray, values: Sequence[int]) -> None:
    """Write class indices [n, H, W] as NIfTI [H, W, n] with the values of the data list, the same bytes each time."""
    table = np.array([0, *values], np.int16)
    image = nib.Nifti1Image(table[classes].transpose(1, 2, 0), affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip_bytes(image))


def gzip_bytes(image: nib.Nifti1Image) -> bytes:
    """Return a NIfTI image compressed, without the time of writing."""
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)


def read_classes(path: Path, values: Sequence[int]) -> np.ndarray:
    """Read what :func:`write_classes` wrote."""
    raw = np.asarray(nib.Nifti1Image.from_filename(path).dataobj).transpose(2, 0, 1)
    return class_indices(raw, values)


class ScribbleDataset(Dataset):
    """Slices of all cases, padded to a square at the bottom and right.

    An item holds ``image`` [1, S, S] float32 in [0, 1] (0 in the padding), ``scribble`` [S, S], and ``target`` [S, S]
    where pseudo-labels (or dense labels) are given: uint8 class indices, :data:`IGNORE` where unknown and in the
    padding.

    Args:
        data: of :func:`store_scribbles`.
        size: side S; slices whose longer side is another are resampled.
        targets: case -> [n, H, W] class indices; None: there are none.
    """

    def __init__(self, data: Sequence[StoredCase], size: int, targets: Mapping[str, np.ndarray] | None = None) -> None:
        self.data = list(data)
        self.size, self.targets = int(size), targets
        self.images = [case.grey() for case in data]
        self.scribbles = [case.load("scribble") for case in data]
        self.index = [(n, k) for n, image in enumerate(self.images) for k in range(len(image))]

    def with_targets(self, targets: Mapping[str, np.ndarray] | None) -> ScribbleDataset:
        """Return the same slices with other targets."""
        return ScribbleDataset(self.data, self.size, targets)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        n, k = self.index[number]
        image = torch.from_numpy(np.array(self.images[n][k]))
        scribble = torch.from_numpy(np.array(self.scribbles[n][k]))
        prepared, size = self.prepare(image)
        item = {
            "image": prepared,
            "scribble": self._square(resize_scribble(scribble, size, IGNORE), IGNORE),
        }
        if self.targets is not None:
            target = torch.from_numpy(np.array(self.targets[self.data[n].case][k]))
            item["target"] = self._square(resize_classes(target, size), IGNORE)
        return item

    def prepare(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Bring a stored slice [H, W] to [1, S, S] in [0, 1]; return also the (h, w) that it fills."""
        size = plane_in_square(image.shape, self.size)
        return self._square(resize_image(image, size)[None], 0.0), size

    def _square(self, array: Tensor, value: float) -> Tensor:
        height, width = array.shape[-2:]
        return F.pad(array, (0, self.size - width, 0, self.size - height), value=value)


def plane_in_square(shape: Sequence[int], size: int) -> tuple[int, int]:
    """Return the (H, W) of a slice whose longer side becomes ``size``."""
    scale = size / max(shape)
    return max(1, int(shape[0] * scale + 0.5)), max(1, int(shape[1] * scale + 0.5))


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a slice [H, W] in [0, 255] to ``size``: float32 in [0, 1], bilinear and antialiased."""
    image = image.float() / 255
    if tuple(image.shape) == size:
        return image
    return F.interpolate(image[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]


def resize_classes(classes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample class indices [H, W] to ``size`` by nearest neighbour."""
    if tuple(classes.shape) == size:
        return classes
    return F.interpolate(classes[None, None].float(), size, mode="nearest-exact")[0, 0].to(classes.dtype)


class ShuffledSampler(Sampler[int]):
    """Passes over all items in random order, cut into epochs of a fixed number of draws.

    The draws of an epoch depend on (seed, epoch) alone, so that a run can go on after a kill; a pass over the items may
    end in the middle of an epoch.

    Args:
        count: items.
        length: draws in an epoch.
        seed: of the orders.
    """

    def __init__(self, count: int, length: int, seed: int = 0) -> None:
        self.count, self.length, self.seed, self.epoch = count, length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of ``epoch`` (0, 1, ...)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        first, last = self.epoch * self.length, (self.epoch + 1) * self.length
        orders: dict[int, np.ndarray] = {}
        for draw in range(first, last):
            turn, place = divmod(draw, self.count)
            if turn not in orders:
                orders = {turn: np.random.default_rng([self.seed, turn]).permutation(self.count)}
            yield int(orders[turn][place])
