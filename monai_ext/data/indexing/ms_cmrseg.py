"""MS-CMRSeg 2019: bSSFP (C0), T2 and late gadolinium MR of the same patients, labels 200, 500 and 600."""

from __future__ import annotations

from pathlib import Path

from monai_ext.data.cards import Card
from monai_ext.data.folders import files_below, natural
from monai_ext.data.indexing.index import CaseEntry, Index, Options, by_name, nothing_found, start_list

_IMAGE = r"(patient[0-9]+_(?:C0|T2|LGE))"


def index_ms_cmrseg(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index ``patient1_C0.nii.gz`` with ``patient1_C0_manual.nii.gz``, anywhere below the root.

    The label values stay as they are: the data list names them. Images without a label (the challenge's test images)
    are kept.

    Raises:
        UserError: there is no such image.
    """
    skipped: list[tuple[str, str]] = []
    volumes = files_below(root)
    images, labels = by_name(volumes, _IMAGE, skipped), by_name(volumes, f"{_IMAGE}_manual")
    if not images:
        raise nothing_found(root, card)
    index = Index(start_list(card), skipped)
    folds = card.assign("fold", {name.split("_")[0] for name in images})
    for name in sorted(images, key=natural):
        patient, sequence = name.split("_")
        entry: CaseEntry = {"case": name, "patient": patient, "sequence": sequence, "fold": folds.get(patient)}
        entry |= {"image": str(images[name]), "label": str(labels[name]) if name in labels else None}
        index.datalist["cases"].append(entry)
    for name in sorted(set(labels) - set(images), key=natural):
        index.skipped.append((name, "has a label, but no image"))
    if len({entry["sequence"] for entry in index.datalist["cases"]}) > 1:
        index.notes.append("several sequences of a patient are no visits; --image_pattern _C0 takes one of them")
    return index
