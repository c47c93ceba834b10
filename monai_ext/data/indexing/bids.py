"""BIDS: anatomical images of subjects and sessions, with label maps below derivatives/.

Names follow the Brain Imaging Data Structure (https://bids-specification.readthedocs.io).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from monai_ext.data.folders import files_below, natural
from monai_ext.data.indexing.folder import name_labels
from monai_ext.data.indexing.index import CaseEntry, Index, Options, stem
from monai_ext.data.indexing.parts import PartJoiner, Parts, add_part, skip_misnamed
from monai_ext.data.indexing.sessions import is_known, order_sessions, read_table
from monai_ext.errors import UserError

LABEL_SUFFIXES = ("dseg", "mask")
NO_IMAGES = ("defacemask", "probseg")
OF_THE_LABEL = ("desc", "label", "seg", "space", "res", "den", "atlas", "from")  # say nothing of the image

_ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9]+)")


def index_bids(root: Path, files: Path, options: Options) -> Index:
    """Index ``sub-01/[ses-1/]anat/sub-01_ses-1_T1w.nii.gz`` with ``*_dseg`` or ``*_mask`` below ``derivatives/``.

    A label map serves an image if all entities that both name agree (subject, session, run ...) and it does not name
    another contrast (``space-T1w``); an image with several is left out, until ``--label_pattern`` chooses, unless they
    are masks of one structure each (``label-liver_mask``) that ``--labels`` names: these are joined. Sessions are the
    visits, in the order that :func:`~monai_ext.data.indexing.sessions.order_sessions` finds. Images without a label
    are kept.

    Raises:
        UserError: there is no image, or the labels' values cannot be told.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give the root of the BIDS data set")
    anatomical, derived = _volumes(root)
    images = [path for path in anatomical if _chosen(path, root, options.image_pattern)]
    images = sorted(
        (path for path in images if not _is_label(path) and not stem(path).endswith(NO_IMAGES)),
        key=lambda path: natural(path.name),
    )
    if not images:
        raise UserError(f"{root}: there is no sub-*/[ses-*/]anat/*.nii.gz; give the root of the BIDS data set")
    maps = [path for path in (*derived, *anatomical) if _is_label(path) and _chosen(path, root, options.label_pattern)]
    index = Index({"dataset": root.name, "modality": options.modality or "MR", "labels": {}, "cases": []})
    groups, order = _groups(root), order_sessions(root, _sessions(images), options.sessions)
    contrasts = {entities(image)["suffix"] for image in images}
    candidates, parts, unnamed = defaultdict(list), dict[str, Parts](), set[Path]()
    for path in maps:
        candidates[entities(path)["sub"]].append(path)
    for image in images:
        own = entities(image)
        entry: CaseEntry = {"case": stem(image), "patient": f"sub-{own['sub']}", "image": str(image)}
        entry |= {"visit": order.visits.get((own["sub"], own.get("ses", ""))), "group": groups.get(f"sub-{own['sub']}")}
        serving = [path for path in candidates[own["sub"]] if _serves(path, image, contrasts)]
        serving, others = _named(serving, options.labels or {})
        unnamed |= others
        of_image = _parts(serving, options.labels or {})
        if of_image is None:
            names = ", ".join(path.name for path in serving[:4])
            index.skipped.append((image.name, f"has several label maps ({names}); choose with --label_pattern"))
            continue
        if of_image:
            parts[str(image)] = of_image
        entry["label"] = str(image) if of_image else str(serving[0]) if serving else None
        index.datalist["cases"].append(entry)
    index.skipped += [(str(path), "names no structure of --labels (label-...)") for path in sorted(unnamed)]
    if options.labels is not None and len(options.labels) > 1:
        PartJoiner(files, options.labels, index, options.ignore).join_all(parts)
        if not options.headers_only:
            skip_misnamed(index, options.labels, options.ignore)
    index.notes += order.notes
    sessions = Counter((case["patient"], case["visit"]) for case in index.datalist["cases"])
    if several := sum(number > 1 for number in sessions.values()):
        index.notes.append(
            f"{several} sessions have several images, which are no visits of their own; --image_pattern takes one of "
            f"them (there are: {', '.join(sorted(contrasts))})"
        )
    name_labels(index, files, options)
    if options.modality is None:
        index.notes.append("the modality is taken to be MR; --modality says otherwise")
    return index


