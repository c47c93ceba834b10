"""One step of AuxOL's default learner, its answer beside SAM's, and its memory over many corrections, on two threads.

``python benchmarks/auxol_step.py [--steps 2000] [--threads 2] [--cpu] [--paper]``: seconds of a correction (loss,
insertion, step on the whole batch, copy for answering, journal and state on disk), memory after a tenth and at the
end, and an answer against what ``compact`` takes to encode and decode the image; both take turns. ``--cpu`` counts
processor time, for a machine that does other work as well. ``--paper`` measures the paper's network and batch too, a
few steps, ``--small`` a tiny network in place of the default. Ends with 1 where a promise is broken: a correction of
at most 0.5 s, an image with AuxOL at most 1.5 times one without, memory that grows by at most 16 MiB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from monai_ext.engines.online import AuxiliaryFusion, OnlineLearner, View
from monai_ext.engines.online.auxiliary import AuxiliarySettings
from monai_ext.networks.sam import build_compact
from monai_ext.prompts.crops import box_crop
from monai_ext.prompts.prompt import Prompt

SIZE = 256
MOST_SECONDS, MOST_RATIO, MOST_MIB = 0.5, 1.5, 16
clock = time.process_time if "--cpu" in sys.argv else time.perf_counter


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


def used_mib() -> float:
    """Return the memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measure(settings: AuxiliarySettings, steps: int) -> bool:
    """Print what one learner takes; whether a step and the memory are as promised."""
    with tempfile.TemporaryDirectory() as folder:
        learner = OnlineLearner(AuxiliaryFusion(settings), Path(folder) / "state")
        corrections, early = [], 0.0
        for number in range(steps):
            view, truth = draw(number)
            pending = learner.infer(view)
            start = clock()
            learner.correct(pending, truth)
            corrections.append(clock() - start)
            if number == steps // 10:
                early = used_mib()
    full = corrections[min(settings.batch, steps - 1) :]  # from there on the batch is full
    print(
        f"base {settings.base}, k = {settings.batch}, crop {settings.crop}, {settings.steps_per_feedback} steps: "
        f"correction {median(full):.3f} s, "
        f"{early:.0f} MiB after {steps // 10} corrections, {used_mib():.0f} MiB after {steps}",
        flush=True,
    )
    return median(full) <= MOST_SECONDS and used_mib() - early <= MOST_MIB


@torch.no_grad()
def compare_answers(settings: AuxiliarySettings, repeats: int) -> bool:
    """Print an image's time with SAM alone and with AuxOL; whether their ratio is as promised."""
    torch.manual_seed(0)
    network = build_compact().eval()
    learner = OnlineLearner(AuxiliaryFusion(settings))
    alone, answers = [], []
    for number in range(repeats + 1):
        view, _ = draw(number)
        crop = view.crop
        box = torch.tensor([crop.x0, crop.y0, crop.x1 - 1, crop.y1 - 1]).float()
        start = clock()
        embeddings = network.encode(view.image[None])
        logits, _ = network.decode(embeddings, [Prompt.from_points(torch.zeros(0, 2), box=box)])
        network.to_image(logits, embeddings.size)
        alone.append(clock() - start)
        start = clock()
        learner.infer(view)
        answers.append(clock() - start)
    sam, more = median(alone[1:]), median(answers[1:])
    ratio = (sam + more) / sam
    print(f"image with compact alone {1000 * sam:.0f} ms, AuxOL's answer {1000 * more:.0f} ms more: {ratio:.2f}x")
    return ratio <= MOST_RATIO


def main() -> int:
    """Run the command line; 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="processor time in place of wall-clock time")
    parser.add_argument("--small", action="store_true", help="a tiny network: what the memory does, in a minute")
    parser.add_argument("--paper", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = AuxiliarySettings(base=2, crop=32) if options.small else AuxiliarySettings()
    kept = [compare_answers(settings, 30), measure(settings, options.steps)]
    if options.paper:
        paper = {"base": 64, "crop": 128, "batch": 32, "learning_rate": 5e-4, "steps_per_feedback": 1}
        measure(AuxiliarySettings(sam_channel="mask", **paper), 34)
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
