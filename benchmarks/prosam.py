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
from torch import Tensor

from monai_ext.engines.prosam import ProsamObjective
from monai_ext.networks.backbone import Embeddings
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


class AtOnce(ProsamObjective):
    """Decodes all K sets of prompts in one call."""

    def decode(self, embeddings: Embeddings, tokens: Tensor) -> Tensor:
        repeated = Embeddings(embeddings.features.repeat(len(tokens), 1, 1, 1), embeddings.size)
        low, _ = self.network.decode_tokens(repeated, tokens.flatten(0, 1))
        return self.network.to_image(low, embeddings.size).reshape(*tokens.shape[:2], *embeddings.size)


class OneByOne(AtOnce):
    """Decodes each set of prompts of each image by itself."""

    def decode(self, embeddings: Embeddings, tokens: Tensor) -> Tensor:
        images = [Embeddings(one[None], embeddings.size) for one in embeddings.features]
        decode = super().decode
        masks = [[decode(image, one[None, None, k])[0, 0] for k, image in enumerate(images)] for one in tokens]
        return torch.stack([torch.stack(row) for row in masks])


def training_step(kind: type[ProsamObjective], sam: PromptableSam, samples: int, folder: str) -> Callable[[], object]:
    """Return one step without the optimiser."""
    net = build_prompts(sam, trunk_weights=None)
    objective, batch = kind(sam, net, samples, cache_dir=folder), make_batch(sam.image_size)
    return lambda: objective(net, batch, torch.Generator().manual_seed(0))["loss"].backward()


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
        found = {
            (kind, samples): best_of(given.repeats, training_step(kind, sam, samples, folder))
            for kind, samples in (
                (ProsamObjective, 1),
                *((k, given.samples) for k in (ProsamObjective, AtOnce, OneByOne)),
            )
        }
    for (kind, samples), seconds in found.items():
        print(f"step of two episodes, K = {samples}, {kind.__name__}: {seconds:.2f} s")
    draws, view = draws_and_views(sam, given.samples, given.repeats)
    print(f"{given.samples} draws decoded: {draws:.3f} s; a view: {view:.3f} s; {draws / view:.1f} views cost as much")


if __name__ == "__main__":
    main()
