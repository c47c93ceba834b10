"""A server on a phantom patient, whose mask is compared with that of ``python -m monai.bundle run``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from monai_ext.data.images import read_geometry, read_label
from monai_ext.data.manifest import load_datalist
from monai_ext.data.phantoms import write_phantom_patient
from monai_ext.errors import UserError
from monai_ext.label.layout import prepare
from monai_ext.label.server import infer, running

DEMO_WEIGHTS = "compact_chaos"  # has learned from phantoms, which the default weights are poor on
AFFINE_ERROR = 1e-4
"""mm: MONAI Label writes NIfTI through ITK, which keeps single precision."""


def demo(folder: Path, bundle: Path) -> None:
    """Serve the phantom patient's second visit and compare with the same visit run by ``python -m monai.bundle run``.

    Raises:
        UserError: the masks or their affines differ.
    """
    datalist = write_phantom_patient(folder / "phantom")
    app = prepare(datalist, folder, bundle)
    study = load_datalist(datalist).cases[1].case
    served = folder / f"{study}_served.nii.gz"
    with running(app, folder / "studies", folder / "server.log", bundle.name) as url:
        print(f"MONAI Label is at {url}; asking for {study}")
        served.write_bytes(
            infer(url, study, {"device": "cpu", "model_filename": f"{DEMO_WEIGHTS}.pt"}, bundle=bundle.name)
        )
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", f"['{bundle / 'configs' / 'inference.yaml'}']", "--bundle_root", str(bundle)]
    command += ["--datalist", str(datalist), "--output_dir", str(folder / "run"), "--device", "cpu"]
    command += ["--checkpoint", DEMO_WEIGHTS]
    subprocess.run(command, check=True)
    expected = folder / "run" / "masks" / f"{study}.nii.gz"
    difference = compare(served, expected)
    print(f"{served}: identical to {expected}, affines within {difference:.0e} mm")


def compare(served: Path, expected: Path) -> float:
    """Return the largest difference of two masks' affines, in mm.

    Raises:
        UserError: voxels differ, or the affines by more than :data:`AFFINE_ERROR`.
    """
    one, other = read_label(served), read_label(expected)
    if not one.any() or one.shape != other.shape or not np.array_equal(one, other):
        same = one.any() and one.shape == other.shape
        wrong = f"{(one != other).sum()} voxels differ" if same else "it is empty or of another shape"
        raise UserError(f"{served} is not {expected}: {wrong}; this is a fault of the bundle, please report it.")
    affines = [read_geometry(path).affine for path in (served, expected)]
    difference = 0.0 if affines[0] is None or affines[1] is None else float(abs(affines[0] - affines[1]).max())
    if difference > AFFINE_ERROR:
        raise UserError(f"the affines of {served} and {expected} differ by {difference:.2g} mm.")
    return difference
