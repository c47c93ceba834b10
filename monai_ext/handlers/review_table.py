"""Writes ``review.csv``: which masks of a run to look at first, worst first, whether or not there are labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_ext import processes
from monai_ext.data.case_details import DETAILS
from monai_ext.data.images import read_geometry
from monai_ext.errors import UserError
from monai_ext.evaluation.review import (
    FEATURE_COLUMNS,
    FEATURES,
    MEAN_OF_SHARES,
    REVIEW,
    REVIEW_COLUMNS,
    SHARES,
    Calibration,
    Scorer,
    Uncalibrated,
    missing_structures,
    read_calibration,
    review_rows,
    worst_first,
)
from monai_ext.evaluation.table import write_table
from monai_ext.files import sha256_of
from monai_ext.handlers.case_rows import CaseRows, cell_text
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.mask_writer import decollated
from monai_ext.transforms.sam_input import to_display

logger = logging.getLogger(__name__)


def check_review(review: str | Path | None, prompts: str | Path, sam: str | Path) -> None:
    """Warn where a calibration was made on other learned prompts, or beside another SAM, as far as it tells.

    Args:
        review: of :func:`monai_ext.evaluation.review.read_calibration`; None: there is none.
        prompts: file of the learned prompts of this run.
        sam: that of SAM's weights.

    Raises:
        UserError: it is no calibration.
    """
    if review is None:
        return
    made_by = read_calibration(review).made_by
    for what, key, path in (("learned prompts", "prompts", prompts), ("weights of SAM", "sam", sam)):
        if key in made_by and not sha256_of(path).startswith(made_by[key]):
            logger.warning(
                "--review %s was calibrated on other %s (sha256 %s...) than %s, so that its chances and flags need not "
                "hold: calibrate on a run of these",
                *(review, what, made_by[key], path),
            )
            return


class ReviewTable:
    """Scores the masks of each case and, where that is asked for, leaves out those that it flags.

    The rows of a case's details hold ``label``, ``slice`` and, of masks that were sought, ``features``.
    ``review_features.csv`` has all features that the method hands over, long form, for
    :mod:`monai_ext.evaluation.calibrate_review`; ``review.csv`` has ``case, patient, visit, label, slice, score, flag,
    reason, method``, lowest score first, and a line on the console names the worst case; a structure without a mask on
    any slice has the score 0. Both are written only where the method hands over features; where it does not, those of
    an earlier run go. With a calibration the details' rows get ``score`` and ``flagged``, for pictures.

    A feature of the calibration that the method does not hand over counts as the mean of those that it was calibrated
    on. A warning names it; a calibration of which the method hands over none is refused.

    Args:
        output_dir: folder of the tables.
        labels: name -> value in the masks.
        calibration: turns features into scores, or its file; None: the score is not calibrated and nothing is flagged
            (:class:`~monai_ext.evaluation.review.Uncalibrated`).
        abstain: the masks of flagged slices are emptied, before handlers that are attached later see them.
        slice_axis: "R", "A" or "S" where slices are cut orthogonal to it; None: as the image was cut.
        finished: keeps the rows of finished cases; None: they are kept in memory until the end.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Mapping[str, int],
        calibration: Calibration | str | Path | None = None,
        abstain: bool = False,
        slice_axis: str | None = None,
        finished: FinishedCases | None = None,
    ) -> None:
        self.output_dir, self.labels = Path(output_dir), dict(labels)
        self.scorer: Scorer = (
            read_calibration(calibration) if isinstance(calibration, (str, Path)) else calibration or Uncalibrated()
        )
        self.abstain, self.slice_axis = abstain, slice_axis
        self._features = CaseRows(output_dir, FEATURES, FEATURE_COLUMNS, finished)
        self._review = CaseRows(output_dir, REVIEW, REVIEW_COLUMNS, finished)
        self._warned = False

    def attach(self, engine: Engine) -> None:
        """Attach after postprocessing and before handlers that write masks."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._features.clear()
        self._review.clear()
        self._warned = False

    def _score(self, engine: Engine) -> None:
        for case, output in decollated(engine):
            names = [cell_text(case.get(key)) for key in ("case", "patient", "visit")]
            slices = [(r["label"], int(r["slice"]), r["features"]) for r in output[DETAILS].rows if "features" in r]
            features = [
                [*names, label, str(k), name, cell_text(value)]
                for label, k, known in slices
                for name, value in sorted(known.items())
            ]
            self._features.add(names[0], features)
            self._check_features({name for _, _, known in slices for name in known}, names[0])
            rows = review_rows(names, slices, self.scorer, missing_structures(output[DETAILS].rows))
            self._review.add(names[0], rows)
            if self.scorer.threshold is not None:
                _note_scores(output[DETAILS].rows, rows)
            if self.abstain:
                flagged = [(r[3], int(r[4])) for r in rows if r[4] != "" and r[6] == "1"]
                output["pred"] = self._without(output["pred"], flagged, case)

    def _check_features(self, known: set[str], case: str) -> None:
        """Compare the features of a case with those of the calibration, which may be another method's.

        Raises:
            UserError: the calibration has none of them.
        """
        if not isinstance(self.scorer, Calibration) or not known:
            return
        given = known | {MEAN_OF_SHARES} if known & set(SHARES) else known
        missing = [name for name in self.scorer.names if name not in given]
        if len(missing) == len(self.scorer.names):
            raise UserError(
                f"case {case}: --review was calibrated on {', '.join(missing)}, and this method hands over "
                f"{', '.join(sorted(known))}: calibrate on a run of this method."
            )
        if missing and not self._warned:
            logger.warning(
                "--review was calibrated on %s, too, which case %s does not have: it counts as average there",
                ", ".join(missing),
                case,
            )
            self._warned = True

    def _without(self, pred: torch.Tensor, flagged: list[tuple[str, int]], case: Mapping[str, Any]) -> torch.Tensor:
        """Return the masks without flagged slices: [1, *spatial] integer or [L, *spatial], on the file's grid."""
        kept = pred.detach().cpu().numpy().copy()
        affine = read_geometry(case["image"].meta["filename_or_obj"]).affine
        slice_axis = self.slice_axis or case["image"].meta.get("slice_axis") or None
        for label, k in flagged:
            by_channel = len(kept) == len(self.labels)
            channel = kept[list(self.labels).index(label) if by_channel else 0]
            plane = to_display(channel, affine, slice_axis)[..., k]  # a view
            plane[plane != 0 if by_channel else plane == self.labels[label]] = 0
        result = pred.clone()
        result[...] = torch.from_numpy(np.ascontiguousarray(kept)).to(pred.device)
        return result

    def _write(self, engine: Engine) -> None:
        if not processes.is_first():
            return
        if not self._features.all():
            for name in (FEATURES, REVIEW):
                (self.output_dir / name).unlink(missing_ok=True)
            return
        self._features.write()
        rows = worst_first(self._review.all())
        write_table(self.output_dir / REVIEW, REVIEW_COLUMNS, rows)
        cases = [row for row in rows if row[3] == ""]
        if cases:
            print(f"review: {self._counted(rows)}, {self._worst(cases[0])}; see {self.output_dir / REVIEW}", flush=True)

    def _counted(self, rows: list[list[Any]]) -> str:
        if self.scorer.threshold is None:
            return "not calibrated (--review)"
        slices = [row for row in rows if row[4] != ""]
        return f"{sum(row[6] == '1' for row in slices)} of {len(slices)} masks of a slice are flagged"

    def _worst(self, row: list[Any]) -> str:
        return f"worst case {row[0]} (score {float(row[5]):.2f}, {row[7]})"


def _note_scores(details: list[dict[str, Any]], rows: list[list[str]]) -> None:
    """Write the score of each slice, and whether it is flagged, into the row that it is of."""
    scores = {(row[3], row[4]): (float(row[5]), row[6] == "1") for row in rows}
    for row in details:
        if "features" in row:
            row["score"], row["flagged"] = scores[row["label"], str(int(row["slice"]))]
