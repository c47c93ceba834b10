"""Servers on phantoms: one whose mask is that of ``python -m monai.bundle run``, one that learns from labels."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from monai_ext.data.images import read_geometry, read_label
from monai_ext.data.manifest import Case, load_datalist
from monai_ext.data.phantoms import write_phantom_patient, write_phantom_stream
from monai_ext.errors import UserError
from monai_ext.label.layout import prepare, prepare_online
from monai_ext.label.server import infer, model_info, running, running_process, submit

DEMO_WEIGHTS = "compact_chaos"  # has learned from phantoms, which the default weights are poor on
AFFINE_ERROR = 1e-4
"""mm: MONAI Label writes NIfTI through ITK, which keeps single precision."""


def demo(folder: Path, bundle: Path, stay: bool = False) -> None:
    """Serve the phantom patient's second visit and compare with the same visit run by ``python -m monai.bundle run``.

    Args:
        folder: to write to.
        bundle: that is served.
        stay: leave the server running for a viewer until it is interrupted.

    Raises:
        UserError: the masks or their affines differ.
    """
    datalist = write_phantom_patient(folder / "phantom")
    app = prepare(datalist, folder, bundle, DEMO_WEIGHTS)
    study = load_datalist(datalist).cases[1].case
    served = folder / f"{study}_served.nii.gz"
    with running_process(app, folder / "studies", folder / "server.log", bundle.name) as (url, process):
        print(f"MONAI Label is at {url}; asking for {study}")
        served.write_bytes(infer(url, study, {"device": "cpu"}, bundle=bundle.name))
        expected = _run(datalist, folder / "run", bundle) / "masks" / f"{study}.nii.gz"
        difference = compare(served, expected)
        print(f"{served}: identical to {expected}, affines within {difference:.0e} mm", flush=True)
        if stay:
            _stay(url, process)


def _run(datalist: Path, output_dir: Path, bundle: Path) -> Path:
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", f"['{bundle / 'configs' / 'inference.yaml'}']", "--bundle_root", str(bundle)]
    command += ["--datalist", str(datalist), "--output_dir", str(output_dir), "--device", "cpu"]
    command += ["--checkpoint", DEMO_WEIGHTS]
    subprocess.run(command, check=True)
    return output_dir


def _stay(url: str, process: subprocess.Popen) -> None:
    """Wait until the user interrupts, or the server ends by itself.

    Raises:
        UserError: the server has ended.
    """
    print(f"name {url} in 3D Slicer or OHIF; stop the server with Ctrl-C", flush=True)
    try:
        process.wait()
    except KeyboardInterrupt:
        print("stopped")
        return
    raise UserError(f"the server at {url} has ended by itself: its log is server.log in the output folder.")


def online_demo(folder: Path, bundle: Path, options: Mapping[str, Any]) -> None:
    """Serve a stream of phantoms, submit the labels of the first twelve, and ask for the others before and after.

    Raises:
        UserError: the masks are no better for it.
    """
    datalist = write_phantom_stream(folder / "phantom")
    cases = load_datalist(datalist).cases
    chosen = {"checkpoint": DEMO_WEIGHTS, "sam_root": str(bundle.parent / "p2sam"), "device": "cpu", **options}
    app = prepare_online(datalist, folder, bundle, chosen)
    with running(app, folder / "studies", folder / "server.log", bundle.name) as url:
        print(f"MONAI Label is at {url}; asking for {len(cases[12:])} studies, {len(cases[:12])} are corrected")
        before = [_served_dice(url, case, bundle.name) for case in cases[12:]]
        for case in cases[:12]:
            _served_dice(url, case, bundle.name)
            submit(url, case.case, Path(str(case.label)))
        while model_info(url, bundle.name)["online"]["waiting"]:
            time.sleep(0.2)
        after = [_served_dice(url, case, bundle.name) for case in cases[12:]]
    one, other = float(np.mean(before)), float(np.mean(after))
    print(f"mean Dice {one:.3f} before, {other:.3f} after; the journal is in {folder / 'learning' / 'learners'}")
    if other <= one:
        raise UserError("the masks are no better after the corrections; this is a fault, please report it.")


def _served_dice(url: str, case: Case, model: str) -> float:
    """Ask with the box of a case and compare with its label."""
    x0, y0, x1, y1 = np.asarray(case.model_dump()["box"]).ravel().tolist()
    mask = np.asarray(Image.open(io.BytesIO(infer(url, case.case, {"roi": [x0, x1, y0, y1]}, bundle=model)))).T != 0
    truth = read_label(str(case.label)) != 0
    return 2.0 * float((mask & truth).sum()) / float(mask.sum() + truth.sum())


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
