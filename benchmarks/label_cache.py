"""The second request of a patient against the first, and memory over 50 requests.

Run by hand: ``python benchmarks/label_cache.py`` (random ViT-B, 1,024 pixels) or ``... compact`` (random weights).
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import torch
from monai.data import MetaTensor

from monai_ext.inferers.p2sam import P2SamInferer
from monai_ext.inferers.reference import ReferenceLoader
from monai_ext.networks.sam import build_sam
from monai_ext.transforms.request import REQUEST


def make_image(seed: int, side: int) -> MetaTensor:
    """One slice [1, side, side, 1] of noise in the input frame."""
    values = torch.rand(1, side, side, 1, generator=torch.Generator().manual_seed(seed)) * 255
    return MetaTensor(values, affine=torch.eye(4), meta={"plane_size": (side, side), "slice_axis": "S"})


def main() -> int:
    """Print both times, their ratio and the memory of 50 requests; 1 if memory grows by more than 20 MB."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    variant = sys.argv[1] if len(sys.argv) > 1 else "vit_b"
    network = build_sam(variant)
    side = network.image_size
    label = torch.zeros(1, side, side, 1)
    label[:, side // 4 : side // 2, side // 4 : side // 2] = 1

    def load(item: dict) -> dict:
        return {"image": make_image(int(item["image"]), side), "label": label}

    inferer = P2SamInferer({"structure": 1}, ReferenceLoader(load, {"structure": 1}))

    def request(patient: int, visit: int) -> float:
        image = make_image(1000 + visit, side)
        names = [str(patient)]
        image.meta[REQUEST] = {"reference_image": names, "reference_label": names, "labels": {"structure": 1}}
        start = time.perf_counter()
        inferer(image[None], network)
        return time.perf_counter() - start

    request(0, 0)  # warm-up, another patient
    first, second = request(1, 1), request(1, 2)
    print(f"{variant}: first request {first:.2f} s, second {second:.2f} s, {first / second:.2f} x")
    if variant != "compact":
        return 0
    used = []
    for number in range(50):
        request(number % 5, number)
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"50 requests of 5 patients: {used[9]:.0f} MB after 10, {used[-1]:.0f} MB after 50")
    return int(np.diff(used[9:]).sum() > 20)


if __name__ == "__main__":
    sys.exit(main())
