"""MSCMR: late gadolinium MR with scribbles (training) and dense labels (validation, test)."""

from __future__ import annotations

from pathlib import Path

from monai_ext.data.cards import Card
from monai_ext.data.folders import files_below, natural
from monai_ext.data.indexing.index import CaseEntry, Index, Options, by_name, nothing_found, start_list


def index_mscmr(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index ``subject1_DE.nii.gz`` with ``..._DE_manual`` and ``..._DE_scribble``, anywhere below the root.

    The split follows the subject's number, which CycleMix's folders (train, val, TestSet) agree with.

    Raises:
        UserError: there is no such image.
    """
    skipped: list[tuple[str, str]] = []
    volumes = files_below(root)
    images = by_name(volumes, r"(subject[0-9]+)_DE", skipped)
    labels = by_name(volumes, r"(subject[0-9]+)_DE_manual")
    scribbles = by_name(volumes, r"(subject[0-9]+)_DE_scribble")
    if not images:
        raise nothing_found(root, card)
    index = Index(start_list(card, ignore=bool(scribbles)), skipped)
    splits = card.assign("split", {_plain(subject) for subject in images})
    for subject in sorted(images, key=natural):
        patient = f"subject{int(subject.removeprefix('subject')):02d}"
        entry: CaseEntry = {"case": f"{patient}_DE", "patient": patient, "phase": "LGE", "image": str(images[subject])}
        entry["split"] = splits.get(_plain(subject))
        entry |= {
            key: str(found[subject]) for key, found in (("label", labels), ("scribble", scribbles)) if subject in found
        }
        index.datalist["cases"].append(entry)
    for subject in sorted({*labels, *scribbles} - set(images), key=natural):
        index.skipped.append((subject, "has a label or a scribble, but no image"))
    return index


def _plain(subject: str) -> str:
    """Write a subject without leading zeros, as the card does."""
    return f"subject{int(subject.removeprefix('subject'))}"