def entities(path: Path) -> dict[str, str]:
    """Return the entities of a name and its suffix: "sub-01_ses-2_T1w" gives sub, ses and suffix.

    Raises:
        UserError: the name has no subject.
    """
    parts = stem(path).split("_")
    found = {match[1]: match[2] for part in parts if (match := _ENTITY.fullmatch(part))}
    if "sub" not in found:
        raise UserError(f"{path}: the name has no subject (sub-...); name it as BIDS asks")
    return {**found, "suffix": parts[-1]}


def _named(maps: Sequence[Path], structures: Collection[str]) -> tuple[list[Path], set[Path]]:
    """Tell masks that name another structure (``label-aorta``) than the several ones from the other label maps."""
    if len(structures) < 2:
        return list(maps), set()
    others = {
        path
        for path in maps
        if stem(path).endswith("_mask") and "label" in entities(path) and _structure(path, structures) is None
    }
    return [path for path in maps if path not in others], others


def _parts(maps: Sequence[Path], structures: Collection[str]) -> Parts | None:
    """Return the masks of an image by the structure that each names, {} of a label map, None where it is not clear."""
    found: Parts = {}
    named = [_structure(path, structures) for path in maps] if len(structures) > 1 else [None] * len(maps)
    if None in named or not all(stem(path).endswith("_mask") for path in maps):
        return None if len(maps) > 1 else {}
    try:
        for name, path in zip(named, maps, strict=True):
            add_part(found, str(name), path)
    except UserError:  # of two observers, say
        return None
    return found


def _structure(path: Path, structures: Collection[str]) -> str | None:
    """Return the structure that a mask names (``label-liver``).

    Raises:
        UserError: it may be one of several.
    """
    label = entities(path).get("label", "").lower()
    same = [name for name in structures if label and re.sub(r"[^a-z0-9]", "", name.lower()) == label]
    if len(same) > 1:
        raise UserError(f"{path}: may be the mask of {same[0]!r} or of {same[1]!r}; give them other names in --labels")
    return same[0] if same else None


def _is_label(path: Path) -> bool:
    return stem(path).split("_")[-1] in LABEL_SUFFIXES


def _volumes(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the volumes in the folders anat/ of all subjects, and those below derivatives/."""
    volumes = [(path, path.relative_to(root).parts) for path in files_below(root)]
    anatomical = [path for path, parts in volumes if parts[0].startswith("sub-") and parts[-2] == "anat"]
    return anatomical, [path for path, parts in volumes if parts[0] == "derivatives"]


def _serves(label: Path, image: Path, known: set[str]) -> bool:
    """Whether nothing in the label's name speaks against the image, and the session is the same.

    Args:
        label: the label map.
        image: the image.
        known: contrasts there are, such as "T1w".
    """
    of_label, of_image = entities(label), entities(image)
    if of_label.get("ses") != of_image.get("ses"):
        return False
    for name, value in of_label.items():
        if name not in (*OF_THE_LABEL, "suffix") and of_image.get(name) != value:
            return False
    contrasts = {part for part in stem(label).split("_")[:-1] if "-" not in part}  # "..._T1w_dseg"
    contrasts |= {of_label["space"]} & known if "space" in of_label else set()
    return not contrasts or of_image["suffix"] in contrasts


def _chosen(path: Path, root: Path, pattern: re.Pattern[str] | None) -> bool:
    return pattern is None or pattern.search(path.relative_to(root).as_posix()) is not None


# Tables


def _groups(root: Path) -> dict[str, str]:
    """Return the column ``group`` of ``participants.tsv``; nothing else of it is copied."""
    rows = read_table(root / "participants.tsv")
    return {
        row["participant_id"]: row["group"] for row in rows if row.get("participant_id") and is_known(row.get("group"))
    }


def _sessions(images: list[Path]) -> dict[str, list[str]]:
    """Return the names of each subject's sessions."""
    sessions: defaultdict[str, set[str]] = defaultdict(set)
    for image in images:
        own = entities(image)
        if "ses" in own:
            sessions[own["sub"]].add(own["ses"])
    return {subject: sorted(names, key=natural) for subject, names in sessions.items()}
