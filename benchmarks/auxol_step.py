"""One step of AuxOL's default learner, its answer, and its memory over many corrections, on two threads.

``python benchmarks/auxol_step.py [--steps 2000] [--paper]``: seconds of a correction (loss, insertion, step on the
whole batch, copy for answering, journal and state on disk) and of an answer, peak memory after a tenth and at the end.
``--paper`` measures the paper's network and batch as well, a few steps.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from monai_ext.engines.online import AuxiliaryFusion, OnlineLearner, View
from monai_ext.engines.online.auxiliary import AuxiliarySettings
from monai_ext.prompts.crops import box_crop

SIZE = 256


def draw(number: int) -> tuple[View, torch.Tensor]:
    """Draw a bright disc with a noisy SAM and a box round it."""
    generator = torch.Generator().manual_seed(number)
    y, x, radius = 80 + 96 * torch.rand(3, generator=generator)
    radius = float(radius) / 4
    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None]
    distance = ((rows - y) ** 2 + (columns - x) ** 2).sqrt()
    truth = distance <= radius
    image = 90 + 60 * truth + 15 * torch.randn(1, SIZE, SIZE, generator=generator)
    box = torch.stack([x - radius, y - radius, x + radius, y + radius])
    return View(str(number), image.clamp(0, 255), radius - distance, box_crop(box, (SIZE, SIZE))), truth


def peak_mib() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(settings: AuxiliarySettings, steps: int) -> None:
    """Print what one learner takes."""
    with tempfile.TemporaryDirectory() as folder:
        learner = OnlineLearner(AuxiliaryFusion(settings), Path(folder) / "state")
        corrections, answers, early = [], [], 0.0
        for number in range(steps):
            view, truth = draw(number)
            start = time.perf_counter()
            pending = learner.infer(view)
            answers.append(time.perf_counter() - start)
            start = time.perf_counter()
            learner.correct(pending, truth)
            corrections.append(time.perf_counter() - start)
            if number == steps // 10:
                early = peak_mib()
    full = corrections[min(settings.batch, steps - 1) :]  # from there on the batch is full
    print(
        f"base {settings.base}, k = {settings.batch}, crop {settings.crop}: correction {median(full):.3f} s, answer "
        f"{median(answers) * 1000:.0f} ms, peak {early:.0f} MiB after {steps // 10} corrections, {peak_mib():.0f} MiB "
        f"after {steps}",
        flush=True,
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--paper", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    measure(AuxiliarySettings(sam_channel="mask"), options.steps)
    if options.paper:
        measure(AuxiliarySettings(base=64, crop=128, batch=32, sam_channel="mask"), 34)


if __name__ == "__main__":
    main()
