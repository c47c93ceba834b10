"""Natural images with one map of classes each: Pascal-5i (PASCAL VOC 2012 with SBD's masks) and COCO-20i (COCO 2014).

The folds are of classes (:mod:`monai_ext.data.class_folds`), so cases have a split alone.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from monai_ext.data.cards import Card
from monai_ext.data.folders import files_below, natural
from monai_ext.data.images import FRAME_SUFFIXES
from monai_ext.data.indexing.index import CaseEntry, Index, Options, nothing_found, start_list, stem
from monai_ext.data.text import read_text
from monai_ext.errors import UserError

MASKS = ("SegmentationClassAug", "SegmentationClass")
"""Folders of class maps of PASCAL VOC, the first that is there; the former has those of SBD, too."""

COCO_SPLITS = {"train2014": "train", "val2014": "val"}


def index_pascal_5i(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index ``VOC2012/``: ``JPEGImages``, class maps, and the names of the validation images.

    Images whose name stands in ``ImageSets/Segmentation/val.txt`` are of the split ``val``, all others ``train``.

    Raises:
        UserError: there are no such folders, or the list of validation images is missing.
    """
    home = _home(root, "JPEGImages", card)
    folder = next((home / name for name in MASKS if (home / name).is_dir()), None)
    names = home / "ImageSets" / "Segmentation" / "val.txt"
    if folder is None or not names.is_file():
        missing = " or ".join(MASKS) if folder is None else "ImageSets/Segmentation/val.txt"
        raise UserError(f"{home}: {missing} is missing; unpack all of VOC2012, see pascal_5i --card")
    tested = {line.strip() for line in read_text(names).splitlines() if line.strip()}
    index = Index(start_list(card, ignore=True))
    images = _pictures(home / "JPEGImages")
    masks = _pictures(folder)
    for name in tqdm(sorted(masks, key=natural), desc="listing images", unit="image"):
        _add(index, f"voc_{name}", images.get(name), masks[name], "val" if name in tested else "train")
    if folder.name != MASKS[0]:
        index.notes.append(
            f"{folder.name}: the official masks alone, {len(masks)} of them; published results train on "
            f"{MASKS[0]} (10,582 images)"
        )
    return index


def index_coco_20i(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index COCO 2014: ``train2014/``, ``val2014/`` and ``annotations/train2014/``, ``annotations/val2014/``.

    Masks are pictures of class numbers 1 to 80, in the order of the card, as HSNet and VRP-SAM use them. COCO itself
    has outlines (``instances_*.json``), of which these are drawn.

    Raises:
        UserError: there are no such folders, or no masks as pictures.
    """
    home = _home(root, "val2014", card)
    index = Index(start_list(card))
    for name, split in COCO_SPLITS.items():
        masks = _pictures(home / "annotations" / name)
        images = _pictures(home / name)
        for mask in tqdm(sorted(masks, key=natural), desc=f"listing {name}", unit="image"):
            _add(index, mask, images.get(mask), masks[mask], split)
    if not index.datalist["cases"]:
        raise UserError(
            f"{home / 'annotations'}: there are no masks as pictures in train2014/ and val2014/; COCO's own outlines "
            "are not read, see coco_20i --card"
        )
    return index


def _home(root: Path, part: str, card: Card) -> Path:
    """Return the folder that holds ``part``: the root, or the first below it."""
    found = [root] if (root / part).is_dir() else sorted(p.parent for p in root.glob(f"*/{part}") if p.is_dir())
    found += [] if found else sorted(p.parent for p in root.glob(f"*/*/{part}") if p.is_dir())
    if not found:
        raise nothing_found(root, card)
    return found[0]


def _pictures(folder: Path) -> dict[str, Path]:
    return {stem(path): path for path in files_below(folder, FRAME_SUFFIXES)} if folder.is_dir() else {}


def _add(index: Index, case: str, image: Path | None, mask: Path, split: str) -> None:
    if image is None:
        index.skipped.append((str(mask), "there is no image of this name"))
        return
    entry: CaseEntry = {"case": case, "image": str(image), "label": str(mask), "split": split}
    index.datalist["cases"].append(entry)
