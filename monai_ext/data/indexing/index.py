"""What all indexers share: their options, what they return, and the checks that every case goes through.

An indexer knows the layout of one download and nothing else. It returns candidates with absolute paths;
:func:`check_cases` opens them, whatever data set they are of, and sorts out what does not fit.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from tqdm import tqdm

from monai_ext.data.cards import Card
from monai_ext.data.checks import check_affine, check_same_grid
from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES, Geometry, read_geometry, read_label, write_mask
from monai_ext.data.manifest import parse_visit
from monai_ext.errors import UserError

CaseEntry: TypeAlias = dict[str, Any]

SAME_VOXEL = 0.1  # of a voxel


@dataclass(frozen=True)
class Options:
    """What the command line says besides the data set and its root.

    Args:
        labels: value of each structure; None leaves it to the card, or to what the label maps hold.
        ignore: value in label maps and scribbles that is neither structure nor background (folder, bids).
        modality: overrides the card's.
        patient_pattern: finds the groups ``patient`` and ``visit`` in a case's name (folder).
        image_pattern: images whose name it does not find are passed over (folder, bids; in
            dicom it looks into the SeriesDescription).
        label_pattern: the same for label maps.
        sessions: all sessions in their order (bids; None: see :mod:`monai_ext.data.indexing.sessions`).
        threshold: grey value from which on a mask's pixel belongs to the structure (folder; pictures have 128).
        roi: find the ROIs or segments by their names, each REGEX or NAME=REGEX (DICOM).
        gates: breathing phases to take (4D-Lung).
        copy_geometry: where a label map has the image's shape but another affine, write it with the image's.
        headers_only: do not read the label maps: faster, but values go unchecked and uncounted.
    """

    labels: dict[str, int] | None = None
    ignore: int | None = None
    modality: str | None = None
    patient_pattern: re.Pattern[str] | None = None
    image_pattern: re.Pattern[str] | None = None
    label_pattern: re.Pattern[str] | None = None
    sessions: tuple[str, ...] | None = None
    threshold: int | None = None
    roi: tuple[str, ...] | None = None
    gates: tuple[int, ...] | None = None
    copy_geometry: bool = False
    headers_only: bool = False


@dataclass
class Index:
    """What an indexer found.

    Args:
        datalist: ``dataset``, ``modality``, ``labels``, perhaps ``ignore``, and ``cases``; files as absolute paths.
        skipped: what was left out, and why.
        notes: sentences that the user should read.
    """

    datalist: dict[str, Any]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def stem(path: Path) -> str:
    """Return a file's name without the suffix of a volume or picture: "a.b.nii.gz" gives "a.b"."""
    suffixes = sorted((*VOLUME_SUFFIXES, *FRAME_SUFFIXES), key=len, reverse=True)
    suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)]


def last_number(text: str) -> int | None:
    """Return the last number in a name: "patient012_C0" gives 0, "img0007" gives 7."""
    numbers = re.findall(r"[0-9]+", text)
    return int(numbers[-1]) if numbers else None


def by_name(paths: Iterable[Path], pattern: str, skipped: list[tuple[str, str]] | None = None) -> dict[str, Path]:
    """Return the first file of each name that a pattern matches whole; suffixes do not count.

    Args:
        paths: files.
        pattern: regular expression for the name without suffix, whose first group (or all of it) is the key.
        skipped: takes the further files of a name, and why.
    """
    found: dict[str, Path] = {}
    for path in paths:
        match = re.fullmatch(pattern, stem(path))
        if match is None:
            continue
        first = found.setdefault(match[1] if match.re.groups else match[0], path)
        if first is not path and skipped is not None:
            skipped.append((str(path), f"the same name as {first}, which is taken"))
    return found


def nothing_found(root: Path, card: Card) -> UserError:
    """Return the error for a folder that does not look like the download."""
    expected = next(iter(card.layout.values()))[0]
    return UserError(
        f"{root}: nothing there looks like {card.title} (expected such as {expected}); "
        f"give the folder of the download, or see {card.name} --card"
    )


def start_list(card: Card, *, ignore: bool = False) -> dict[str, Any]:
    """Return the head of a data list, still without cases."""
    head: dict[str, Any] = {"dataset": card.dataset, "licence": card.licence, "modality": card.modality}
    head["labels"] = dict(card.labels)
    if ignore and card.ignore is not None:
        head["ignore"] = card.ignore
    return {**head, "cases": []}


def parse_visit_or_date(text: str) -> int | float | str | None:
    """Read a visit from a part of a name: ``03``, ``2023-04-15`` or ``20230415``; None if it is none of these."""
    compact = re.fullmatch(r"((?:19|20)[0-9]{2})([01][0-9])([0-3][0-9])", text)
    try:
        visit = parse_visit("-".join(compact.groups()) if compact else text)
    except ValueError:
        return None
    return visit if isinstance(visit, int | float) else visit.isoformat()


# Checks


@dataclass
class Counts:
    """How many cases, patients, labels, and label maps in which each structure stands."""

    cases: int = 0
    patients: int = 0
    labelled: int = 0
    scribbled: int = 0
    groups: dict[str, Counter[str]] = field(default_factory=dict)
    present: Counter[str] | None = None


