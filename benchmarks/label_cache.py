"""What a MONAI Label server's inferer does for a patient's second request against the first, and its memory.

Run by hand: ``python benchmarks/label_cache.py`` (SAM's ViT-B, 1024 x 1024) or ``... --variant compact`` for a first
look. A request is one slice with one structure, weights are random and seeded. The first request of a patient encodes
the reference and the target, the second the target alone. Each patient gives one ratio; times are those of all the
process' threads, so that other work on the machine counts little, and the wall's beside them.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time

import torch
from monai.data import MetaTensor

from monai_ext.inferers.p2sam import P2SamInferer
from monai_ext.inferers.reference import ReferenceLoader
from monai_ext.networks.sam import PromptableSam, build_sam
from monai_ext.transforms.request import REQUEST

LEAST_RATIO = {"vit_b": 1.7, "compact": 1.0}
"""About 2 is asked for, less what both do beside encoding. The compact encoder is a small part of a request."""
MOST_GROWTH = 20.0
"""MB from the tenth request of the last part to its end."""
STRUCTURE = {"structure": 1}


def random_network(variant: str) -> PromptableSam:
    """Seeded weights; positions and prompts weigh enough that masks differ and are not empty."""
    torch.manual_seed(0)
    network = build_sam(variant)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.1)
        for embedding in network.prompt_encoder.point_embeddings:
            embedding.weight *= 4
    return network


def make_image(seed: int, side: int) -> MetaTensor:
    """One slice [1, side, side, 1] in the input frame: noise, brighter where the structure is."""
    values = torch.rand(1, side, side, 1, generator=torch.Generator().manual_seed(seed)) * 128
    values[:, side // 4 : side // 2, side // 4 : side // 2] += 127
    return MetaTensor(values, affine=torch.eye(4), meta={"plane_size": (side, side), "slice_axis": "S"})


class Requests:
    """Sends requests to an inferer as a server does, the reference and its label in the image's meta."""

    def __init__(self, variant: str) -> None:
        self.network = random_network(variant)
        side = self.side = self.network.image_size
        label = torch.zeros(1, side, side, 1)
        label[:, side // 4 : side // 2, side // 4 : side // 2] = 1

        def load(item: dict) -> dict:
            return {"image": make_image(int(item["image"]), side), "label": label}

        self.inferer = P2SamInferer(STRUCTURE, ReferenceLoader(load, STRUCTURE))

    def __call__(self, patient: int, visit: int) -> tuple[float, float]:
        """Return the processor's and the wall's seconds of one request."""
        image = make_image(1000 + visit, self.side)
        files = [str(patient)]
        image.meta[REQUEST] = {"reference_image": files, "reference_label": files, "labels": STRUCTURE}
        processor, wall = time.process_time(), time.perf_counter()
        logits = self.inferer(image[None], self.network)
        if not bool((logits > 0).any()):
            raise RuntimeError("a request made no mask")
        return time.process_time() - processor, time.perf_counter() - wall


def peak() -> float:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Print times, ratios and memory; 1 if less than asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=LEAST_RATIO, default="vit_b")
    parser.add_argument("--patients", type=int, default=5, help="ratios")
    parser.add_argument("--requests", type=int, default=50, help="for the memory, five patients in turns; 0: skip it")
    given = parser.parse_args()
    request = Requests(given.variant)
    request(0, 0)  # warm-up, another patient
    firsts, seconds = [], []
    for patient in range(1, given.patients + 1):
        firsts.append(request(patient, 1))
        seconds.append(request(patient, 2))
    good = True
    for number, clock in enumerate(("processor", "wall")):
        first, second = ([times[number] for times in group] for group in (firsts, seconds))
        ratios = [a / b for a, b in zip(first, second, strict=True)]
        ratio = statistics.median(ratios)
        print(
            f"{given.variant}, {clock} time: first {statistics.median(first):.2f} s, second "
            f"{statistics.median(second):.2f} s, {ratio:.2f} x ({min(ratios):.2f} to {max(ratios):.2f} of "
            f"{len(ratios)} patients)"
        )
        good &= clock == "wall" or ratio >= LEAST_RATIO[given.variant]
    held = []
    for number in range(given.requests):
        request(number % 5, number)
        held.append(peak())
    if len(held) > 10:
        print(f"peak memory {held[9]:.0f} MB after 10 requests, {held[-1]:.0f} MB after {len(held)}")
        good &= held[-1] - held[9] <= MOST_GROWTH
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
