"""References: the annotated images of a patient, loaded once and encoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.inferers.encoding import encode_slice
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.transforms.sam_input import FRAME_EXTENT, Extent, choose_extent, frame_extent, frame_size

Paths = str | os.PathLike | Sequence[str]


@dataclass
class Reference:
    """One annotated image in the input frame.

    Attributes:
        image: [C, H, W, D].
        label: [1, H, W, D] integer.
    """

    image: MetaTensor
    label: Tensor
    _embeddings: dict[int, Embeddings] = field(default_factory=dict, repr=False)
    _own_affine: Tensor | None = field(default=None, repr=False)

    def embed(self, network: PromptableNetwork, index: int) -> Embeddings:
        """Encode slice ``index``, once: for one network, whose weights stay as they are."""
        if index not in self._embeddings:
            self._embeddings[index] = encode_slice(network, self.image.as_tensor()[..., index], self.frame)
        return self._embeddings[index]

    def move(self, shift: np.ndarray) -> None:
        """Lay it elsewhere in space, by ``[3]`` RAS mm from where its file says that it lies."""
        if self._own_affine is None:
            self._own_affine = torch.as_tensor(self.image.affine).clone()
        affine = self._own_affine.clone()
        affine[:3, 3] += torch.as_tensor(shift, dtype=affine.dtype)
        self.image.affine = affine

    def held_slices(self, values: Collection[int] | None = None) -> list[int]:
        """Return the slices that hold any structure, or any of these values, ascending."""
        label = np.asarray(self.label[0])
        shown = label != 0 if values is None else np.isin(label, list(values))
        return np.flatnonzero(shown.any(axis=(0, 1))).tolist()

    def has_scale(self, extent: Extent | None) -> bool:
        """Tell whether loading it for a frame of so many mm would give the same image again."""
        own = self.image.meta.get("plane_extent")
        return own is None or choose_extent(own, extent) == frame_extent(self.image)

    @property
    def frame(self) -> tuple[int, int]:
        """Rows and columns of the frame that the slices lie in."""
        return frame_size(self.image)

    @property
    def file(self) -> str:
        """The image's file, for messages."""
        return str(self.image.meta.get("filename_or_obj", "the reference"))


class ReferenceLoader:
    """Loads a patient's references through the transforms of the targets and keeps those of the last call.

    One that serves the next target, too, at the same scale, is neither loaded nor encoded again.

    Args:
        transform: of {"image": path, "label": path, "modality": text, "frame_extent": mm or None} to the input frame:
            image [C, H, W, D], label [1, H, W, D].
        labels: name -> value of the structures asked for.

    ``loaded`` holds the references of the last call: another list object means other references.

    Example:
        >>> load = ReferenceLoader(case_preprocessing(512, masks="label"), {"LV": 3})
        >>> references = load("visit_1.nii.gz", "visit_1_label.nii.gz", "MR")
    """

    def __init__(self, transform: Callable[[dict[str, Any]], dict[str, Any]], labels: dict[str, int]) -> None:
        self.transform, self.labels = transform, labels
        self._key: tuple[Any, ...] | None = None
        self._held: dict[tuple[Any, ...], Reference] = {}
        self.loaded: list[Reference] = []

    def __call__(
        self,
        images: Paths,
        labels: Paths,
        modality: str | Sequence[str] | None = None,
        names: dict[str, int] | None = None,
        extent: Extent | None = None,
    ) -> list[Reference]:
        """Return the references of one patient.

        Args:
            images: one path or several.
            labels: as many paths.
            modality: of the patient's images, for their intensity window, or one for each.
            names: name -> value of the structures asked for, where they are not those of the constructor.
            extent: mm that the target's input frame covers: a smaller reference gets its scale, see
                :class:`monai_ext.transforms.frame_extent.FrameExtentd`. None: the target has no mm.

        A file that was written anew is read anew.

        Raises:
            UserError: if their numbers differ, or a structure is on none of the labels.
        """
        paths = (_as_list(images), _as_list(labels))
        if len(paths[0]) != len(paths[1]) or not paths[0]:
            raise UserError(
                f"{len(paths[0])} reference images but {len(paths[1])} reference labels: give each its own."
            )
        modalities: list[str | None] = []
        if modality is None or isinstance(modality, str):
            modalities += [modality] * len(paths[0])
        else:
            modalities += modality
        if len(modalities) != len(paths[0]):
            raise ValueError(f"{len(modalities)} modalities for {len(paths[0])} references")
        key = (*paths, modalities, [_written(path) for group in paths for path in group])
        if key != self._key or not all(reference.has_scale(extent) for reference in self.loaded):
            self._key = None
            wanted = [(i, m, kind, _written(i), _written(m)) for i, m, kind in zip(*paths, modalities, strict=True)]
            kept = {one: reference for one, reference in self._held.items() if reference.has_scale(extent)}
            held = {one: kept.get(one) or self.load(*one[:3], extent) for one in wanted}
            self._held, self.loaded = held, [held[one] for one in wanted]
            self._refuse_empty(paths[1], self.labels if names is None else names)
            self._key = key
        return self.loaded

    def load(self, image: str, label: str, modality: str | None = None, extent: Extent | None = None) -> Reference:
        """Load one image with a mask, which need not be an annotation, and keep nothing of it.

        Raises:
            UserError: if they are of different grids.
        """
        item = self.transform({"image": image, "label": label, "modality": modality, FRAME_EXTENT: extent})
        if item["image"].shape[1:] != item["label"].shape[1:]:
            raise UserError(f"reference label {label} has another grid than its image {image}: resample the label.")
        return Reference(item["image"], plain(item["label"]).round().long())

    def _refuse_empty(self, files: list[str], labels: dict[str, int]) -> None:
        for name, value in labels.items():
            if not any(bool((r.label == value).any()) for r in self.loaded):
                raise UserError(
                    f"reference {', '.join(files)} holds no {name} (value {value}): annotate it there, or leave it out "
                    "of --labels."
                )


def _written(path: str) -> tuple[int, int] | None:
    """When a file was written, and its size; None for what is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def plain(tensor: Tensor) -> Tensor:
    """Drop a MetaTensor's meta: every operation on one costs more than the arithmetic of a small mask."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else torch.as_tensor(tensor)


def _as_list(paths: Any) -> list[str]:
    """Flatten what MONAI's collation makes of one path or a list of paths."""
    if isinstance(paths, (str, os.PathLike)):
        return [os.fspath(paths)]
    return [p for part in paths for p in _as_list(part)]
