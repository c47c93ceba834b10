"""Which of a bundle's weights serve a data list, where the user names none.

The weights say so themselves: ``serves`` in the record beside each file in ``models`` lists words for modalities and
structures. Nothing here knows a bundle's weights.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from monai_ext import processes
from monai_ext.data.manifest import DataList
from monai_ext.data.provenance import WeightRecord, read_record
from monai_ext.errors import UserError

SUFFIXES = (".pt", ".safetensors")
"""Of files of weights in a bundle's ``models``; of two with the same name the first, which MONAI Label reads too."""


def weight_files(models: Path) -> list[Path]:
    """Return the files of weights in a folder by their names, one of each name."""
    found = {path.stem: path for suffix in reversed(SUFFIXES) for path in models.glob(f"*{suffix}")}
    return [found[stem] for stem in sorted(found)]


def choose_weights(models: str | os.PathLike, cases: DataList, variant: str | None = None) -> Path:
    """Return the weights in ``models`` that serve the modality and structures of a data list.

    Weights for some modalities and structures serve a list if every modality of its cases is one of theirs, and one
    structure at least, while no other weights in the folder have as much of it: "LV" and "scar" are served by weights
    for the heart, "LV" and "liver" by neither those for the heart nor those for the abdomen. All else is served by the
    weights whose record limits neither.

    Args:
        models: folder of the weights and their records.
        cases: the data list; its label names and the modalities of its cases count.
        variant: only weights of this network; None: of any.

    Raises:
        UserError: no weights in the folder serve the list.
    """
    folder = Path(models)
    records = {p: read_record(p) for p in weight_files(folder) if not p.is_symlink()}
    known = {p: r for p, r in records.items() if r is not None and r.serves is not None}
    fit = {p: r for p, r in known.items() if variant in (None, r.variant)}
    modalities = {c.modality or cases.modality or "" for c in cases.cases} or {cases.modality or ""}
    counts = {p: _count_served(r, modalities, cases.labels) for p, r in fit.items()}
    most = max(counts.values(), default=0)
    best = [p for p, count in counts.items() if count == most and most > 0]
    general = [p for p, r in fit.items() if r.serves is not None and not (r.serves.modalities or r.serves.structures)]
    if len(best) == 1:
        return best[0]
    if general:
        return general[0]
    asked = f"{', '.join(sorted(filter(None, modalities))) or 'this modality'} with {', '.join(cases.labels)}"
    raise UserError(
        f"no weights in {folder} say that they serve {asked}: name weights with --checkpoint "
        f"({', '.join(p.stem for p in records) or 'none'})."
    )


@cache
def _say_once(note: str) -> None:
    """Print a note, of several processes in the first."""
    if processes.is_first():
        print(note, file=sys.stderr)


def scope_note(weights: str | os.PathLike | None, cases: DataList) -> str:
    """Say in one line that weights have not seen the modality or the structures of a data list, and print it once.

    Args:
        weights: their file, whose record says in ``serves`` what they are for; None: there are none.
        cases: the data list; its label names and the modalities of its cases count.

    Returns:
        The line, for ``run.json`` and the overlays; "" where the weights serve the list or their record does not say.
    """
    record = None if weights is None else read_record(weights)
    if record is None or record.serves is None:
        return ""
    known, modalities = record.serves, {c.modality or cases.modality or "" for c in cases.cases}
    foreign = sorted(m for m in modalities if m and known.modalities and not _names_any(m, known.modalities))
    strange = [s for s in cases.labels if known.structures and not _names_any(s, known.structures)]
    if not foreign and not strange:
        return ""
    note = f"out of range: {record.name} has not seen {', '.join([*foreign, *strange])}"
    _say_once(f"note: {note}; look at the masks before you use them")
    return note


def _count_served(record: WeightRecord, modalities: Iterable[str], structures: Iterable[str]) -> int:
    """Count the structures that special weights serve; 0 where they do not serve all modalities, or serve all."""
    serves = record.serves
    if serves is None or not serves.structures:
        return 0
    if serves.modalities and not all(_names_any(m, serves.modalities) for m in modalities):
        return 0
    return sum(_names_any(structure, serves.structures) for structure in structures)


def _names_any(name: str, words: Iterable[str]) -> bool:
    """Whether one of ``words`` stands in ``name`` as a word, or several: "left kidney" in "Left_Kidney_2"."""
    return any(f" {' '.join(_words(word))} " in f" {' '.join(_words(name))} " for word in words)


def _words(name: str) -> list[str]:
    """Split at everything but letters and digits, at the hump of "leftKidney" too, in small letters."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W_]+", apart.casefold())
