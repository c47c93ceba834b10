"""Slices on disk: each case is brought to the input frame once and kept as 8-bit arrays, which trainings map to memory.

A stored case is recognised by the contents of its files, so that a corrected label is cut anew and a moved one is not.
Its files are ``<case>_<hash>_image.npy`` [n, C, H, W] uint8 and one ``..._<mask>.npy`` [n, H, W] uint8 of each mask
(class indices; :data:`IGNORE` where the class is not known), ``..._affine.npy`` [4, 4] ([h, w, k] -> RAS mm),
``..._slices.npy`` [n] (which slices of the case these are) and ``..._pixels.npy`` [n, classes + 1] (pixels of each
class).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_ext.data.contents import case_contents, content_key
from monai_ext.errors import UserError
from monai_ext.files import atomic_path, source_sha256

IGNORE = 255
"""Class index of pixels whose class is not known: not scribbled on, of the list's ``ignore`` value, in the padding."""

Transform = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class StoredCase:
    """One case on disk.

    Attributes:
        case: its name.
        patient: whose it is.
        dataset: it comes from.
        modality: of the image; "" if the data list does not say.
        classes: names of the classes 1, 2, ...
        stem: of the files.
    """

    case: str
    patient: str
    dataset: str
    modality: str
    classes: tuple[str, ...]
    stem: str

    def load(self, what: str) -> np.ndarray:
        """Return ``image``, a mask, ``affine``, ``slices`` or ``pixels`` (see the module), memory-mapped."""
        return np.load(f"{self.stem}_{what}.npy", mmap_mode="r")

    def has(self, what: str) -> bool:
        """Whether :meth:`load` finds it."""
        return Path(f"{self.stem}_{what}.npy").is_file()

    def grey(self) -> np.ndarray:
        """Return the image with its channels averaged, [n, H, W] uint8."""
        return grey_planes(self.load("image"))

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` makes an equal one of."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> StoredCase:
        """Make one of what :meth:`to_json` returned, also after it went through JSON."""
        return cls(**{**told, "classes": tuple(told["classes"])})


def store_slices(
    cases: Sequence[Mapping[str, Any]],
    transform: Transform,
    folder: str | os.PathLike,
    labels: Mapping[str, int],
    mask: str = "label",
    ignore: int | None = None,
    known: Sequence[int] | None = None,
    further: Mapping[str, Transform] | None = None,
    every_slice: bool = False,
    settings: str = "",
    dataset: str = "",
) -> list[StoredCase]:
    """Store the slices of each case; what is there from an earlier start is kept.

    >>> stored = store_slices(cases, preprocessing, "out/slices", {"liver": 1, "spleen": 4})  # doctest: +SKIP
    >>> stored[0].load("label").shape, stored[0].load("pixels")[:, 1]  # doctest: +SKIP

    Args:
        cases: data-list entries with ``case``, ``image`` and ``mask``, and where known ``patient`` and ``modality``.
        transform: loads and maps a case to the input frame: image [C, H, W, D] in [0, 255], mask [1, H, W, D].
        folder: where the arrays go.
        labels: name -> value of the structures, in the order of the classes 1, 2, ...
        mask: entry of the case that tells the classes, ``label`` or ``scribble``.
        ignore: value in the mask of pixels whose class is not known.
        known: further values that the mask may hold: these are background. None: any may, and all are background.
        further: masks that a case may have besides -> transforms that load these alone, on the same grid.
        every_slice: keep the slices without a structure too.
        settings: text that stands for those of the transforms. Other settings, labels, entries of a case, contents of
            its files or another source of this package make new files.
        dataset: of the cases.

    Raises:
        UserError: there is no case, or a mask holds a value that it may not.
    """
    if not cases:
        raise UserError("there is no case to train on: check --datalist, --split and --fold.")
    options = [list(labels.items()), mask, ignore, None if known is None else list(known), every_slice, settings]
    stored = []
    for case in tqdm(cases, desc="cutting slices", disable=None):
        key = content_key([case_contents(case), *options, source_sha256()])
        found = StoredCase(
            case=str(case["case"]),
            patient=str(case.get("patient") or case["case"]),
            dataset=dataset,
            modality=str(case.get("modality") or ""),
            classes=tuple(labels),
            stem=str(Path(folder) / f"{case['case']}_{key[:10]}"),
        )
        if not found.has("image"):
            _cut(found, case, transform, list(labels.values()), mask, ignore, known, every_slice)
        for name, load in (further or {}).items():
            if case.get(name) is not None and not found.has(name):
                whole = np.asarray(load({"case": case["case"], name: case[name]})[name])[0]
                classes = class_indices(whole, list(labels.values()), ignore)
                save_array(f"{found.stem}_{name}.npy", classes.transpose(2, 0, 1)[found.load("slices")])
        stored.append(found)
    return stored


def _cut(
    stored: StoredCase,
    case: Mapping[str, Any],
    transform: Transform,
    values: Sequence[int],
    mask: str,
    ignore: int | None,
    known: Sequence[int] | None,
    every_slice: bool,
) -> None:
    item = transform(dict(case))
    whole = np.rint(np.asarray(item[mask])[0]).astype(np.int64)
    if known is not None and (unknown := set(np.unique(whole).tolist()) - {0, ignore, *values, *known}):
        raise UserError(
            f"case {stored.case}: the {mask} {case[mask]} holds the value {min(unknown)}, which is neither a label of "
            "the data list nor its 'ignore' value; correct one or the other."
        )
    classes = class_indices(whole, values, ignore).transpose(2, 0, 1)
    pixels = count_pixels(classes, len(values))
    kept = np.arange(len(classes)) if every_slice else np.flatnonzero(pixels[:, 1:].any(axis=1))
    affine = getattr(item["image"], "affine", np.eye(4))
    for what, array in (("affine", np.asarray(affine, np.float64)), ("slices", kept), ("pixels", pixels[kept])):
        save_array(f"{stored.stem}_{what}.npy", array)
    save_array(f"{stored.stem}_{mask}.npy", classes[kept])
    # The image comes last: a case that has one is whole.
    save_array(f"{stored.stem}_image.npy", to_planes(np.asarray(item["image"]))[kept])


def class_indices(whole: np.ndarray, values: Sequence[int], ignore: int | None = None) -> np.ndarray:
    """Return the places of ``values``, from 1, in a mask; :data:`IGNORE` for ``ignore``, 0 for the rest. As uint8."""
    classes = np.zeros(whole.shape, np.uint8)
    if ignore is not None:
        classes[whole == ignore] = IGNORE
    for index, value in enumerate(values, start=1):
        classes[whole == value] = index
    return classes


def count_pixels(classes: np.ndarray, count: int) -> np.ndarray:
    """Return how many pixels [n, count + 1] each of the classes 0 to ``count`` has on slices [n, H, W]."""
    return np.stack([(classes == index).sum((1, 2)) for index in range(count + 1)], axis=1).astype(np.int64)


def to_planes(image: np.ndarray) -> np.ndarray:
    """Return [C, H, W, D] in [0, 255] as slices [D, C, H, W] uint8."""
    return image.round().clip(0, 255).astype(np.uint8).transpose(3, 0, 1, 2)


def grey_planes(planes: np.ndarray) -> np.ndarray:
    """Return slices [n, C, H, W] uint8 with their channels averaged, [n, H, W] uint8."""
    if planes.shape[1] == 1:
        return planes[:, 0]
    return planes.mean(axis=1).round().astype(np.uint8)


def store_drawn(
    draw: Callable[[np.random.Generator, int, str], tuple[np.ndarray, np.ndarray]],
    folder: str | os.PathLike,
    size: int,
    count: int,
    kinds: Sequence[str] = ("mr", "rgb"),
    seed: int = 0,
) -> list[StoredCase]:
    """Draw ``count`` phantom slices of each kind and store them as :func:`store_slices` does."""
    stored = []
    for kind in kinds:
        name = f"phantom_{kind}_{size}_{count}_{seed}"
        case = _without_names(name, Path(folder) / f"{name}_{source_sha256()[:10]}", kind.upper())
        if not case.has("image"):
            rng = np.random.default_rng([seed, len(kind)])
            drawn = [draw(rng, size, kind) for _ in tqdm(range(count), desc=f"drawing {kind}", disable=None)]
            _save_pair(case, np.stack([image for image, _ in drawn]).round(), np.stack([label for _, label in drawn]))
        stored.append(case)
    return stored


def store_regions(
    cases: Sequence[StoredCase],
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    folder: str | os.PathLike,
    variants: int,
    seed: int = 0,
) -> list[StoredCase]:
    """Cut the slices of ``cases`` anew into ``variants`` sets of regions each.

    The labels of the slices are not read. Slices in which ``draw`` (:func:`monai_ext.data.regions.draw_regions`) finds
    no region are left out.
    """
    found = []
    for number, source in enumerate(tqdm(cases, desc="cutting regions", disable=None)):
        name = f"{Path(source.stem).name}_regions_{variants}_{seed}_{number}"
        case = _without_names(source.case, Path(folder) / name, source.modality, source.patient)
        if not case.has("image"):
            rng = np.random.default_rng([seed, number])
            images = np.repeat(source.load("image"), variants, axis=0)
            labels = np.stack([draw(image, rng) for image in images])
            kept = labels.any((1, 2))
            _save_pair(case, images[kept], labels[kept])
        found.append(case)
    return found


def _without_names(name: str, stem: Path, modality: str, patient: str | None = None) -> StoredCase:
    return StoredCase(name, patient or name, "", modality, (), str(stem))


def _save_pair(case: StoredCase, images: np.ndarray, labels: np.ndarray) -> None:
    save_array(f"{case.stem}_label.npy", labels.astype(np.uint8))
    save_array(f"{case.stem}_image.npy", images.astype(np.uint8))


def save_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an array whole or not at all."""
    with atomic_path(path) as temporary:
        np.save(temporary, np.ascontiguousarray(array))
