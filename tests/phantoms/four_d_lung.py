"""A small 4D-Lung with the chest as its patient. Needs the extra ``dicom``."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct
from phantoms.chest import cord_outline, scan_chest

_FIRST_DATE = datetime.date(2000, 11, 27)


def write_phantom_4d_lung(
    root: str | os.PathLike[str], seed: int = 0, *, visits: int = 2, gates: Sequence[int] = (0, 50)
) -> Path:
    """Write one patient of a made-up 4D-Lung: CT series of breathing gates, each with its RTSTRUCT.

    Seeds are different patients, in number and UIDs: 0 is 100_HM10395, 1 is 101_HM10396.

    Folders are named as TCIA names them, ``<root>/100_HM10395/<MM-DD-YYYY>-NA-p4-<n>/<series>/1-01.dcm``, and the
    second visit is in the next year, so that folder names sort against time (as those of one real patient do). The
    tumour (ROI ``Tumor_c<gate>``) moves with the breath, drifts and grows from visit to visit; ``Cord_c<gate>`` is
    contoured too. ROIs are stored in another order than their contours. 96 x 96 x 16 voxels of 3.7 x 3.7 x 6 mm.

    Args:
        root: where to; made where it is missing.
        seed: of the patient, of noise and texture; 0 or more.
        visits: 1 to 4.
        gates: percent of the breathing cycle.

    Returns:
        ``root``.
    """
    rng, patient = np.random.default_rng([seed, 3]), f"{100 + seed}_HM{10395 + seed}"
    for visit in range(visits):
        date = _FIRST_DATE + datetime.timedelta(days=36 * visit)
        study = Path(root) / patient / f"{date:%m-%d-%Y}-NA-p4-{14571 + 997 * visit}"
        for number, gate in enumerate(gates):
            _write_gate(study, date, visit, gate, 100 * number, seed, rng)
    return Path(root)


def _write_gate(
    study: Path, date: datetime.date, visit: int, gate: int, number: int, seed: int, rng: np.random.Generator
) -> None:
    scan = scan_chest(seed, visit, gate, rng)
    name = f"P4P100S30{visit}I{3 + gate // 10:05d} Gated {gate}.0A"
    description = f"P4^P100^S30{visit}^I{3 + gate // 10:05d}, Gated, {gate}.0%A"
    files = write_ct_series(
        study / f"1.000000-{name}-{29193 + number}",
        scan.image,
        scan.affine,
        patient_id=study.parent.name,
        study_date=date,
        series_description=description,
        reverse=visit % 2 == 1,
    )
    heights = scan.affine[2, 3] + scan.affine[2, 2] * np.arange(scan.image.shape[2])
    drawn = [outline for h in heights if (outline := scan.tumour.contour(float(h))) is not None]
    cord = [cord_outline(float(h)) for h in heights]
    write_rtstruct(
        study / f"1.000000-{name}-423.{number // 100 + 1}" / "1-1.dcm",
        files,
        {f"Cord_c{gate:02d}": cord, f"Tumor_c{gate:02d}": drawn},
        shuffle=True,
        series_description=description,
    )
