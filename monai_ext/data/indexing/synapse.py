"""Synapse / BTCV: abdominal CT with 13 organs."""

from __future__ import annotations

from pathlib import Path

from monai_ext.data.cards import Card
from monai_ext.data.folders import files_below, natural
from monai_ext.data.indexing.index import CaseEntry, Index, Options, by_name, nothing_found, start_list


def index_synapse(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index ``img0001.nii.gz`` with ``label0001.nii.gz``, anywhere below the root; scans without a label are kept.

    Raises:
        UserError: there is no such image.
    """
    skipped: list[tuple[str, str]] = []
    volumes = files_below(root)
    images, labels = by_name(volumes, r"img([0-9]+)", skipped), by_name(volumes, r"label([0-9]+)")
    if not images:
        raise nothing_found(root, card)
    index = Index(start_list(card), skipped)
    folds = card.assign("fold", [number for number in images if number in labels])
    for number in sorted(images, key=natural):
        entry: CaseEntry = {"case": f"img{number}", "patient": number, "image": str(images[number])}
        entry |= {"label": str(labels[number]) if number in labels else None, "fold": folds.get(number)}
        index.datalist["cases"].append(entry)
    for number in sorted(set(labels) - set(images), key=natural):
        index.skipped.append((f"label{number}", "has no image"))
    if not folds:
        index.notes.append(
            f"no folds: they are made of all 30 labelled scans, {len(set(images) & set(labels))} are here"
        )
    return index
