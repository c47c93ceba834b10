"""What a query slice costs APSCL: with the support kept, and with support and query encoded anew.

Run by hand: ``python benchmarks/few_shot.py [--trunk tf_efficientnet_lite0] [--size 256] [--repeats 20] [--cpu]``.
Weights are random, which changes no cost. The two take turns, so that both see the same machine; times are medians.
Multiply-adds are counted by ``torch.utils.flop_counter`` (two operations each), of the convolutions and products.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from monai_ext.networks.prototype_net import PrototypeNet, Support, build_prototype_net
from monai_ext.networks.trunk_stages import LITE0

LEAST = 1.9
clock = time.process_time if "--cpu" in sys.argv else time.perf_counter


def make_support(network: PrototypeNet, image: Tensor, mask: Tensor) -> Support:
    features = network.enrich(network.encode(image).features).features
    support = network.make_support(features, network.shares(mask), network.valid_share(tuple(mask.shape[-2:])))
    assert support is not None
    return support


def segment(network: PrototypeNet, image: Tensor, support: Support) -> Tensor:
    features = network.enrich(network.encode(image).features).features
    return network.to_image(network.compare(features[0], support)[None], tuple(image.shape[-2:]))


def giga_multiply_adds(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2e9


def seconds(work: Callable[[], object]) -> float:
    start = clock()
    work()
    return clock() - start


@torch.no_grad()
def main() -> int:
    """Print both ways and their ratio; 1 if it is less than :data:`LEAST`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trunk", default=LITE0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cpu", action="store_true", help="CPU seconds instead of wall-clock seconds")
    given = parser.parse_args()
    torch.manual_seed(0)
    network = build_prototype_net(given.trunk, image_size=given.size)
    support_image, query_image = (torch.rand(1, 1, given.size, given.size) * 255 for _ in range(2))
    mask = torch.zeros(1, given.size, given.size)
    mask[:, given.size // 4 : given.size // 2, given.size // 4 : given.size // 2] = 1
    kept = make_support(network, support_image, mask)
    ways: dict[str, Callable[[], Tensor]] = {
        "support kept": lambda: segment(network, query_image, kept),
        "both encoded": lambda: segment(network, query_image, make_support(network, support_image, mask)),
    }
    torch.testing.assert_close(*(way() for way in ways.values()))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, way in ways.items():
            times[name].append(seconds(way))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, way in ways.items():
        print(f"{name}: {1000 * medians[name]:.1f} ms a slice, {giga_multiply_adds(way):.2f} G multiply-adds")
    ratio = medians["both encoded"] / medians["support kept"]
    print(f"ratio of the times: {ratio:.2f} (at least {LEAST}), {given.trunk}, {given.size} x {given.size} pixels")
    return int(ratio < LEAST)


if __name__ == "__main__":
    sys.exit(main())
