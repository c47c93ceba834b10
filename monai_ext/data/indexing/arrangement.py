"""Which file is whose label map, in folders that people arranged: by name, or as the only two of a folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES, is_frame
from monai_ext.data.indexing.index import label_values, stem
from monai_ext.data.indexing.parts import Parts, add_part, structure_called
from monai_ext.data.indexing.visits import names_a_visit, words
from monai_ext.errors import UserError

SUFFIXES = VOLUME_SUFFIXES + FRAME_SUFFIXES
IMAGE_FOLDERS = ("images", "image", "imagesTr", "img", "imgs")
LABEL_FOLDERS = (
    "labels",
    "label",
    "labelsTr",
    "masks",
    "mask",
    "annotations",
    "segmentations",
    "segmentation",
    "seg",
    "gt",
)
SCRIBBLE_FOLDERS = ("scribbles", "scribble")
IMAGE_WORDS = ("image", "img")
LABEL_WORDS = (
    *("label", "labels", "labelmap", "mask", "masks", "seg", "segmentation", "segmentations", "gt", "manual"),
    *("annotation", "annotations", "contour", "contours", "roi"),
)
SCRIBBLE_WORDS = ("scribble", "scribbles")
NOT_IN_FRONT = ("manual", "contour", "contours", "roi")  # "roi_ct" is an image, "ct_roi" is not

_ROLES = {
    **dict.fromkeys((name.lower() for name in IMAGE_FOLDERS), "image"),
    **dict.fromkeys((name.lower() for name in LABEL_FOLDERS), "label"),
    **dict.fromkeys((name.lower() for name in SCRIBBLE_FOLDERS), "scribble"),
}


@dataclass
class Found:
    """Images, label maps and scribbles, those that belong together under one name.

    Args:
        images: by name, the path below the root without suffix and ending, or the folder of a folder's only image.
        labels: likewise.
        scribbles: likewise.
        folders: the folder of each name that is the only one in it, such as ``patient/visit``.
        skipped: what was left out, and why.
        parts: of label maps that are no files: masks of one structure each, which are to be joined.
    """

    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    scribbles: dict[str, Path] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    parts: dict[str, Parts] = field(default_factory=dict)


@dataclass
class _Folder:
    """The files of a folder by what they are, each by the part of its name that image and label map share."""

    name: str
    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    scribbles: dict[str, Path] = field(default_factory=dict)
    calls_images: bool = False
    """Whether the images call themselves so (NAME_image); then nothing else is one."""


def arrange(
    paths: Sequence[Path],
    root: Path,
    structures: Collection[str] = (),
    image_pattern: re.Pattern[str] | None = None,
    label_pattern: re.Pattern[str] | None = None,
) -> Found:
    """Sort files into images and label maps, folder by folder.

    ``NAME_image`` or ``NAME`` belongs to ``NAME_label`` (or ``_mask``, ``_seg``, ...) beside it. Where no names agree,
    a folder's only image belongs to its only label map: ``p1/week 0/cine.nii.gz`` and ``p1/week 0/mask.nii.gz``. Files
    in ``images/`` and ``labels/`` count as files of the folder above. Images without a label map are kept. Where
    several structures are named, files that are called as one of them are its masks, see
    :mod:`monai_ext.data.indexing.parts`.

    Args:
        paths: below the root.
        root: of the names.
        structures: a file that is called as one of them is a label map.
        image_pattern: images without it in their path are passed over.
        label_pattern: label maps likewise; what it finds is a label map if it finds nothing called so.

    Raises:
        UserError: images or label maps of a folder that cannot be told apart; the sentence names the option.
    """
    gathered = _gather_parts(paths, root, structures, label_pattern)
    parts = gathered.parts
    roles = _roles(gathered.left, root, {name.lower() for name in structures}, label_pattern, parts)
    folders: dict[str, _Folder] = {}
    for path, role in roles.items():
        below = path.relative_to(root)
        if role != "image" or image_pattern is None or image_pattern.search(below.as_posix()):
            _add(folders.setdefault(_home(below), _Folder(_home(below))), path, role)
    found = Found(parts={str(path): of_image for path, of_image in parts.items()}, skipped=gathered.skipped)
    kinds = {is_frame(path) for folder in folders.values() for path in folder.labels.values()}
    if not kinds:  # nothing is annotated
        return found
    for held in folders.values():
        _leave_other_kinds(held, kinds, found)
    named = {name for name, folder in folders.items() if folder.labels or folder.calls_images}
    for name in sorted(named):
        _pair(folders[name], found)
    calls_images = any(folder.calls_images for folder in folders.values())
    for name in sorted(folders.keys() - named):
        _take_unlabelled(folders[name], found, calls_images)
    if all(name and len(folder.images) == 1 for name, folder in folders.items() if folder.images):
        of = {path: name for name, folder in folders.items() for path in folder.images.values()}
        found.folders |= {name: of[path] for name, path in found.images.items()}
    return found


# What a file is


def _roles(
    paths: Sequence[Path],
    root: Path,
    structures: set[str],
    label_pattern: re.Pattern[str] | None,
    joined: Collection[Path],
) -> dict[Path, str]:
    roles = {path: _role(path.relative_to(root), structures) for path in paths}
    if label_pattern is None:
        return roles
    chosen = [path for path in paths if path in joined or label_pattern.search(path.relative_to(root).as_posix())]
    called = [path for path in chosen if roles[path] == "label"]
    roles = {path: role for path, role in roles.items() if role != "label" or path in called}
    return roles if called else roles | dict.fromkeys(chosen, "label")


def _role(path: Path, structures: set[str]) -> str:
    """Return what a file is, by the nearest folder that says so or by its own name."""
    if (of_folder := _role_of_folder(path)) is not None:
        return of_folder
    said = words(stem(path))
    if said and said[-1] in IMAGE_WORDS:
        return "image"
    if said and said[-1] in SCRIBBLE_WORDS:
        return "scribble"
    is_label = bool(said) and (said[-1] in LABEL_WORDS or (said[0] in LABEL_WORDS and said[0] not in NOT_IN_FRONT))
    return "label" if is_label or stem(path).lower() in structures else "image"


@dataclass
class _Gathered:
    """Masks of one structure each.

    Args:
        left: the other files, and a path for each label map that masks make, where there is no file.
        parts: the masks of each such path.
        skipped: masks of other structures, which are left out.
    """

    left: list[Path]
    parts: dict[Path, Parts] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def _gather_parts(
    paths: Sequence[Path], root: Path, structures: Collection[str], label_pattern: re.Pattern[str] | None
) -> _Gathered:
    """Replace masks of one structure each by the label map that they make.

    ``segmentations/liver`` and ``liver`` belong to the image of the folder, ``ct_liver`` to ``ct``. A folder that holds
    nothing but such masks counts as one of label maps (``p1/ct``, ``p1/organs/liver``), unless it is called as a visit.
    """
    if len(structures) < 2:
        return _Gathered(list(paths))
    called: dict[Path, tuple[str, str]] = {}
    for path in sorted(paths):
        said = structure_called(stem(path), structures, LABEL_WORDS)
        if said is not None and _role_of_folder(path.relative_to(root)) in ("label", None):
            called[path] = said
    homes = {path: _home(path.relative_to(root)) for path in paths}
    images: dict[str, dict[str, str]] = {}
    for path in paths:
        if path not in called and _role(path.relative_to(root), set()) == "image":
            images.setdefault(homes[path], {}).setdefault(_shared(stem(path)).lower(), _shared(stem(path)))
    with_others = {home for path, home in homes.items() if path not in called}
    of_images: dict[tuple[str, str], Parts] = {}
    taken: set[Path] = set()
    for path, (image, structure) in called.items():
        home, (above, _, folder) = homes[path], homes[path].rpartition("/")
        if home not in with_others and not names_a_visit(folder):
            home = above
        theirs = images.get(home, {})
        name = image.lower()
        if not name and len(theirs) == 1 and any((home, only) in of_images for only in theirs):
            (name,) = theirs
        if name and name not in theirs:
            continue
        taken.add(path)
        if label_pattern is None or label_pattern.search(path.relative_to(root).as_posix()):
            if name and len(theirs) == 1 and (home, "") in of_images:
                of_images[home, name] = of_images.pop((home, ""))
            add_part(of_images.setdefault((home, name), {}), structure, path)
    found = _Gathered([path for path in paths if path not in taken])
    for (home, name), of_image in of_images.items():
        shared = images.get(home, {}).get(name, "")
        suffix = ".png" if is_frame(next(iter(of_image.values()))) else ".nii.gz"
        found.parts[root / home / ((f"{shared}_label" if shared else "label") + suffix)] = of_image
    _leave_other_structures(found, root, of_images, images, label_pattern)
    found.left += found.parts
    return found


def _leave_other_structures(
    found: _Gathered,
    root: Path,
    of_images: Mapping[tuple[str, str], Parts],
    images: Mapping[str, Mapping[str, str]],
    label_pattern: re.Pattern[str] | None,
) -> None:
    """Leave out masks that are called as none of the structures, beside those that are.

    Raises:
        UserError: a label map stands beside masks of the same image.
    """
    for path in list(found.left):
        below = path.relative_to(root)
        home, shared, role = _home(below), _shared(stem(path)).lower(), _role(below, set())
        beside = {name: of_image for (of_home, name), of_image in of_images.items() if of_home == home}
        theirs = images.get(home, {})
        if not shared and len(theirs) == 1 and (only := next(iter(theirs))) in beside:
            beside[""] = beside[only]
        is_chosen = label_pattern is None or label_pattern.search(below.as_posix()) is not None
        why = None
        if role == "label" and is_chosen and shared in beside:
            listed = ", ".join(part.name for part in beside[shared].values())
            raise UserError(
                f"{path}: of the same image as masks of one structure each ({listed}); choose with --label_pattern"
            )
        if role == "label" and is_chosen and beside and _role_of_folder(below) == "label" and shared not in theirs:
            why = "called as no structure of --labels, where others are"
        elif role == "image" and _stands_among(shared, beside, theirs) and _holds_a_mask(path):
            why = "a mask (it holds two values at most), called as no structure of --labels, where others are"
        if why is not None:
            found.left.remove(path)
            found.skipped.append((str(path), why))


def _stands_among(name: str, beside: Collection[str], images: Collection[str]) -> bool:
    """Whether a file that is called as an image may be a mask of it: ``ct_aorta`` or ``aorta`` beside ``ct_liver``."""
    if name in beside:
        return False
    return ("" in beside and len(images) > 1) or any(
        image and re.match(re.escape(image) + "[ ._-]", name) for image in beside
    )


def _holds_a_mask(path: Path) -> bool:
    try:
        return len(label_values(path) | {0}) <= 2
    except UserError:  # other values than whole numbers
        return False


def _role_of_folder(path: Path) -> str | None:
    return next((_ROLES[part.lower()] for part in reversed(path.parts[:-1]) if part.lower() in _ROLES), None)


def _home(path: Path) -> str:
    """Return the folder whose file it is: ``p1/labels/v1.nii`` is one of ``p1``."""
    parts = list(path.parts[:-1])
    role = next((number for number in reversed(range(len(parts))) if parts[number].lower() in _ROLES), None)
    return "/".join(part for number, part in enumerate(parts) if number != role)


def _add(folder: _Folder, path: Path, role: str) -> None:
    if role == "image":
        calls_itself = words(stem(path))[-1:] in [[word] for word in IMAGE_WORDS]
        if calls_itself and not folder.calls_images:
            folder.calls_images, folder.images = True, {}
        elif folder.calls_images and not calls_itself:
            return
    held = {"image": folder.images, "label": folder.labels, "scribble": folder.scribbles}[role]
    shared = _shared(stem(path))
    if held.setdefault(shared, path) is not path:
        what = "the same name as" if role == "image" else "of the same image as"
        raise UserError(f"{path}: {what} {held[shared]}; choose with --{role}_pattern, or remove one")


def _shared(name: str) -> str:
    """Return the part of a name that image and label map share: "p1" of "p1_image" and "p1_mask", "7" of "mask7"."""
    for endings in ((*LABEL_WORDS, *SCRIBBLE_WORDS), IMAGE_WORDS):
        options = "|".join(sorted(endings, key=len, reverse=True))
        if re.fullmatch(options, name, re.IGNORECASE):
            return ""
        bare = re.sub(rf"[ ._-](?:{options})$", "", name, flags=re.IGNORECASE)
        if bare == name:
            bare = re.sub(rf"^(?:{options})(?:[ ._-]|(?=[0-9]))", "", name, flags=re.IGNORECASE)
        name = bare
    return name


def _leave_other_kinds(folder: _Folder, kinds: set[bool], found: Found) -> None:
    """Leave out pictures where label maps are volumes (screenshots, previews), and volumes where they are pictures."""
    if folder.calls_images:
        return
    kinds = {is_frame(path) for path in folder.labels.values()} or kinds
    if len(kinds) > 1 and not all(is_frame(path) for path in folder.images.values()):
        kinds = {False}
    for name, path in list(folder.images.items()):
        if is_frame(path) not in kinds:
            del folder.images[name]
            kind, others = ("picture", "volumes") if is_frame(path) else ("volume", "pictures")
            found.skipped.append((str(path), f"a {kind}, where label maps are {others}"))


# What belongs together


def _pair(folder: _Folder, found: Found) -> None:
    """Take over a folder that has label maps, or images that call themselves so."""
    by_name = {name: _owner(name, folder) for name in folder.labels}
    if folder.images and folder.labels and not any(by_name.values()):
        _refuse_several(folder, folder.images, "images", "image")
        _refuse_several(folder, folder.labels, "label maps", "label")
        by_name = dict.fromkeys(folder.labels, next(iter(folder.images.values())))
        only = folder.name or _case(folder, next(iter(folder.images.values())))
        found.folders |= {only: folder.name} if folder.name else {}
    else:
        only = None
    for path in folder.images.values():
        found.images[only or _case(folder, path)] = path
    if folder.name in found.images:  # by a file called "image"
        found.folders[folder.name] = folder.name
    for held, own in ((found.labels, folder.labels), (found.scribbles, folder.scribbles)):
        for name, path in own.items():
            owner = only or _case(folder, _owner(name, folder) or path)
            if held.setdefault(owner, path) is not path:
                raise UserError(
                    f"{path}: of the same image as {held[owner]}; choose with --label_pattern, or remove one"
                )


def _owner(name: str, folder: _Folder) -> Path | None:
    """Return the image of a label map: the one of this name, else the only one whose name it begins with."""
    if name in folder.images:
        return folder.images[name]
    begun = [path for image, path in folder.images.items() if image and re.match(re.escape(image) + "[ ._-]", name)]
    return begun[0] if len(begun) == 1 else None


def _case(folder: _Folder, path: Path) -> str:
    """Return the name of a case: the path without suffix and "_image", or the folder of a file called "image"."""
    name = stem(path)
    bare = (
        ""
        if name.lower() in IMAGE_WORDS
        else re.sub(rf"[ ._-](?:{'|'.join(IMAGE_WORDS)})$", "", name, flags=re.IGNORECASE)
    )
    return "/".join(part for part in (folder.name, bare) if part) or name


def _take_unlabelled(folder: _Folder, found: Found, calls_images: bool) -> None:
    """Take over a folder without label maps: visits that are to be served."""
    if calls_images or any(folder.name.startswith(f"{other}/") for other in found.folders.values()):
        reason = "not called NAME_image, as others are" if calls_images else "in a folder below another image's"
        found.skipped += [(str(path), reason) for path in folder.images.values()]
    elif found.folders and folder.name and folder.images:
        _refuse_several(folder, folder.images, "images", "image")
        found.images[folder.name] = next(iter(folder.images.values()))
        found.folders[folder.name] = folder.name
    else:
        found.images |= {_case(folder, path): path for path in folder.images.values()}


def _refuse_several(folder: _Folder, held: dict[str, Path], what: str, option: str) -> None:
    if len(held) > 1:
        listed = ", ".join(path.name for path in held.values())
        where = next(iter(held.values())).parent
        joins = "; masks of one structure each are joined if --labels names the structures" if option == "label" else ""
        raise UserError(f"{where}: holds several {what} ({listed}); choose one with --{option}_pattern{joins}")
