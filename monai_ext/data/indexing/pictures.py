"""Sets of pictures: polyps (CVC-ClinicDB, Kvasir-SEG, ColonDB, ETIS, CVC-300), PerSeg, BUSI and GlaS.

A mask that is already a lossless picture of 0 and the label's value is listed as it is. Any other (JPEG with grey
edges, colours, instance numbers, several files of one image) is written anew as PNG beside the list: a pixel belongs
to the structure where its brightest channel reaches a threshold, in any of the files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from monai_ext.data.cards import Card, Ranges
from monai_ext.data.folders import files_below, natural
from monai_ext.data.images import FRAME_SUFFIXES, read_image
from monai_ext.data.indexing.index import (
    CaseEntry,
    Index,
    Options,
    by_name,
    label_values,
    last_number,
    nothing_found,
    start_list,
    stem,
)
from monai_ext.data.text import read_table
from monai_ext.errors import UserError
from monai_ext.files import atomic_path

MIDDLE = 128  # a grey value from here on is white
ANYTHING = 1  # instance numbers and dark colours: all but black
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


def index_pairs(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index a folder of images and a folder of masks with the same names (Kvasir-SEG, ColonDB, ETIS, CVC-300).

    Raises:
        UserError: there are no images where the card expects them.
    """
    images, masks = find_pairs(root, card)
    index = Index(start_list(card))
    splits = card.assign("split", images)
    cleaner = MaskCleaner(files, _only_value(card), MIDDLE)
    for name in tqdm(sorted(images, key=natural), desc="reading masks", unit="mask"):
        entry: CaseEntry = {"case": f"{card.name}_{name}", "image": str(images[name]), "split": splits.get(name)}
        _add(index, entry, [masks[name]] if name in masks else [], cleaner)
    if card.group("split") is not None and not splits:
        index.notes.append(f"no splits: they are cut from the complete set, and {len(images)} images are here")
    if (known := card.size.get("images")) not in (None, len(images)):
        index.notes.append(
            f"{card.title} has {known} images, here are {len(images)}: a part, or another release or set"
        )
    _note(index, cleaner)
    return index


