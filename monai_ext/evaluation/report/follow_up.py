"""The page of a follow-up run: each patient over time, with or without labels of the later images."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from monai_ext.data.volume_error import USUAL_ERROR_PERCENT
from monai_ext.evaluation.curves import COLOURS
from monai_ext.evaluation.report import figures, wording
from monai_ext.evaluation.report.visits import (
    LEAST_PART_ML,
    REACH_MM,
    FollowUps,
    Measures,
    Patient,
    Visit,
    part_changes,
    read_follow_ups,
)
from monai_ext.evaluation.slice_picture import (
    LUNG_WINDOW,
    colour_of,
    is_dark_around,
    show_fill,
    show_image,
    show_outlines,
    show_sides,
    view_corner,
    windowed,
)
from monai_ext.metrics.parts import PartChange
from monai_ext.transforms.intensity import CT_WINDOW, PERCENTILES
from monai_ext.transforms.sam_input import DISPLAY_DIRECTIONS, find_layout

MOST_PICTURES = 4  # of an image
MOST_BYTES = 6_000_000  # of all pictures of a page
NONE = "–"


@dataclass(frozen=True)
class Line:
    """A line of a patient's table, as text; ``doubtful`` is a change that the method's error alone can make."""

    visit: str
    case: str
    label: str
    size: str
    change: str
    diameters: str
    parts: str
    slices: str
    score: str
    reason: str
    is_reference: bool
    flagged: bool
    doubtful: bool


@dataclass(frozen=True)
class Pair:
    """A slice of the reference beside the slice of the later image that it served, as a data URI."""

    caption: str
    source: str
    alt: str


@dataclass(frozen=True)
class Follow:
    """A later image: its name, what became of the parts, its pictures."""

    title: str
    changes: tuple[str, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Section:
    """A patient: curve, table, later images."""

    name: str
    curve: Markup | None
    lines: tuple[Line, ...]
    visits: tuple[Follow, ...]


def render_follow_ups(
    folder: Path, overlays: bool = True, title: str | None = None, datalist: str | Path | None = None
) -> str:
    """Return the page of a follow-up run.

    Args:
        folder: its output folder.
        overlays: with pictures of the patients.
        title: of the page; None: the data set's name.
        datalist: where the data list lies now; None: where ``run.json`` says.

    Raises:
        UserError: the folder is not that of a follow-up run, or one of its files cannot be read.
    """
    found = read_follow_ups(folder, datalist)
    album = _Album(overlays)
    sections = [_section(patient, found, album) for patient in found.patients]
    flagged = sum(line.flagged for section in sections for line in section.lines)
    cases = sum(len(patient.later) for patient in found.patients)
    record = found.record
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("follow_up.html").render(
        title=title or found.dataset,
        size=f"{wording.count(cases, 'later image')} of {wording.count(len(sections), 'patient')}",
        labels=list(found.labels),
        colours=[colour_of(number) for number in range(len(found.labels))],
        sections=sections,
        flagged=flagged,
        reviewed=found.calibrated is not None,
        calibrated=found.calibrated,
        n_left_out=album.n_left_out,
        note=record.get("note") or "",
        facts=list(_facts(record)),
        reach=REACH_MM,
        least=LEAST_PART_ML,
        error=USUAL_ERROR_PERCENT,
        doubtful=any(line.doubtful for section in sections for line in section.lines),
        drawn=any(patient.drawn for patient in found.patients),
        style=Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8")),
    )


def _facts(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    weights = record.get("checkpoint") or {}
    known = weights.get("record") or {}
    yield "Command", str(record.get("command") or NONE)
    yield "When", wording.time(record.get("started"))
    if weights:
        name = str(known.get("name") or Path(str(weights.get("path"))).stem)
        yield "Weights", f"{name} (sha256 {wording.short_hash(str(weights.get('sha256')))})"
    yield "Version", str((record.get("versions") or {}).get("monai-ext") or NONE)


def _section(patient: Patient, found: FollowUps, album: _Album) -> Section:
    follows = [
        Follow(
            title=f"{visit.case}, visit {visit.visit}" if visit.visit else visit.case,
            changes=tuple(_changes(visit.references[-1], visit, found.labels)),
            pairs=tuple(album.pairs(visit, found.labels)),
        )
        for visit in patient.later
    ]
    lines = [_line(visit, label, measures) for visit in patient.visits for label, measures in visit.measures.items()]
    return Section(patient.name, _curve(patient, list(found.labels)), tuple(lines), tuple(follows))


def _line(visit: Visit, label: str, measures: Measures) -> Line:
    unit = "pixels" if visit.geometry.spacing is None else "ml"
    size = NONE if math.isnan(measures.volume) else f"{measures.volume:.{0 if unit == 'pixels' else 1}f} {unit}"
    return Line(
        visit=visit.visit or NONE,
        case=visit.case,
        label=label,
        size=size,
        change=NONE if measures.change is None else f"{measures.change:+.0f} %".replace("-", "−"),
        diameters=NONE if measures.diameters is None else " × ".join(f"{one:.0f}" for one in measures.diameters),
        parts=str(measures.parts),
        slices=str(measures.slices),
        score=NONE if measures.score is None else f"{measures.score:.2f}",
        reason=measures.reason,
        is_reference=visit.is_reference,
        flagged=measures.flagged,
        doubtful=measures.change is not None and not visit.is_reference and abs(measures.change) < USUAL_ERROR_PERCENT,
    )


# What became of the parts


def _changes(before: Visit, after: Visit, labels: dict[str, int]) -> Iterator[str]:
    for label, value in labels.items():
        matched = part_changes(before, after, value)
        if matched is None:
            yield f"{label}: its parts are not compared, because the pictures differ in size."
            continue
        changes, earlier, later = matched
        unit = "px" if after.geometry.affine is None else "ml"
        told = [_told(change, earlier, later, unit) for change in changes]
        yield f"{label}: " + ("; ".join(told) if told else "no part before or now") + "."


def _told(change: PartChange, earlier: Sequence[float], later: Sequence[float], unit: str) -> str:
    before = " + ".join(_size(earlier[number - 1], unit) for number in change.before)
    after = " + ".join(_size(later[number - 1], unit) for number in change.after)
    return {
        "kept": f"one part stays, {before} → {after}",
        "new": f"new part, {after}",
        "gone": f"part gone, {before}",
        "split": f"one part split into {len(change.after)}, {before} → {after}",
        "merged": f"{len(change.before)} parts merged into one, {before} → {after}",
        "regrouped": f"{len(change.before)} parts regrouped into {len(change.after)}, {before} → {after}",
    }[change.kind]


def _size(size: float, unit: str) -> str:
    return f"{size:.0f} px" if unit == "px" else f"{size:.3g} ml"


# Curve


@figures.plain_text
def _curve(patient: Patient, labels: Sequence[str]) -> Markup | None:
    """Draw volumes over time: squares are annotations, circles predictions, hollow ones those to look at.

    The line goes through the annotation of a visit where there is one, and through what was predicted elsewhere.
    """
    visits = patient.visits
    drawn = {visit.case for visit in patient.drawn}
    times = [visit.time for visit in visits]
    if len({visit.visit for visit in visits}) < 2 or all(
        math.isnan(one.volume) for v in visits for one in v.measures.values()
    ):
        return None
    dated = not any(map(math.isnan, times))
    names = list(dict.fromkeys(visit.case for visit in visits))
    places = [v.time - times[0] if dated else float(names.index(v.case)) for v in visits]
    figure = Figure(figsize=(360 / 72, 200 / 72))
    axes = figure.add_axes((0.13, 0.2, 0.84, 0.74))
    for number, label in enumerate(labels):
        shown = [(x, v, v.measures[label]) for x, v in zip(places, visits, strict=True) if label in v.measures]
        shown = [one for one in shown if not math.isnan(one[2].volume)]
        colour = COLOURS[number % len(COLOURS)]
        line = [(x, m.volume) for x, v, m in shown if v.is_reference or v.case not in drawn]
        axes.plot([x for x, _ in line], [y for _, y in line], color=colour, linewidth=1.5, label=label)
        for x, visit, measures in shown:
            axes.plot(
                x,
                measures.volume,
                marker="s" if visit.is_reference else "o",
                markersize=7,
                color=colour,
                markerfacecolor="white" if measures.flagged else colour,
                markeredgewidth=1.6,
            )
    axes.margins(x=0.06)
    axes.set_ylim(0, 1.12 * max(1e-3, axes.dataLim.y1))
    axes.set_ylabel("volume in ml", fontsize=10, color="#586174")
    axes.set_xlabel(
        f"days since {visits[0].visit}" if _is_date(visits[0].visit) and dated else "visit",
        fontsize=10,
        color="#586174",
    )
    if not _is_date(visits[0].visit):
        ticks = {place: visit.visit or visit.case for place, visit in zip(places, visits, strict=True)}
        axes.set_xticks(list(ticks), list(ticks.values()))
    axes.tick_params(labelsize=9, labelcolor="#586174", length=0)
    axes.grid(color="#e6eaf0")
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    if len(labels) > 1:
        axes.legend(fontsize=9, frameon=False)
    return Markup(figures.to_svg(figure, f"Volumes of patient {patient.name} over time"))


def _is_date(visit: str) -> bool:
    return len(visit) == 10 and visit[4] == visit[7] == "-"


# Pictures


class _Album:
    """Pairs of slices for a page, as long as they fit."""

    def __init__(self, wanted: bool) -> None:
        self.wanted, self.n_left_out, self._bytes = wanted, 0, 0

    def pairs(self, visit: Visit, labels: dict[str, int]) -> Iterator[Pair]:
        if not self.wanted:
            return
        for index, reason in _slices(visit, labels).items():
            number, served = visit.reference_slices.get(index, (0, 0))
            reference = visit.references[number] if index in visit.reference_slices else None
            source = _jpeg(_pair_figure(reference, served, visit, index, labels))
            if self._bytes + len(source) > MOST_BYTES:
                self.n_left_out += 1
                continue
            self._bytes += len(source)
            depth = visit.values.shape[2]
            here = f"slice {index} of 0-{depth - 1}" if depth > 1 else "this picture"
            scored = [score for (_, k), score in visit.scores.items() if k == index]
            doubt = f", score {min(s for s, _ in scored):.2f}" if scored else ""
            doubt += ", to look at" if any(flag for _, flag in scored) else ""
            before = "" if reference is None else f"Left: {reference.case}, slice {served}, annotated. Right: "
            yield Pair(f"{before}{here}: {reason}{doubt}.", source, f"{visit.case}, {here}, beside its reference")


def _slices(visit: Visit, labels: dict[str, int]) -> dict[int, str]:
    """Choose the largest slice of each structure, that of the lowest score, and what only the reference has."""
    chosen: dict[int, list[str]] = {}
    for label, value in labels.items():
        areas = (visit.values == value).sum(axis=(0, 1))
        if areas.any():
            chosen.setdefault(int(areas.argmax()), []).append(f"largest {label}")
            continue
        before = [(one.values == value).sum(axis=(0, 1)) for one in visit.references]
        held = {k: int(before[number][own]) for k, (number, own) in visit.reference_slices.items()}
        largest = max(held, key=lambda k: held[k], default=None)
        if largest is not None and held[largest]:
            chosen.setdefault(largest, []).append(f"{label} not found, largest in the reference")
    if visit.scores:
        (_, index), _ = min(visit.scores.items(), key=lambda one: (one[1][0], one[0]))
        chosen.setdefault(index, []).append("lowest score")
    return {index: ", ".join(why) for index, why in list(chosen.items())[:MOST_PICTURES]}


def _pair_figure(reference: Visit | None, served: int, visit: Visit, index: int, labels: dict[str, int]) -> Figure:
    """Draw the reference's slice, where one served, and the later image's at one scale."""
    shown = [*([] if reference is None else [(reference, served)]), (visit, index)]
    window = _window(visit, index)
    size = _view(shown, window is LUNG_WINDOW)
    width, height = 3.8 * size[1] / max(size), 3.8 * size[0] / max(size)
    figure = Figure(figsize=(len(shown) * width + 0.06 * (len(shown) - 1), height), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    for place, (one, k) in enumerate(shown):
        share = width / figure.get_figwidth()
        axes = figure.add_axes((place * (1 - share) / max(len(shown) - 1, 1), 0, share, 1))
        masks = {label: one.values[..., k] == value for label, value in labels.items()}
        spacing = one.spacing
        extent = (one.values.shape[0] * float(spacing[0]), one.values.shape[1] * float(spacing[1]))
        show_image(axes, _windowed(one, k, window), extent)
        if not one.is_reference:
            show_fill(axes, masks, extent)
        show_outlines(axes, masks, extent, dashed=one.is_reference)
        top, left = view_corner(masks, extent, size)
        axes.set_ylim(top + size[0], top)
        axes.set_xlim(left, left + size[1])
        affine = one.geometry.affine
        if affine is not None:
            axis = find_layout(one.geometry.shape, affine, one.slice_axis).slice_axis
            show_sides(axes, DISPLAY_DIRECTIONS[axis])
    return figure


def _window(visit: Visit, index: int) -> tuple[float, float] | None:
    """Return the window of a CT: of the lung where the structure lies in it; None: percentiles, or as it is."""
    if visit.modality.upper() != "CT" or visit.geometry.is_frame:
        return None
    seen = is_dark_around(windowed(visit.grey[..., index], CT_WINDOW), visit.values[..., index] != 0)
    return LUNG_WINDOW if seen else CT_WINDOW


def _windowed(visit: Visit, index: int, window: tuple[float, float] | None) -> np.ndarray:
    plane = visit.grey[:, :, index]
    if visit.geometry.is_frame and plane.dtype == np.uint8:
        return plane.astype(float)
    if window is None:
        low, high = np.percentile(visit.grey, PERCENTILES)
        window = (float(low), max(float(high), float(low) + 1e-6))
    return windowed(plane, window)


def _view(shown: Sequence[tuple[Visit, int]], wide: bool) -> tuple[float, float]:
    """Return height and width in mm that hold what is drawn on all slices, at least half of the largest image."""
    sides = []
    for axis in (0, 1):
        full = max(one.values.shape[axis] * float(one.spacing[axis]) for one, _ in shown)
        held = [
            np.ptp(np.nonzero((one.values[..., k] != 0).any(axis=1 - axis))[0]) * float(one.spacing[axis])
            for one, k in shown
            if (one.values[..., k] != 0).any()
        ]
        sides.append(min(full, max(full * 0.55, 1.8 * max(held, default=full))))
    return sides[0], sides[1]


def _jpeg(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="black")
    stream = io.BytesIO()
    Image.open(file).convert("RGB").save(stream, "JPEG", quality=85, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
