"""What an inferer says of a case besides its masks: handlers find it in the engine's output, beside ``pred``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

DETAILS = "details"
"""Key of a case's :class:`CaseDetails` in the output of :class:`monai_ext.engines.case_evaluator.CaseEvaluator`."""


@dataclass
class CaseDetails:
    """What an inferer says of one case. An inferer that has nothing to say leaves it empty.

    Attributes:
        rows: one dictionary for each structure and slice, or for each prompt, with ``label``, ``slice`` and what the
            inferer's own documentation names. ``points``, [x, y, 1 or 0] in input-frame pixels, are drawn on overlays.
        maps: name -> [L, H, W, D] in the input frame, one channel a structure, such as ``variance``.
        references: that served, each with ``image`` [C, H, W, D] and ``label`` [1, H, W, D] in the input frame; none of
            methods without any.
        steps: logits [L, H, W, D] after each interaction; the last are those of the mask.

    Example:
        >>> details = CaseDetails([{"label": "LV", "slice": 3, "status": "ok", "points": [[20.0, 14.0, 1.0]]}])
        >>> engine.state.output[0]["details"].rows[0]["status"]  # in a handler, after each case
        'ok'
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    maps: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Tensor] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)
