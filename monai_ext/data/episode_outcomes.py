"""What a method made of frozen episodes: ``episodes.csv``, a line an episode, in the order of their list."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from monai_ext.data.episodes import Episode, SliceName
from monai_ext.data.text import read_table
from monai_ext.errors import UserError
from monai_ext.files import PathLike, atomic_path

PLACES = ("dataset", "case", "slice")
COLUMNS = (
    *("class", "patient", *(f"query_{part}" for part in PLACES), *(f"support_{part}" for part in PLACES)),
    *("status", "tp", "fp", "fn", "tn", "dice"),
)
"""Columns of the table; those of the method's features follow."""


@dataclass(frozen=True)
class EpisodeOutcome:
    """One episode and what came of it.

    Attributes:
        episode: class, support and query.
        patient: of the query.
        status: of the method, see :class:`monai_ext.inferers.reference_inferer.SliceResult`.
        counts: true positive, false positive, false negative and true negative pixels of the input frame.
        features: what the method says of its mask without the query's label.
    """

    episode: Episode
    patient: str
    status: str
    counts: tuple[int, int, int, int]
    features: dict[str, float | None] = field(default_factory=dict)

    @property
    def dice(self) -> float:
        """Of this query alone; 1 where neither mask nor label has a pixel."""
        tp, fp, fn, _ = self.counts
        whole = 2 * tp + fp + fn
        return 2 * tp / whole if whole else 1.0


def write_outcomes(path: PathLike, outcomes: Sequence[EpisodeOutcome]) -> None:
    """Write the table, whole or not at all; a feature that is not known is empty."""
    names = sorted({name for outcome in outcomes for name in outcome.features})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *names])
    for one in outcomes:
        query, support = one.episode.query, one.episode.support
        places = [getattr(place, part) for place in (query, support) for part in PLACES]
        known = ["" if one.features.get(name) is None else f"{one.features[name]:.6g}" for name in names]
        cells = [one.episode.name, one.patient, *places, one.status, *one.counts, f"{one.dice:.6f}"]
        writer.writerow([*cells, *known])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def read_outcomes(path: PathLike) -> list[EpisodeOutcome]:
    """Read what :func:`write_outcomes` wrote.

    Raises:
        UserError: the file is absent or not such a table.
    """
    fix = "name the episodes.csv of a run on frozen episodes."
    header, *lines = read_table(path, fix) or [[]]
    if tuple(header[: len(COLUMNS)]) != COLUMNS or not lines:
        raise UserError(f"{path} is no table of episodes, or has none: {fix}")
    try:
        return [_outcome(dict(zip(header, line, strict=True)), header[len(COLUMNS) :]) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): {fix}") from error


def _outcome(cells: dict[str, str], features: Sequence[str]) -> EpisodeOutcome:
    query, support = (
        SliceName(cells[f"{role}_dataset"], cells[f"{role}_case"], int(cells[f"{role}_slice"]))
        for role in ("query", "support")
    )
    tp, fp, fn, tn = (int(cells[name]) for name in ("tp", "fp", "fn", "tn"))
    return EpisodeOutcome(
        Episode(cells["class"], support, query),
        cells["patient"],
        cells["status"],
        (tp, fp, fn, tn),
        {name: float(cells[name]) if cells[name] else None for name in features},
    )
