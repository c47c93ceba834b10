"""What few-shot segmentation reports over episodes: class-wise mIoU, FB-IoU and Dice per case.

Both IoU pool intersections and unions over all episodes before they divide (Shaban et al. 2017; Rakelly et al. 2018).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

Key = tuple[Hashable, str]


@dataclass
class EpisodeCounts:
    """Counts pixels episode by episode.

    >>> counts = EpisodeCounts()
    >>> counts.add("liver", "case1", prediction, truth, valid)  # each [..., H, W], bool  # doctest: +SKIP
    >>> counts.class_iou(), counts.fb_iou(), counts.case_dice()  # doctest: +SKIP
    """

    _sums: dict[Key, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0, 0]))

    def add(self, name: str, case: Hashable, prediction: Tensor, truth: Tensor, valid: Tensor | None = None) -> None:
        """Count one episode.

        Args:
            name: of the class.
            case: of the query; episodes of one case and class are pooled for its Dice.
            prediction: bool, of any shape.
            truth: bool, the same shape.
            valid: bool, pixels that count; None: all.
        """
        counted = truth.new_ones(truth.shape) if valid is None else valid
        cells = (prediction & truth, prediction & ~truth, ~prediction & truth, ~prediction & ~truth)
        sums = self._sums[case, name]
        for k, cell in enumerate(cells):
            sums[k] += int((cell & counted).sum())

    def _of_class(self, name: str) -> np.ndarray:
        """Return true positives, false positives, false negatives and true negatives of a class."""
        return np.sum([sums for (_, own), sums in self._sums.items() if own == name], axis=0)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted."""
        return sorted({name for _, name in self._sums})

    def class_iou(self) -> dict[str, float]:
        """Return the foreground's IoU of each class; 0 where neither prediction nor truth shows it."""
        return {name: _ratio(tp, tp + fp + fn) for name in self.classes for tp, fp, fn, _ in [self._of_class(name)]}

    def mean_iou(self) -> float:
        """Return the mean of :meth:`class_iou` over the classes: mIoU."""
        return float(np.mean(list(self.class_iou().values())))

    def fb_iou(self) -> float:
        """Return the mean of the IoU of foreground and background, the classes not told apart: FB-IoU."""
        tp, fp, fn, tn = np.sum(list(self._sums.values()), axis=0)
        return (_ratio(tp, tp + fp + fn) + _ratio(tn, tn + fp + fn)) / 2

    def case_dice(self) -> dict[Key, float]:
        """Return the Dice of each (case, class), over all episodes of the case."""
        return {key: _ratio(2 * tp, 2 * tp + fp + fn) for key, (tp, fp, fn, _) in self._sums.items()}

    def mean_dice(self) -> float:
        """Return the mean of :meth:`case_dice` over the cases of a class, then over the classes."""
        values: dict[str, list[float]] = defaultdict(list)
        for (_, name), value in self.case_dice().items():
            values[name].append(value)
        return float(np.mean([np.mean(of_class) for of_class in values.values()]))


def _ratio(common: float, whole: float) -> float:
    return float(common / whole) if whole else 0.0
