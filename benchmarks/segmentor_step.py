"""What SAM-SP's engine costs: its training step beside a plain loop over the same network.

Run by hand: ``python benchmarks/segmentor_step.py [--size 256] [--batch 4] [--steps 30]
[--cpu]``. Slices are random, on disk
as training cuts them. Both ways do the same work: draw a batch, augment it, the losses of variant ``sam_sp``, SGD with
the same schedule. The loop is what one would write in a script, without an engine, progress, curves or checkpoints. The
two take turns of a few steps, so that both see the same machine; times are medians over the steps. The share of data
loading is measured on its own, in the process that trains, as both load. The weights must be the same at the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader

from monai_ext.data.scribble_slices import ScribbleDataset, ShuffledSampler, store_scribbles
from monai_ext.engines.segmentor import SegmentorIteration, SegmentorTraining
from monai_ext.handlers.training import stage_handlers
from monai_ext.networks.dual_branch_unet import build_segmentor
from monai_ext.transforms.augment import ScribbleAugment

MOST = 1.1
clock = time.process_time if "--cpu" in sys.argv else time.perf_counter
CLASSES, SLICES, TURN = 4, 40, 5


def random_slices(folder: Path, size: int) -> ScribbleDataset:
    """Cut random slices of ``size`` x ``size``, a twentieth of the pixels scribbled on, with random pseudo-labels."""
    rng = np.random.default_rng(0)
    shape = (size, size, SLICES)
    image = MetaTensor(torch.from_numpy(rng.uniform(0, 255, (1, *shape)).astype(np.float32)), affine=torch.eye(4))
    drawn = np.where(rng.random(shape) < 0.05, rng.integers(0, CLASSES, shape), CLASSES)
    scribble = MetaTensor(torch.from_numpy(drawn[None].astype(np.float32)), affine=torch.eye(4))
    case = {"case": "random", "patient": "random", "image": "image", "scribble": "scribble"}
    labels = {f"class {value}": value for value in range(1, CLASSES)}
    stored = store_scribbles(
        [case], lambda item: {**item, "image": image, "scribble": scribble}, folder, labels, CLASSES
    )
    coarse = torch.from_numpy(rng.integers(0, CLASSES, (SLICES, 1, 16, 16)).astype(np.float32))
    target = F.interpolate(coarse, (size, size), mode="nearest-exact")[:, 0].numpy().astype(np.uint8)
    return ScribbleDataset(stored, size, {"random": target})


def plain_loop(dataset: ScribbleDataset, network: nn.Module, batch: int, steps: int) -> Iterator[tuple[float, float]]:
    """Train step by step; yield the seconds of a step and of loading its batch."""
    step = SegmentorIteration("sam_sp")
    augment = ScribbleAugment()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    scheduler = PolynomialLR(optimizer, steps, power=0.9)
    loader = iter(DataLoader(dataset, batch_size=batch, sampler=ShuffledSampler(len(dataset), steps * batch)))
    network.train()
    for number in range(1, steps + 1):
        start = clock()
        item = next(loader)
        loaded = clock()
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(-number)
        image, maps = augment(item["image"], torch.stack([item["scribble"], item["target"]], dim=1), generator)
        optimizer.zero_grad()
        losses = step.losses(network.branches(image), maps[:, 0], maps[:, 1], 0.0)  # type: ignore[operator]
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        scheduler.step()
        yield clock() - start, loaded - start


class Turns:
    """Times the engine's steps, and lets the loop take its turn between them, outside of the time taken.

    Attached last: a step is from the end of the one before, over loading and all other handlers, to here.
    """

    def __init__(self, loop: Iterator[tuple[float, float]]) -> None:
        self.loop = loop
        self.ours: list[float] = []
        self.plain: list[tuple[float, float]] = []
        self._clock = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop)

    def _start(self, engine: Engine) -> None:
        self._clock = clock()

    def _stop(self, engine: Engine) -> None:
        self.ours.append(clock() - self._clock)
        if len(self.ours) % TURN == 0:
            self.plain += list(islice(self.loop, TURN))
        self._clock = clock()


def main() -> int:
    """Print the table; 1 where more was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cpu", action="store_true", help="seconds of this process on the CPU, not by the wall")
    given = parser.parse_args()
    if given.steps < 2 * TURN or given.steps % TURN:
        parser.error(f"--steps must be a multiple of {TURN}, at least {2 * TURN}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = random_slices(folder / "slices", given.size)
        torch.manual_seed(0)
        network = build_segmentor(CLASSES)
        other = build_segmentor(CLASSES)
        other.load_state_dict(network.state_dict())
        turns = Turns(plain_loop(dataset, other, given.batch, given.steps))
        training = SegmentorTraining(
            network,
            SegmentorIteration("sam_sp", augment=ScribbleAugment()),
            lambda *stage: [*stage_handlers(*stage), turns],
            iterations=given.steps,
            epoch_length=given.steps,
            batch_size=given.batch,
        )
        trained = training.run(dataset, folder / "training")
        same = all(torch.equal(a, b) for a, b in zip(trained.parameters(), other.parameters(), strict=True))
    return report(turns.ours[TURN:], turns.plain[TURN:], same)


def report(ours: list[float], plain: list[tuple[float, float]], same: bool) -> int:
    """Print medians and the ratio; the first turn, which warms up, is left out before."""
    engine, loop = statistics.median(ours), statistics.median(seconds for seconds, _ in plain)
    loading = statistics.median(loaded / seconds for seconds, loaded in plain)
    print(f"{len(ours)} steps each; a step of the engine {engine:.2f} s, of the plain loop {loop:.2f} s")
    print(f"ratio {engine / loop:.3f} (asked for: at most {MOST}); loading is {loading:.1%} of a step")
    print(f"weights at the end are {'the same' if same else 'NOT the same'}")
    return int(engine / loop > MOST or not same)


if __name__ == "__main__":
    sys.exit(main())