def index_cvc_clinicdb(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index CVC-ClinicDB: 29 sequences as patients, the frame's number within its sequence as visit.

    So visit 3 is P²SAM's reference in every sequence, and ``scored`` is false for the three frames before scoring.

    Raises:
        UserError: there are no images where the card expects them.
    """
    images, masks = find_pairs(root, card)
    index = Index(start_list(card))
    group = card.group("sequence")
    if not isinstance(group, Ranges):
        raise UserError(f"the card {card.name} names no sequences; restore data_manifests/{card.name}.json")
    sequences = group.assign(images)
    cleaner = MaskCleaner(files, _only_value(card), MIDDLE)
    for name in tqdm(sorted(images, key=natural), desc="reading masks", unit="mask"):
        frame = last_number(name)
        if name not in sequences or frame is None:
            index.skipped.append((str(images[name]), "its name is no frame number from 1 to 612"))
            continue
        sequence = int(sequences[name])
        visit = frame - group.ranges[str(sequence)][0] + 1
        entry: CaseEntry = {
            "case": f"CVC_ClinicDB_frame{frame:03d}",
            "patient": f"sequence{sequence:02d}",
            "visit": visit,
        }
        entry |= {"frame": frame, "scored": visit > 3, "image": str(images[name])}
        _add(index, entry, [masks[name]] if name in masks else [], cleaner)
    _note(index, cleaner)
    return index


def index_perseg(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index PerSeg: objects as patients, the number of the picture as visit (00 is the reference).

    Raises:
        UserError: there is no folder Images.
    """
    pictures = files_below(root, FRAME_SUFFIXES)
    images = {(p.parent.name, stem(p)): p for p in pictures if p.parent.parent.name == "Images"}
    masks = {(p.parent.name, stem(p)): p for p in pictures if p.parent.parent.name == "Annotations"}
    if not images:
        raise nothing_found(root, card)
    index = Index(start_list(card))
    cleaner = MaskCleaner(files, _only_value(card), ANYTHING)
    for (thing, number), image in tqdm(images.items(), desc="reading masks", unit="mask"):
        entry: CaseEntry = {"case": f"{thing}_{number}", "patient": thing, "visit": last_number(number)}
        entry |= {"scored": last_number(number) != 0, "image": str(image)}
        _add(index, entry, [masks[thing, number]] if (thing, number) in masks else [], cleaner)
    _note(index, cleaner)
    return index


def index_busi(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index BUSI: "benign (1).png" with all its masks ("benign (1)_mask.png", "..._mask_1.png"), joined.

    Raises:
        UserError: there is no such image.
    """
    skipped: list[tuple[str, str]] = []
    pictures = files_below(root, FRAME_SUFFIXES)
    images = by_name(pictures, r"((?:benign|malignant|normal) \([0-9]+\))", skipped)
    masks: defaultdict[str, list[Path]] = defaultdict(list)
    for key, path in by_name(pictures, r"((?:benign|malignant|normal) \([0-9]+\)_mask(?:_[0-9]+)?)").items():
        masks[key.partition("_")[0]].append(path)
    if not images:
        raise nothing_found(root, card)
    index = Index(start_list(card), skipped)
    cleaner = MaskCleaner(files, _only_value(card), MIDDLE)
    for name in tqdm(sorted(images, key=natural), desc="reading masks", unit="mask"):
        group, number = name.split()[0], last_number(name)
        entry: CaseEntry = {"case": f"{group}_{number:03d}", "group": group, "image": str(images[name])}
        _add(index, entry, masks[name], cleaner)
    _note(index, cleaner)
    return index


def index_glas(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index GlaS: "train_1.bmp" with "train_1_anno.bmp" (numbered glands, made binary) and ``Grade.csv``.

    Raises:
        UserError: there is no such image.
    """
    skipped: list[tuple[str, str]] = []
    pictures = files_below(root, FRAME_SUFFIXES)
    images = by_name(pictures, r"((?:train|testA|testB)_[0-9]+)", skipped)
    masks = by_name(pictures, r"((?:train|testA|testB)_[0-9]+)_anno")
    if not images:
        raise nothing_found(root, card)
    index = Index(start_list(card), skipped)
    grades = read_grades(next(iter(images.values())).parent / "Grade.csv")
    splits = card.assign("split", {name.split("_")[0] for name in images})
    cleaner = MaskCleaner(files, _only_value(card), ANYTHING)
    for name in tqdm(sorted(images, key=natural), desc="reading masks", unit="mask"):
        entry: CaseEntry = {"case": name, "image": str(images[name]), "split": splits.get(name.split("_")[0])}
        entry |= grades.get(name, {})
        _add(index, entry, [masks[name]] if name in masks else [], cleaner)
    _note(index, cleaner)
    _free_shared_patients(index)
    return index


def read_grades(path: Path) -> dict[str, dict[str, str]]:
    """Read GlaS's ``Grade.csv``: ``patient`` and ``group`` (benign, malignant) of each image; {} without the file."""
    if not path.is_file():
        return {}
    rows = [[field.strip() for field in row] for row in read_table(path, "take the one of the download")]
    return {row[0]: {"patient": row[1], "group": row[2]} for row in rows[1:] if len(row) > 2}


def _free_shared_patients(index: Index) -> None:
    """Call the patient "slide" where one stands in several splits: data lists keep a patient's cases together."""
    splits = defaultdict(set)
    for entry in index.datalist["cases"]:
        splits[entry.get("patient")].add(entry["split"])
    shared = {patient for patient, names in splits.items() if patient is not None and len(names) > 1}
    if not shared:
        return
    for entry in index.datalist["cases"]:
        entry["slide"] = entry.pop("patient", None)
    index.notes.append(
        f"{len(shared)} patients stand in several of the official splits: the patient is kept as 'slide', so that the "
        "splits can be used; test results are not those of unseen patients"
    )


# Images and masks


def find_pairs(root: Path, card: Card) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find the images and masks of a card's layout by name, in the root or in the only folder of it that has them.

    Raises:
        UserError: there are none, or several folders have them.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give the folder of the download")
    inner = sorted(folder for folder in root.iterdir() if folder.is_dir())
    for folders in (
        [root],
        inner,
        [deeper for folder in inner for deeper in sorted(folder.iterdir()) if deeper.is_dir()],
    ):
        for image, mask in zip(card.layout["image"], card.layout["label"], strict=True):
            found = [folder for folder in folders if _pictures(folder, image)]
            if len(found) > 1:
                names = ", ".join(folder.name for folder in found[:4])
                raise UserError(f"{root}: several folders could be {card.title} ({names}); give one of them")
            if found:
                return _pictures(found[0], image), _pictures(found[0], mask)
    raise nothing_found(root, card)


def _pictures(folder: Path, pattern: str) -> dict[str, Path]:
    """Return the pictures that a pattern finds by name; a letter "p" before a number (ColonDB's masks) is dropped."""
    paths = sorted(
        path for path in folder.glob(pattern) if path.suffix.lower() in FRAME_SUFFIXES and path.name[0] != "."
    )
    return {
        name[1:] if name[0] == "p" and name[1:].isdigit() else name: path for path in paths for name in (stem(path),)
    }


class MaskCleaner:
    """Makes sure that a mask is a lossless picture of 0 and one value.

    Args:
        folder: for masks that are written anew.
        value: of the structure.
        threshold: from which on the brightest channel of a pixel belongs to it.
    """

    def __init__(self, folder: Path, value: int, threshold: int) -> None:
        self.folder = folder
        self.value = value
        self.threshold = threshold
        self.written = 0

    def clean(self, paths: Sequence[Path], name: str) -> Path:
        """Return the mask itself if it is clean, or a clean one made of all masks of an image.

        Raises:
            UserError: a mask cannot be read, or they differ in size.
        """
        if len(paths) == 1 and self._is_clean(paths[0]):
            return paths[0]
        parts = [self._foreground(path) for path in paths]
        if len({part.shape for part in parts}) > 1:
            raise UserError(f"{paths[0]}: the masks of this image differ in size; download them again")
        mask = np.logical_or.reduce(parts).astype(np.uint8) * np.uint8(self.value)
        target = self.folder / f"{name}_mask.png"
        with atomic_path(target) as temporary:
            Image.fromarray(np.ascontiguousarray(mask.T)).save(temporary)
        self.written += 1
        return target

    def _is_clean(self, path: Path) -> bool:
        if path.suffix.lower() not in _LOSSLESS:
            return False
        try:
            return label_values(path) <= {0, self.value}
        except UserError:  # colours
            return False

    def _foreground(self, path: Path) -> np.ndarray:
        """Return [W, H] bool."""
        picture = read_image(path)
        return (picture if picture.ndim == 2 else picture.max(axis=-1)) >= self.threshold


def _add(index: Index, entry: CaseEntry, masks: Sequence[Path], cleaner: MaskCleaner) -> None:
    if not masks:
        index.skipped.append((entry["image"], "there is no mask of this name"))
        return
    try:
        entry["label"] = str(cleaner.clean(masks, entry["case"]))
    except UserError as error:
        index.skipped.append((entry["image"], str(error)))
        return
    index.datalist["cases"].append(entry)


def _note(index: Index, cleaner: MaskCleaner) -> None:
    if cleaner.written:
        rule = "all but black" if cleaner.threshold == ANYTHING else f"grey values from {cleaner.threshold} on"
        index.notes.append(
            f"{cleaner.written} masks were not pure black and white files of one structure and were written anew as "
            f"PNG to {cleaner.folder.name}/ ({rule} became {cleaner.value})"
        )


def _only_value(card: Card) -> int:
    return next(iter(card.labels.values()))
