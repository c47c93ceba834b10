"""Draws one picture a case: upright slices with the prediction, the true label's contour and the prompts.

Everything is placed by field of view in mm (pixels for frames), so that the image in the input frame, the
prediction on the grid of the file and the prompts lie on each other although their pixels differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from monai_ext.data.case_details import DETAILS, CaseDetails
from monai_ext.files import atomic_path
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.mask_writer import decollated, label_masks
from monai_ext.transforms.sam_input import DISPLAY_DIRECTIONS, display_spacing, to_display

COLOURS = ("#56B4E9", "#F0E442", "#FF7FC4", "#00D18F", "#FFA040", "#B79CFF", "#C8C8C8", "#C08552")
"""One a label, repeated beyond eight; told apart by colour-blind readers and visible on grey as on mucosa."""

FILL_OPACITY = 0.3
POSITIVE, NEGATIVE = "#19E619", "#FF2A2A"
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
DPI = 100


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
    """

    title: str
    image: np.ndarray
    predictions: dict[str, np.ndarray]
    truths: dict[str, np.ndarray]
    spacing: tuple[float, float]
    directions: str = ""
    points: dict[int, list[tuple[str, float, float, bool]]] = field(default_factory=dict)

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width of the field of view in mm (pixels for a frame)."""
        height, width, _ = next(iter(self.predictions.values())).shape
        return height * self.spacing[0], width * self.spacing[1]

    @cached_property
    def occupied(self) -> np.ndarray:
        """Boolean [h, w, D]: where any label is predicted or true."""
        return np.any([*self.predictions.values(), *self.truths.values()], axis=0)


class OverlayWriter:
    """Writes ``<output_dir>/overlays/<case>.png`` after every iteration of an evaluator.

    The evaluator must decollate. Drawn are at most ``max_slices`` slices, evenly spaced among those that hold
    a prediction, a true label or a prompt (the middle ones where none does), zoomed to what they hold: the
    prediction as translucent colour, the true label as a contour where the batch has "label", positive
    prompts as green stars and negative ones as red crosses. Letters on the first slice name the patient's
    sides (the picture is shown as a radiologist looks at it). The same input gives the same bytes.

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
        return Scene(
            title=" - ".join(filter(None, [_title(case), self.note])),
            image=image.cpu().numpy(),
            predictions=upright(pred.cpu().numpy()),
            truths={} if truth is None else upright(self._truth(truth.cpu().numpy(), pred.shape[1:])),
            spacing=(float(spacing[0]), float(spacing[1])),
            directions=DISPLAY_DIRECTIONS.get(image.meta["slice_axis"], ""),
            points=_points(output.get(DETAILS)),
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


def draw(scene: Scene, max_slices: int) -> Figure:
    """Draw a case as a montage of slices under a title and above a legend."""
    depth = scene.image.shape[-1]
    slices = choose_slices(
        [bool(scene.occupied[..., index].any()) or bool(scene.points.get(index)) for index in range(depth)],
        max_slices,
    )
    window = _zoom(scene, slices)
    columns = _columns(len(slices))
    rows = -(-len(slices) // columns)
    side = {1: 6.4, 2: 4.8, 3: 4.0}.get(columns, 3.2)  # inches of the longer side of a slice
    height, width = window[1] - window[0], window[3] - window[2]
    tile_height, tile_width = side * height / max(height, width), side * width / max(height, width)
    handles = _legend_handles(scene)
    gap, header = 0.04, 0.34
    figure_width = max(columns * (tile_width + gap) + gap, 4.8)
    legend_columns = _legend_columns(handles, figure_width)
    footer = 0.14 + 0.22 * -(-len(handles) // legend_columns)
    figure_height = rows * (tile_height + gap) + header + footer
    figure = Figure(figsize=(figure_width, figure_height), dpi=DPI)
    FigureCanvasAgg(figure)
    left = (figure_width - columns * (tile_width + gap) + gap) / 2
    for place, index in enumerate(slices):
        row, column = divmod(place, columns)
        x = left + column * (tile_width + gap)
        y = figure_height - header - (row + 1) * (tile_height + gap) + gap
        axes = figure.add_axes(
            (x / figure_width, y / figure_height, tile_width / figure_width, tile_height / figure_height)
        )
        _draw_slice(axes, scene, index, window)
        _annotate(axes, scene, index, window, first=place == 0)
    place_x, place_y = 0.1 / figure_width, 1 - 0.17 / figure_height
    figure.text(place_x, place_y, scene.title, color="white", fontsize=10, va="center")
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
    height, width = scene.extent
    extent = (0.0, width, height, 0.0)
    picture = scene.image[..., index].transpose(1, 2, 0).clip(0, 255) / 255
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    axes.imshow(picture, extent=extent, interpolation="bilinear")
    axes.imshow(_fill(scene.predictions, index), extent=extent, interpolation="nearest")
    for number, mask in enumerate(scene.truths.values()):
        if mask[..., index].any():
            padded = np.pad(mask[..., index], 1)
            rows, columns = ((np.arange(n) - 0.5) * s for n, s in zip(padded.shape, scene.spacing, strict=True))
            halo = withStroke(linewidth=2.4, foreground="black", alpha=0.6)
            axes.contour(
                columns, rows, padded, levels=[0.5], colors=[_colour(number)], linewidths=1.2
            ).set_path_effects([halo])
    _draw_points(axes, scene, index)
    axes.set_ylim(window[1], window[0])
    axes.set_xlim(window[2], window[3])
    axes.set_axis_off()


def _fill(masks: Mapping[str, np.ndarray], index: int) -> np.ndarray:
    """RGBA [h, w, 4] of the predictions on one slice; where labels overlap their colours are averaged."""
    planes = np.stack([mask[..., index] for mask in masks.values()]).astype(float)
    count = planes.sum(axis=0)
    colours = np.array([to_rgb(_colour(number)) for number in range(len(planes))])
    rgb = np.einsum("lhw,lc->hwc", planes, colours) / np.maximum(count, 1)[..., None]
    return np.concatenate([rgb, FILL_OPACITY * (count > 0)[..., None]], axis=-1)


def _draw_points(axes: Axes, scene: Scene, index: int) -> None:
    (height, width), (rows, columns) = scene.extent, scene.image.shape[1:3]
    for label, x, y, positive in scene.points.get(index, []):
        edge = _colour(list(scene.predictions).index(label)) if label in scene.predictions else "black"
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


def _annotate(axes: Axes, scene: Scene, index: int, window: tuple[float, float, float, float], first: bool) -> None:
    text: dict[str, Any] = {
        "transform": axes.transAxes,
        "color": "white",
        "fontsize": 8,
        "path_effects": [withStroke(linewidth=2, foreground="black")],
    }
    depth = scene.image.shape[-1]
    if depth > 1:
        axes.text(0.02, 0.98, f"slice {index} of 0-{depth - 1}" if first else f"{index}", va="top", **text)
    if first and scene.directions:
        axes.text(0.5, 0.98, OPPOSITE[scene.directions[0]], ha="center", va="top", **text)
        axes.text(0.02, 0.5, OPPOSITE[scene.directions[1]], va="center", **text)
        length = _bar_length(window[3] - window[2])
        right, bottom = window[3] - 0.03 * (window[3] - window[2]), window[1] - 0.04 * (window[1] - window[0])
        axes.plot([right - length, right], [bottom, bottom], color="white", linewidth=2)
        axes.text(0.97, 0.055, f"{length:g} mm", ha="right", va="bottom", **text)


def _legend_handles(scene: Scene) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [
        Patch(color=_colour(number), label=label) for number, label in enumerate(scene.predictions)
    ]
    handles.append(Patch(facecolor=(0.75, 0.75, 0.75, 0.5), label="filled: prediction"))
    if scene.truths:
        handles.append(Line2D([], [], color="white", linewidth=1.4, label="line: true label"))
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


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _title(case: Mapping[str, Any]) -> str:
    name, patient, visit = str(case["case"]), case.get("patient"), case.get("visit")
    parts = [name]
    if patient and str(patient) not in name:
        parts.append(f"patient {patient}")
    if visit is not None:
        parts.append(f"visit {visit}")
    return "   ".join(parts)