def check_cases(index: Index, files: Path, options: Options) -> Counts:
    """Open every candidate and move those that do not fit from ``cases`` to ``skipped``.

    Checked are the names (unique), the images (one case each, whatever links lead to it) and their headers, that label
    map and scribble lie on the image's grid, and (not with ``headers_only``) that they hold known values.

    Args:
        index: changed in place.
        files: folder for label maps that are rewritten with the image's geometry.
        options: of the command line.

    Returns:
        The numbers to report.
    """
    labels, ignore = index.datalist["labels"], index.datalist.get("ignore")
    known = {0, *labels.values(), *([] if ignore is None else [ignore])}
    names = Counter(entry["case"] for entry in index.datalist["cases"])
    linked = _linked_twice(index.datalist["cases"])
    present: Counter[int] = Counter()
    sound: list[CaseEntry] = []
    rewritten = 0
    for entry in tqdm(index.datalist["cases"], desc="checking cases", unit="case"):
        if names[entry["case"]] > 1:
            index.skipped.append((entry["image"], f"{names[entry['case']]} cases have the name {entry['case']!r}"))
            continue
        if entry["image"] in linked:
            index.skipped.append((entry["image"], f"a link to the image of the case {linked[entry['image']]!r}"))
            continue
        try:
            rewritten += _check_grids(entry, files, options)
            values = set() if options.headers_only else _check_values(entry, known)
        except UserError as error:
            index.skipped.append((entry["case"], str(error)))
            continue
        present.update(values)
        sound.append(entry)
    if rewritten:
        index.notes.append(f"{rewritten} label maps were rewritten with their image's geometry, voxel by voxel")
    index.datalist["cases"] = sound
    by_name = None if options.headers_only else Counter({name: present[value] for name, value in labels.items()})
    return _count(sound, by_name)


def _linked_twice(cases: list[CaseEntry]) -> dict[str, str]:
    """Return the images that are, by links, those of another case, with its name; the file itself goes before links."""
    by_file: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for entry in cases:
        by_file[os.path.realpath(entry["image"])].setdefault(entry["image"], entry["case"])
    linked: dict[str, str] = {}
    for real, paths in by_file.items():
        kept = next((path for path in paths if os.path.abspath(path) == real), next(iter(paths)))
        linked |= {path: paths[kept] for path in paths if path != kept}
    return linked


def _check_grids(entry: CaseEntry, files: Path, options: Options) -> int:
    """Compare the headers of a case; return how many label maps were rewritten."""
    image = read_geometry(entry["image"])
    check_affine(entry["image"], image)
    rewritten = 0
    for key in ("label", "scribble"):
        if entry.get(key) is None:
            continue
        geometry = read_geometry(entry[key])
        try:
            check_same_grid(entry["image"], image, entry[key], geometry)
        except UserError as error:
            if geometry.shape != image.shape or geometry.is_frame != image.is_frame:
                raise
            if lies_mirrored(image, geometry):
                where = (
                    f"{entry[key]}: lies on the very voxels of {entry['image']}, its axes stored in other directions"
                )
                raise UserError(f"{where}; resample it to the image, which loses nothing") from error
            if not options.copy_geometry:
                sentence = f"{error}, or, where the voxels line up, add --copy_geometry"
                raise UserError(sentence) from error
            copy = files / f"{entry['case']}_{key}.nii.gz"
            write_mask(copy, read_label(entry[key]), entry["image"])
            entry[key] = str(copy)
            rewritten += 1
    return rewritten


def lies_mirrored(image: Geometry, label: Geometry) -> bool:
    """Tell whether two volumes of one shape share all voxel centres, but in another order.

    The values of such a label map do not line up with the image's, whatever its affine is replaced by.
    """
    if image.affine is None or label.affine is None or len(image.shape) != 3:
        return False
    highest = np.array(image.shape) - 1
    corners = np.indices((2, 2, 2)).reshape(3, -1) * highest[:, None]
    change = np.linalg.inv(image.affine) @ label.affine
    places = change[:3, :3] @ corners + change[:3, 3:]
    on_corners = np.minimum(np.abs(places), np.abs(places - highest[:, None])).max() < SAME_VOXEL
    return bool(on_corners and np.abs(places - corners).max() > SAME_VOXEL)


def _check_values(entry: CaseEntry, known: set[int]) -> set[int]:
    """Return the values in the case's label map, after a look at its scribble."""
    for key in ("scribble", "label"):
        if entry.get(key) is None:
            continue
        values = label_values(entry[key])
        if unknown := sorted(values - known):
            listed = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            raise UserError(
                f"{entry[key]}: the {key} holds the value {listed}, which neither 'labels' nor 'ignore' names"
            )
    return values if entry.get("label") is not None else set()


def label_values(path: str | Path) -> set[int]:
    """Return the different values of a label map.

    Raises:
        UserError: it cannot be read or holds something else than whole numbers.
    """
    label = read_label(path).ravel(order="K")
    if label.min() >= 0 and label.max() < 2**16:
        return set(np.flatnonzero(np.bincount(label)).tolist())  # several times faster than a sort
    return set(np.unique(label).tolist())


def _count(cases: list[CaseEntry], present: Counter[str] | None) -> Counts:
    counts = Counts(
        cases=len(cases),
        patients=len({entry["patient"] for entry in cases if entry.get("patient") is not None}),
        labelled=sum(entry.get("label") is not None for entry in cases),
        scribbled=sum(entry.get("scribble") is not None for entry in cases),
        present=present,
    )
    for key in ("split", "fold"):
        groups = Counter(str(entry[key]) for entry in cases if entry.get(key) is not None)
        if groups:
            counts.groups[key] = groups
    return counts
