"""How long a folder of masks takes to score, and whether memory grows with the number of cases.

Run by hand: ``python benchmarks/scoring.py``. Draws 2,000 frames of 384 x 288 with three labels and 20 volumes of
512 x 512 x 100 with small lesions (seeded) into a temporary folder, and scores them as a user does, by the command
line with two processes. Each must take less than 60 s on two free cores; a further frame may add 20 kB to the
peak memory, for its rows (its mask has 110 kB).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

LIMIT_SECONDS = 60
LIMIT_BYTES_A_CASE = 20_000
FRAME, VOLUME, SPACING_MM = (384, 288), (512, 512, 100), (0.8, 0.8, 2.5)
LABELS = {"a": 1, "b": 2, "c": 3}


def draw_blob(mask: np.ndarray, value: int, centre: np.ndarray, radii: np.ndarray) -> None:
    """Set an ellipsoid in ``mask``; centre and radii in voxels."""
    low = np.maximum(np.floor(centre - radii), 0).astype(int)
    high = np.minimum(np.ceil(centre + radii) + 1, mask.shape).astype(int)
    axes = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    inside = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)) <= 1
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))][inside] = value


def draw_pair(rng: np.random.Generator, shape: tuple[int, ...], labels: list[int], radii: tuple[float, float]):
    """Return a reference and a prediction that is a little off, uint8 of ``shape``."""
    reference, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for value in labels:
        centre = rng.uniform(0.2, 0.8, len(shape)) * shape
        size = rng.uniform(*radii, len(shape))
        draw_blob(reference, value, centre, size)
        draw_blob(prediction, value, centre + rng.normal(0, 1.5, len(shape)), size * rng.uniform(0.9, 1.1))
    return reference, prediction


def write_frames(folder: Path, count: int) -> Path:
    """Write frames, a patient for every five, and their data list."""
    rng = np.random.default_rng(0)
    (folder / "predictions").mkdir(parents=True)
    cases = []
    for number in range(count):
        name = f"frame{number:04d}"
        pair = draw_pair(rng, FRAME, list(LABELS.values()), (15, 50))
        for mask, path in zip(pair, (folder / f"{name}.png", folder / "predictions" / f"{name}.png"), strict=True):
            Image.fromarray(mask.T).save(path, compress_level=1)
        files = {"image": f"{name}.png", "label": f"{name}.png"}
        cases.append({"case": name, "patient": f"p{number // 5}", "visit": number % 5, **files})
    return write_list(folder, LABELS, cases)


def write_volumes(folder: Path, count: int) -> Path:
    """Write volumes with small lesions, one a patient, and their data list."""
    rng = np.random.default_rng(1)
    (folder / "predictions").mkdir(parents=True)
    affine = np.diag([*SPACING_MM, 1.0])
    cases = []
    for number in range(count):
        name = f"volume{number:02d}"
        pair = draw_pair(rng, VOLUME, [1, 1, 1], (5, 15))
        for mask, path in zip(
            pair, (folder / f"{name}.nii.gz", folder / "predictions" / f"{name}.nii.gz"), strict=True
        ):
            nib.save(nib.Nifti1Image(mask, affine), path)
        files = {"image": f"{name}.nii.gz", "label": f"{name}.nii.gz"}
        cases.append({"case": name, "patient": name, "visit": 0, **files})
    return write_list(folder, {"lesion": 1}, cases)


def write_list(folder: Path, labels: dict[str, int], cases: list[dict]) -> Path:
    """Write a data list."""
    path = folder / "list.json"
    path.write_text(json.dumps({"dataset": "drawn", "labels": labels, "cases": cases}))
    return path


def score(datalist: Path, workers: int) -> tuple[float, int]:
    """Score a folder by the command line; return seconds and the peak memory of its largest process in bytes."""
    output = datalist.parent / f"scores_{workers}"
    command = [sys.executable, "-m", "monai_ext.evaluation.score", "--datalist", str(datalist)]
    command += ["--predictions", str(datalist.parent / "predictions")]
    command += ["--output_dir", str(output), "--workers", str(workers)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds = time.perf_counter() - start
    return seconds, json.loads((output / "run.json").read_text())["peak_memory_bytes"]


def main() -> int:
    """Print a line a measurement; 1 if one is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        results = {}
        for name, write, count in (
            ("200 frames", write_frames, 200),
            ("2,000 frames", write_frames, 2_000),
            ("20 volumes", write_volumes, 20),
        ):
            results[name] = score(write(root / name.replace(" ", "_"), count), workers)
            seconds, peak = results[name]
            print(f"{name:14s} {seconds:6.1f} s with {workers} processes, peak {peak / 1e6:6.1f} MB", flush=True)
    growth = (results["2,000 frames"][1] - results["200 frames"][1]) / 1_800
    print(f"memory of a further frame: {growth / 1e3:.1f} kB")
    slow = [name for name, (seconds, _) in results.items() if seconds > LIMIT_SECONDS]
    return int(bool(slow) or growth > LIMIT_BYTES_A_CASE)


if __name__ == "__main__":
    sys.exit(main())
