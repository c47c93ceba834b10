"""What ProSAM's draws cost: K masks decoded at once against one by one in a training step, and against augmented views.

    python benchmarks/prosam.py
    python benchmarks/prosam.py --repeats 5 --samples 10 --threads 1

Ratios of processor time in one run: best of the repeats. The step is that of two episodes with cached features; the
views are encoded and decoded one by one, as at inference.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from monai_ext.engines.prosam import ProsamObjective
from monai_ext.networks.sam import PromptableSam, build_sam
from monai_ext.session.prompts import build_prompts
from monai_ext.transforms.views import draw_views

MODELS = Path(__file__).parents[1] / "bundles" / "p2sam" / "models"


def best_of(repeats: int, work: Callable[[], object]) -> float:
    """Return the least processor time of a piece of work, in seconds."""
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def make_batch(side: int) -> dict[str, torch.Tensor]:
    """Two episodes of noise with a square to find."""
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, torch.Tensor] = {}
    mask = torch.zeros(2, side, side)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    for role in ("support", "query"):
        image = torch.randint(0, 256, (2, 1, side, side), generator=generator).float()
        batch |= {f"{role}_image": image.expand(-1, 3, -1, -1), f"{role}_mask": mask}
        batch |= {f"{role}_valid": mask >= 0, f"{role}_size": torch.full((2, 2), side)}
    return batch


def training_step(sam: PromptableSam, samples: int, folder: str, at_once: bool) -> Callable[[], object]:
    """Return one step without the optimiser: K masks in one decoding, or K decodings of one mask each."""
    net = build_prompts(sam, trunk_weights=None)
    objective = ProsamObjective(sam, net, samples if at_once else 1, cache_dir=folder)
    batch = make_batch(sam.image_size)

    def plain_step() -> None:
        rng = np.random.default_rng(0)
        distribution, embeddings = objective.distribution(net, batch, rng)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(samples):
            tokens = net.sampler.draw(distribution, 1, generator)
            losses.append(objective.loss(objective.decode(embeddings, tokens), batch["query_mask"], batch["query_valid"]))
        torch.stack(losses).mean().backward()

    def step() -> None:
        objective(net, batch, torch.Generator().manual_seed(0))["loss"].backward()

    return step if at_once else plain_step


@torch.no_grad()
def draws_and_views(sam: PromptableSam, samples: int, repeats: int) -> tuple[float, float]:
    """Return the seconds of K decodings of drawn prompts, and of one augmented view (encoded twice, decoded once)."""
    net = build_prompts(sam, trunk_weights=None).eval()
    side = sam.image_size
    batch = make_batch(side)
    image = batch["query_image"][:1, :1]
    query, support = net.features(image, side), net.features(batch["support_image"][:1], side)
    masks = net.masks(batch["support_mask"][:1], side)
    prompts, embeddings = net(query, support, masks), sam.encode(image)
    tokens = net.sampler.draw(prompts, samples)[:, 0]
    (view,) = draw_views(1, np.random.default_rng(0))

    def one_view() -> None:
        changed = view.apply(image[0])[None]
        mean = net(net.features(changed, side), support, masks).mean
        low, _ = sam.decode_tokens(sam.encode(changed), mean)
        view.undo(sam.to_image(low, (side, side))[0, 0], -20.0)

    def draws() -> None:
        sam.to_image(sam.decode_tokens(embeddings, tokens)[0], (side, side))

    return best_of(repeats, draws), best_of(repeats, one_view)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sam = build_sam("compact", MODELS / "compact_acdc.pt").requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        at_once = best_of(given.repeats, training_step(sam, given.samples, folder, True))
        plain = best_of(given.repeats, training_step(sam, given.samples, folder, False))
        single = best_of(given.repeats, training_step(sam, 1, folder, True))
    print(f"step of two episodes, K = {given.samples}: {at_once:.2f} s at once, {plain:.2f} s one by one ({plain / at_once:.2f}x)")
    print(f"K = 1: {single:.2f} s")
    draws, view = draws_and_views(sam, given.samples, given.repeats)
    print(f"{given.samples} draws decoded: {draws:.3f} s; a view: {view:.3f} s; {draws / view:.1f} views cost as much")


if __name__ == "__main__":
    main()
