"""Draws one picture a case: upright slices with the predictions as outlines, true labels as dashes, the prompts.

Beside them stands the slice of the reference that served the one with the largest prediction. Everything is placed by
field of view in mm (pixels for frames), so that the image in the input frame, the prediction on the grid of the file
and the prompts lie on each other although their pixels differ.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from monai_ext.data.case_details import DETAILS, CaseDetails
from monai_ext.data.images import read_image
from monai_ext.evaluation.slice_picture import (
    LUNG_WINDOW,
    colour_of,
    is_dark_around,
    show_fill,
    show_image,
    show_outlines,
    show_sides,
    show_text,
    view_corner,
    windowed,
)
from monai_ext.files import atomic_path
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.mask_writer import decollated, label_masks
from monai_ext.transforms.sam_input import DISPLAY_DIRECTIONS, display_spacing, to_display

POSITIVE, NEGATIVE = "#19E619", "#FF2A2A"
REFERENCE = "#FFE08A"
DPI = 100


@dataclass
class ReferencePanel:
    """A slice of the reference.

    Args:
        title: on the slice.
        image: [C, H, W] in [0, 255].
        masks: label -> boolean [h, w], the annotation.
        extent: height and width in mm (pixels for a frame).
    """

    title: str
    image: np.ndarray
    masks: dict[str, np.ndarray]
    extent: tuple[float, float]


@dataclass
class Scene:
    """What is drawn of one case.

    Args:
        title: line above the slices.
        image: [C, H, W, D] in [0, 255], C = 1 or 3, the input frame.
        predictions: label -> boolean [h, w, D], upright, on the grid of the file.
        truths: the same of the true label, empty where there is none.
        spacing: (h, w) of a pixel of ``predictions`` in mm, (1, 1) for a frame.
        directions: patient directions in which H, W and D grow, "" for a frame.
        points: slice -> (label, x, y, is positive), x and y in input-frame pixels.
        shown: [C, h, w, D] in [0, 255], shown in place of ``image``: another window; None: the image itself.
        scores: slice -> lowest score of its structures, and whether one is flagged.
        reference: a slice of the reference, or None.
    """

    title: str
    image: np.ndarray
    predictions: dict[str, np.ndarray]
    truths: dict[str, np.ndarray]
    spacing: tuple[float, float]
    directions: str = ""
    points: dict[int, list[tuple[str, float, float, bool]]] = field(default_factory=dict)
    shown: np.ndarray | None = None
    scores: dict[int, tuple[float, bool]] = field(default_factory=dict)
    reference: ReferencePanel | None = None

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width of the field of view in mm (pixels for a frame)."""
        height, width, _ = next(iter(self.predictions.values())).shape
        return height * self.spacing[0], width * self.spacing[1]

    @cached_property
    def occupied(self) -> np.ndarray:
        """Boolean [h, w, D]: where any label is predicted or true."""
        return np.any([*self.predictions.values(), *self.truths.values()], axis=0)

    @cached_property
    def areas(self) -> np.ndarray:
        """Predicted pixels of each slice [D], all labels together."""
        return np.sum([mask.sum(axis=(0, 1)) for mask in self.predictions.values()], axis=0)


