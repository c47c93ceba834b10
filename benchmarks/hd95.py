"""HD95 against MONAI's, in one run: the same values, and how many times faster.

Run by hand: ``python benchmarks/hd95.py``. Ratios depend on the machine; the values must agree to 1e-5.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance

from monai_ext.metrics.surface import hd95

LEAST = {"2-D 256 x 256": 5.0, "small lesion": 10.0, "large organ": 1.5}


def ellipsoid(shape: Sequence[int], centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Draw a filled ellipsoid, bool of ``shape``; centre and radii in voxels."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)) < 1


def best_of(repeats: int, call: Callable[[], float]) -> tuple[float, float]:
    """Return the value of ``call`` and its shortest time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = call()
        times.append(time.perf_counter() - start)
    return value, min(times)


def main() -> int:
    """Print one line a case; 1 if a value differs or is slower than asked for."""
    torch.set_num_threads(1)
    plane, volume, mm = (256, 256), (512, 512, 100), (0.8, 0.8, 2.5)
    cases = (
        ("2-D 256 x 256", 20, plane, (1.0, 1.0), ((100, 120), (40, 30)), ((108, 118), (38, 35))),
        ("small lesion", 3, volume, mm, ((200, 200, 50), (15, 12, 6)), ((203, 201, 51), (13, 14, 6))),
        ("large organ", 3, volume, mm, ((250, 250, 50), (150, 100, 40)), ((255, 248, 51), (145, 104, 40))),
    )
    worst, good = 0.0, True
    for name, repeats, shape, spacing, one, other in cases:
        reference, prediction = ellipsoid(shape, *one), ellipsoid(shape, *other)
        tensors = [torch.from_numpy(m)[None, None].float() for m in (prediction, reference)]

        def monai(tensors: list[torch.Tensor] = tensors, spacing: tuple[float, ...] = spacing) -> float:
            return compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing).item()

        theirs, slow = best_of(repeats, monai)
        ours, fast = best_of(repeats, lambda r=reference, p=prediction, s=spacing: hd95(r, p, s))  # type: ignore[misc]
        worst = max(worst, abs(theirs - ours))
        good &= slow / fast >= LEAST[name]
        print(f"{name:14s} {ours:8.4f} mm  MONAI {slow * 1e3:8.2f} ms  here {fast * 1e3:8.2f} ms  {slow / fast:5.1f} x")
    print(f"largest difference {worst:.1e}")
    return int(worst > 1e-5 or not good)


if __name__ == "__main__":
    sys.exit(main())
