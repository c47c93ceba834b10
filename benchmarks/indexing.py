"""Indexing 500 DICOM files of 512 x 512 pixels by the documented command, timed.

Run by hand: ``python benchmarks/indexing.py``. Writes a phantom 4D-Lung of five visits with 100 slices each (260 MB)
and its contours to a temporary folder, indexes it twice (the second run converts nothing) and prints the times.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct

SHAPE, SPACING = (512, 512, 100), (0.98, 0.98, 3.0)
VISITS = 5


def write_download(root: Path) -> int:
    """Write the visits and return the number of CT files."""
    rng = np.random.default_rng(0)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    phi = 2 * np.pi * np.arange(120) / 120
    count = 0
    for visit in range(VISITS):
        date = datetime.date(2000, 11, 27) + datetime.timedelta(days=14 * visit)
        study = root / "100_HM10395" / f"{date:%m-%d-%Y}-NA-p4-{visit}"
        hu = rng.normal(-300, 300, SHAPE)  # noise: the worst case for compression
        name = "P4^P100^S300^I00003, Gated, 0.0%A"
        files = write_ct_series(
            study / "ct", hu, affine, patient_id="100_HM10395", study_date=date, series_description=name
        )
        x, y = 200 + 25 * np.cos(phi), 250 + 20 * np.sin(phi)
        outlines = [np.stack([x * SPACING[0], y * SPACING[1], 0 * x + k * SPACING[2]], axis=1) for k in range(30, 60)]
        write_rtstruct(study / "rt" / "1-1.dcm", files, {"Tumor_c00": outlines})
        count += len(files)
    return count


def main() -> int:
    """Print the times of a first and a second run; 1 if the command fails."""
    with tempfile.TemporaryDirectory() as folder:
        root, output = Path(folder) / "4D-Lung", Path(folder) / "4d_lung.json"
        count = write_download(root)
        command = [sys.executable, "-m", "monai_ext.data.indexing", "4d_lung", str(root), "-o", str(output)]
        for run in ("first run", "second run"):
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            print(f"{run}: {count} CT files in {time.perf_counter() - start:.1f} s")
            if done.returncode:
                print(done.stderr)
                return 1
        print(done.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
