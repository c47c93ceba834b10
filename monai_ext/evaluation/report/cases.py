"""The worst cases of a report, with their overlays."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from monai_ext.errors import UserError
from monai_ext.evaluation.pairing import better_direction
from monai_ext.evaluation.report.sources import Evaluation
from monai_ext.evaluation.report.wording import metric_title, number
from monai_ext.evaluation.table import Row

SECOND = ("hd95_mm", "hd95_px")
WIDEST = {False: 1000, True: 760}  # pixels, where one picture a case stands alone or several side by side
MOST_BYTES = 3_000_000  # of all pictures of a page


@dataclass(frozen=True)
class Picture:
    """An overlay, as a data URI."""

    method: str
    source: str
    alt: str


@dataclass(frozen=True)
class Case:
    """A case of the report: what it is, its values (label, then a cell for each method), its overlays."""

    name: str
    facts: str
    score: str
    rows: tuple[tuple[str, ...], ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class WorstCases:
    """The worst cases of the first method.

    Attributes:
        method: whose worst cases they are.
        by: what they are ordered by.
        methods: whose values are given.
        cells: what their cells hold.
        cases: worst first.
        n_left_out: pictures that would have made the page too large.
    """

    method: str
    by: str
    methods: tuple[str, ...]
    cells: str
    cases: tuple[Case, ...]
    n_left_out: int

    @property
    def has_pictures(self) -> bool:
        """Whether any overlay is there."""
        return any(case.pictures for case in self.cases)


def worst_cases(evaluations: Sequence[Evaluation], n: int, overlays: bool) -> WorstCases | None:
    """Find the cases with the worst mean over labels of the first method.

    Args:
        evaluations: of the same cases.
        n: how many.
        overlays: take the pictures of all methods along.

    Returns:
        The cases, or None where no metric has a direction.

    Raises:
        UserError: where a picture cannot be read.
    """
    first = evaluations[0]
    metrics = list(dict.fromkeys(row.metric for row in first.rows))
    metric = next((name for name in ("dice", *metrics) if name in metrics and better_direction(name)), None)
    if metric is None:
        return None
    shown = [metric, *(name for name in SECOND if name in metrics and name != metric)]
    tables = [_by_case(evaluation.rows, shown) for evaluation in evaluations]
    scores = {case: _badness(rows, metric) for case, rows in tables[0].items()}
    order = sorted((case for case in scores if scores[case] is not None), key=lambda case: (-(scores[case] or 0), case))
    album = _Album(evaluations if overlays else [])
    cases = tuple(_case(case, tables, shown, metric, album) for case in order[:n])
    labels = len({row.label for row in first.rows})
    by = f"{metric_title(metric)}, mean over labels" if labels > 1 else metric_title(metric)
    cells = " / ".join(map(metric_title, shown))
    return WorstCases(first.name, by, tuple(e.name for e in evaluations), cells, cases, album.n_left_out)


CaseKey = tuple[str, str]


def _by_case(rows: Sequence[Row], metrics: Sequence[str]) -> dict[CaseKey, list[Row]]:
    found: dict[CaseKey, list[Row]] = {}
    for row in rows:
        if row.metric in metrics:
            found.setdefault((row.case, row.run), []).append(row)
    return found


def _badness(rows: Sequence[Row], metric: str) -> float | None:
    """Return what grows as the mean over labels gets worse; None where there is no value."""
    values = [row.value for row in rows if row.metric == metric and row.value is not None]
    if not values:
        return None
    direction = better_direction(metric)
    if direction == "nearer_zero":
        values = [abs(value) for value in values]
    mean = sum(values) / len(values)
    return -mean if direction == "higher" else mean


def _case(
    key: CaseKey, tables: Sequence[dict[CaseKey, list[Row]]], shown: Sequence[str], metric: str, album: _Album
) -> Case:
    rows = tables[0][key]
    one, labels = rows[0], list(dict.fromkeys(row.label for row in rows))
    known = (("patient", one.patient), ("visit", one.visit), ("run", one.run if one.run != "0" else ""))
    facts = [f"{what} {value}" for what, value in (*known, ("reference", one.reference)) if value]
    values = [row.value for row in rows if row.metric == metric and row.value is not None]
    cells = [(label, *(_cell(table.get(key, []), label, shown) for table in tables)) for label in labels]
    return Case(
        name=one.case,
        facts=", ".join(facts),
        score=number(sum(values) / len(values), metric),
        rows=tuple(cells),
        pictures=tuple(album.pictures(one.case)),
    )


def _cell(rows: Sequence[Row], label: str, metrics: Sequence[str]) -> str:
    of_label = {row.metric: row for row in rows if row.label == label}
    told = [number(of_label[name].value, name) for name in metrics if name in of_label]
    status = next((row.status for row in of_label.values() if row.status != "ok"), "")
    return " / ".join(told) + (f" ({status})" if status else "")


class _Album:
    """Pictures for a page, as long as they fit."""

    def __init__(self, evaluations: Sequence[Evaluation]) -> None:
        self.evaluations = evaluations
        self.n_left_out = 0
        self._bytes = 0

    def pictures(self, case: str) -> list[Picture]:
        found = []
        for evaluation in self.evaluations:
            path = evaluation.overlay(case)
            if path is None:
                continue
            source = data_uri(path, WIDEST[len(self.evaluations) > 1])
            if self._bytes + len(source) > MOST_BYTES:
                self.n_left_out += 1
                continue
            self._bytes += len(source)
            alt = f"Overlay of {evaluation.name} on case {case}: prediction as an outline, true label as dashes"
            found.append(Picture(evaluation.name, source, alt))
        return found


def data_uri(path: Path, widest: int) -> str:
    """Return a picture as a JPEG data URI, at most ``widest`` pixels wide.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        with Image.open(path) as stored:
            picture = stored.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: the overlay cannot be read ({error}); remove it, or leave pictures out with --overlays none"
        ) from error
    if picture.width > widest:
        height = max(1, round(picture.height * widest / picture.width))
        picture = picture.resize((widest, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