class OverlayWriter:
    """Writes ``<output_dir>/overlays/<case>.png`` after every iteration of an evaluator.

    The evaluator must decollate. Drawn are at most ``max_slices`` slices, the reference's among them, evenly spaced
    among those that hold a prediction, a true label or a prompt (the middle ones where none does), with the one of the
    largest prediction and that of the lowest score, each with what it was chosen for; zoomed to what they hold: the
    prediction as an outline with a light fill, the true label as dashes where the batch has "label", positive prompts
    as green stars and negative ones as red crosses. The last tile is the reference's slice that served the largest
    prediction. Letters on the first slice name the patient's sides (the picture is shown as a radiologist looks at it).
    A CT whose structures lie in lung is shown in the lung window. The same input gives the same bytes.

    Needed of the engine: batch items with "case" and "image" (as :class:`~monai_ext.transforms.SamInputd`
    leaves it); output items with "pred" on the grid of the file, [1, *spatial] or [L, *spatial] (see
    ``MaskWriter``) and, for the prompts, "details" (:class:`~monai_ext.data.case_details.CaseDetails`); "label", if
    any, [1, *spatial] on the grid of the file.

    Args:
        output_dir: folder of the run's outputs.
        labels: name -> value, in the order of channels.
        max_slices: slices shown of a case.
        finished: is told of each file.
        note: stands behind each title, such as that the weights have not seen the modality.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Mapping[str, int],
        max_slices: int = 12,
        finished: FinishedCases | None = None,
        note: str = "",
    ) -> None:
        self.note = note
        self.folder = Path(output_dir) / "overlays"
        self.labels = dict(labels)
        self.max_slices = max_slices
        self.finished = finished

    def attach(self, engine: Engine) -> None:
        """Register with ``engine``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for case, output in decollated(engine):
            figure = draw(self._scene(case, output), self.max_slices)
            path = self.folder / f"{case['case']}.png"
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=DPI, facecolor="black", metadata={"Software": None})
            if self.finished is not None:
                self.finished.record(case["case"]).add_file(self.finished.output_dir, path)

    def _scene(self, case: Mapping[str, Any], output: Mapping[str, Any]) -> Scene:
        image, pred = case["image"], output["pred"]
        slice_axis = image.meta["slice_axis"] or None
        affine = pred.affine.numpy()
        spacing = display_spacing(pred.shape[1:], affine, slice_axis)

        def upright(stored: np.ndarray) -> dict[str, np.ndarray]:
            masks = label_masks(stored, self.labels)
            return {label: to_display(mask, affine, slice_axis) for label, mask in masks.items()}

        truth = case.get("label")
        details = output.get(DETAILS) or CaseDetails()
        scores = _scores(details)
        scene = Scene(
            title=" - ".join(filter(None, [_title(case), _verdict(scores), self.note])),
            image=image.cpu().numpy(),
            predictions=upright(pred.cpu().numpy()),
            truths={} if truth is None else upright(self._truth(truth.cpu().numpy(), pred.shape[1:])),
            spacing=(float(spacing[0]), float(spacing[1])),
            directions=DISPLAY_DIRECTIONS.get(image.meta["slice_axis"], ""),
            points=_points(details),
            scores=scores,
        )
        if str(case.get("modality") or "").upper() == "CT" and _lies_in_black(scene):
            path = image.meta["filename_or_obj"]
            scene.shown = to_display(windowed(read_image(path), LUNG_WINDOW), affine, slice_axis)[None]
            scene.title += f" - lung window, {LUNG_WINDOW[0]:g} to {LUNG_WINDOW[1]:g} HU"
        scene.reference = self._reference(details, scene)
        return scene

    def _reference(self, details: CaseDetails, scene: Scene) -> ReferencePanel | None:
        """Return the slice of the first reference that served the slice with the largest prediction."""
        target = int(scene.areas.argmax())
        served = next((row for row in details.rows if row["slice"] == target and row.get("reference_slice")), None)
        if served is None or not details.references:
            return None
        index = int(str(served["reference_slice"]).split("+")[0])
        reference = details.references[served.get("reference_number") or 0]
        image, label = reference.image, reference.label[0].cpu().numpy()[..., index]
        grey = image.cpu().numpy()[..., index]
        if scene.shown is not None:
            volume = windowed(read_image(image.meta["filename_or_obj"]), LUNG_WINDOW)
            grey = to_display(volume, image.meta["original_affine"], image.meta["slice_axis"] or None)[None, ..., index]
        extent = image.meta.get("plane_extent") or image.meta["plane_size"]
        return ReferencePanel(
            title=" ".join(["reference", *str(served.get("reference") or "").split("+")[:1]]) + f", slice {index}",
            image=grey,
            masks={name: label == value for name, value in self.labels.items()},
            extent=(float(extent[0]), float(extent[1])),
        )

    def _truth(self, label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """One boolean channel a label, because a single-label mask may hold further values (ignore)."""
        if label.shape != (1, *shape):
            raise ValueError(f"label has shape {label.shape}, the prediction's grid is {tuple(shape)}")
        return np.concatenate([label == value for value in self.labels.values()])


def _points(details: CaseDetails | None) -> dict[int, list[tuple[str, float, float, bool]]]:
    points: dict[int, list[tuple[str, float, float, bool]]] = {}
    for row in [] if details is None else details.rows:
        placed = points.setdefault(int(row["slice"]), [])
        placed += [(row["label"], float(x), float(y), bool(sign)) for x, y, sign in row.get("points") or []]
    return points


def choose_slices(occupied: Iterable[bool], max_slices: int) -> list[int]:
    """Choose at most ``max_slices`` slices, evenly spaced among the occupied ones, else around the middle.

    Args:
        occupied: whether each slice holds something to see.
        max_slices: 1 or more.
    """
    flags = np.asarray(list(occupied), dtype=bool)
    candidates = np.flatnonzero(flags)
    if len(candidates) == 0:
        shown = min(max_slices, len(flags))
        first = (len(flags) - shown) // 2
        return list(range(first, first + shown))
    if len(candidates) <= max_slices:
        return candidates.tolist()
    if max_slices == 1:
        return [int(candidates[len(candidates) // 2])]
    return candidates[np.linspace(0, len(candidates) - 1, max_slices).round().astype(int)].tolist()


def choose(scene: Scene, max_slices: int) -> dict[int, str]:
    """Choose the slices of a case: evenly spaced, with the largest prediction and the lowest score among them.

    Returns:
        Slice -> what it was chosen for, "" for one that is there as one of many.
    """
    depth = scene.image.shape[-1]
    chosen = choose_slices(
        [bool(scene.occupied[..., index].any()) or bool(scene.points.get(index)) for index in range(depth)],
        max_slices,
    )
    reasons: dict[int, str] = {}
    if scene.scores:
        lowest = min(scene.scores, key=lambda index: (scene.scores[index][0], index))
        reasons[lowest] = "lowest score"
    if scene.areas.any():
        largest = int(scene.areas.argmax())
        reasons[largest] = "largest" + (f", {reasons[largest]}" if largest in reasons else "")
    for wanted in reasons:
        replaced = min((index for index in chosen if index not in reasons), key=lambda i: abs(i - wanted), default=None)
        if wanted not in chosen and replaced is not None:
            chosen[chosen.index(replaced)] = wanted
    return {index: reasons.get(index, "") for index in sorted(chosen)}


def draw(scene: Scene, max_slices: int) -> Figure:
    """Draw a case as a montage of slices, the reference last, under a title and above a legend."""
    reasons = choose(scene, max(1, max_slices - (scene.reference is not None)))
    slices = list(reasons)
    window = _zoom(scene, slices)
    tiles = len(slices) + (scene.reference is not None)
    columns = _columns(tiles)
    rows = -(-tiles // columns)
    side = {1: 6.4, 2: 4.8, 3: 4.0}.get(columns, 3.2)  # inches of the longer side of a slice
    height, width = window[1] - window[0], window[3] - window[2]
    tile_height, tile_width = side * height / max(height, width), side * width / max(height, width)
    handles = _legend_handles(scene)
    gap = 0.04
    figure_width = max(columns * (tile_width + gap) + gap, 4.8)
    title = textwrap.wrap(scene.title, max(30, int(figure_width * 13.5))) or [""]
    header = 0.14 + 0.2 * len(title)
    legend_columns = _legend_columns(handles, figure_width)
    footer = 0.14 + 0.22 * -(-len(handles) // legend_columns)
    figure_height = rows * (tile_height + gap) + header + footer
    figure = Figure(figsize=(figure_width, figure_height), dpi=DPI)
    FigureCanvasAgg(figure)
    left = (figure_width - columns * (tile_width + gap) + gap) / 2
    for place in range(tiles):
        row, column = divmod(place, columns)
        x = left + column * (tile_width + gap)
        y = figure_height - header - (row + 1) * (tile_height + gap) + gap
        axes = figure.add_axes(
            (x / figure_width, y / figure_height, tile_width / figure_width, tile_height / figure_height)
        )
        if place == len(slices) and scene.reference is not None:
            _draw_reference(axes, scene.reference, scene.directions, (height, width))
            continue
        _draw_slice(axes, scene, slices[place], window)
        _annotate(axes, scene, slices[place], window, reasons[slices[place]], first=place == 0)
    place_x, place_y = 0.1 / figure_width, 1 - 0.07 / figure_height
    figure.text(place_x, place_y, "\n".join(title), color="white", fontsize=10, va="top", linespacing=1.25)
    figure.legend(
        handles=handles,
        loc="lower left",
        ncols=legend_columns,
        frameon=False,
        labelcolor="white",
        fontsize=8,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.3,
    )
    return figure


def _columns(slices: int) -> int:
    """Columns of the montage: up to three in a row, else three or four, whichever leaves less empty."""
    return slices if slices <= 3 else min((4, 3), key=lambda columns: -slices % columns)


def _draw_slice(axes: Axes, scene: Scene, index: int, window: tuple[float, float, float, float]) -> None:
    image = scene.image if scene.shown is None else scene.shown
    show_image(axes, _plane(image[..., index]), scene.extent)
    masks = {label: mask[..., index] for label, mask in scene.predictions.items()}
    show_fill(axes, masks, scene.extent)
    show_outlines(axes, masks, scene.extent, dashed=False)
    show_outlines(axes, {label: mask[..., index] for label, mask in scene.truths.items()}, scene.extent, dashed=True)
    _draw_points(axes, scene, index)
    axes.set_ylim(window[1], window[0])
    axes.set_xlim(window[2], window[3])


def _draw_reference(axes: Axes, panel: ReferencePanel, directions: str, size: tuple[float, float]) -> None:
    """Draw a reference at the scale of the other slices, its annotation in the middle."""
    show_image(axes, _plane(panel.image), panel.extent)
    show_outlines(axes, panel.masks, panel.extent, dashed=True)
    top, left = view_corner(panel.masks, panel.extent, size)
    axes.set_ylim(top + size[0], top)
    axes.set_xlim(left, left + size[1])
    show_text(axes, 0.02, 0.02, panel.title, color=REFERENCE)
    show_sides(axes, directions)


def _plane(image: np.ndarray) -> np.ndarray:
    """Turn [C, H, W] into [H, W] or [H, W, 3]."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _draw_points(axes: Axes, scene: Scene, index: int) -> None:
    (height, width), (rows, columns) = scene.extent, scene.image.shape[1:3]
    for label, x, y, positive in scene.points.get(index, []):
        edge = colour_of(list(scene.predictions).index(label)) if label in scene.predictions else "black"
        axes.plot(
            (x + 0.5) * width / columns,
            (y + 0.5) * height / rows,
            linestyle="none",
            marker="*" if positive else "X",
            markersize=10 if positive else 8,
            markerfacecolor=POSITIVE if positive else NEGATIVE,
            markeredgecolor=edge,
            markeredgewidth=0.8,
        )


def _annotate(
    axes: Axes, scene: Scene, index: int, window: tuple[float, float, float, float], reason: str, first: bool
) -> None:
    depth = scene.image.shape[-1]
    score, flagged = scene.scores.get(index, (None, False))
    number = [f"slice {index} of 0-{depth - 1}" if first else f"{index}"] if depth > 1 else []
    why = [*([reason] if reason else []), *([f"score {score:.2f}"] if score is not None else [])]
    lines = [*number, *([", ".join(why)] if why else []), *(["look at this"] if flagged else [])]
    show_text(axes, 0.02, 0.98, "\n".join(lines), va="top")
    if first and scene.directions:
        show_sides(axes, scene.directions)
        length = _bar_length(window[3] - window[2])
        right, bottom = window[3] - 0.03 * (window[3] - window[2]), window[1] - 0.04 * (window[1] - window[0])
        axes.plot([right - length, right], [bottom, bottom], color="white", linewidth=2)
        show_text(axes, 0.97, 0.055, f"{length:g} mm", ha="right", va="bottom")


def _legend_handles(scene: Scene) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [
        Patch(color=colour_of(number), label=label) for number, label in enumerate(scene.predictions)
    ]
    handles.append(Patch(facecolor=(0.75, 0.75, 0.75, 0.25), edgecolor="white", label="prediction"))
    annotated = [*(["true label"] if scene.truths else []), *(["reference"] if scene.reference else [])]
    if annotated:
        name = " and ".join(annotated)
        handles.append(Line2D([], [], color="white", linewidth=1.4, linestyle=(0, (2.2, 1.4)), label=f"dashes: {name}"))
    if any(scene.points.values()):
        for marker, colour, name in (("*", POSITIVE, "positive point"), ("X", NEGATIVE, "negative point")):
            handles.append(Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=8, label=name))
    return handles


def _legend_columns(handles: Sequence[Patch | Line2D], figure_width: float) -> int:
    """Entries that fit side by side into ``figure_width`` inches: all, or as many as the widest allows."""
    widths = [0.38 + 0.068 * len(str(handle.get_label())) for handle in handles]
    return len(handles) if sum(widths) <= figure_width else max(1, int(figure_width / max(widths)))


def _zoom(scene: Scene, slices: Sequence[int]) -> tuple[float, float, float, float]:
    """Window (top, bottom, left, right) in mm around what the slices hold, with a wide margin.

    At least half of the field of view is shown in each direction, all of it where nothing is held.
    """
    occupied = np.any(scene.occupied[..., slices], axis=-1)
    marks = [(x, y) for index in slices for _, x, y, _ in scene.points.get(index, [])]
    if not occupied.any() and not marks:
        return 0.0, scene.extent[0], 0.0, scene.extent[1]
    window: list[float] = []
    for axis, side in enumerate(scene.extent):
        held = (np.unique(occupied.nonzero()[axis]) + 0.5) * scene.spacing[axis]
        placed = [(mark[1 - axis] + 0.5) * side / scene.image.shape[1 + axis] for mark in marks]
        values = np.concatenate([held, placed])
        length = min(side, max(side / 2, 1.8 * float(np.ptp(values))))
        start = min(max(0.0, float(values.min() + values.max() - length) / 2), side - length)
        window += [start, start + length]
    return window[0], window[1], window[2], window[3]


def _bar_length(width: float) -> float:
    """Longest round length in mm below a quarter of ``width``."""
    return max((n for n in (1, 2, 5, 10, 20, 50, 100) if n <= width / 4), default=1)


def _title(case: Mapping[str, Any]) -> str:
    name, patient, visit = str(case["case"]), case.get("patient"), case.get("visit")
    parts = [name]
    if patient and str(patient) not in name:
        parts.append(f"patient {patient}")
    if visit is not None:
        parts.append(f"visit {visit}")
    return "   ".join(parts)


def _scores(details: CaseDetails) -> dict[int, tuple[float, bool]]:
    """Lowest review score of each slice, and whether any of its structures is flagged."""
    found: dict[int, tuple[float, bool]] = {}
    for row in details.rows:
        if row.get("score") is not None:
            score, flagged = found.get(row["slice"], (1.0, False))
            found[row["slice"]] = min(score, row["score"]), flagged or row["flagged"]
    return found


def _verdict(scores: Mapping[int, tuple[float, bool]]) -> str:
    """Say how many slices the review flags; "" without a review."""
    flagged = sum(flag for _, flag in scores.values())
    return f"{flagged} of {len(scores)} slices to look at" if scores else ""


def _lies_in_black(scene: Scene) -> bool:
    """Whether the largest predicted, or else true, structure is surrounded by what the window shows as black."""
    index = int(scene.occupied.sum(axis=(0, 1)).argmax())
    mask = scene.occupied[..., index]
    grey = scene.image[0, ..., index]
    rows, columns = (np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(grey.shape, mask.shape, strict=True))
    return is_dark_around(grey[np.ix_(rows, columns)], mask)
