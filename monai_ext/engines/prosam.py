"""One training step and the predictions of ProSAM (§4.3, Eq. 10), for the episodic engine.

SAM and the reference encoder are frozen, and their features are found on disk. K prompts are drawn and decoded, each
has a loss, and the mean of these is minimised.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_ext.errors import UserError
from monai_ext.files import PathLike
from monai_ext.inferers.feature_cache import FrozenFeatures
from monai_ext.losses.sampled_masks import SampledMaskLoss
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.networks.prompt_distribution import PromptDistributionNet
from monai_ext.prompts.annotations import MOST_STROKES, annotate, check_kind
from monai_ext.prompts.distribution import PromptDistribution, check_count

logger = logging.getLogger(__name__)

COLLAPSED = 0.01
"""Effective sigma, relative to the prompts' root mean square, below which a distribution is a point."""


class SigmaMonitor:
    """Warns where the effective sigma becomes 0: nothing in the loss prevents that, and ProSAM is then VRP-SAM.

    Args:
        window: steps over which the mean is taken.
    """

    def __init__(self, window: int = 100) -> None:
        self.window, self.warned = window, False
        self._seen: deque[float] = deque(maxlen=window)

    def note(self, sigma: float, rms: float) -> None:
        """Take one step's effective sigma and the root mean square of its prompts; warn once."""
        self._seen.append(sigma / max(rms, 1e-12))
        mean = sum(self._seen) / len(self._seen)
        if len(self._seen) == self.window and mean < COLLAPSED and not self.warned:
            self.warned = True
            logger.warning(
                "sigma collapsed: over %d steps the draws spread by %.2g of the prompts' size, so that they are no "
                "more than the mean; set --sigma_min or --fixed_sigma",
                self.window,
                mean,
            )


class ProsamObjective:
    """The losses of a batch of episodes, and the masks of its queries.

    Args:
        network: the frozen promptable network.
        prompts: the network that learns; the one the engine hands over is the same.
        samples: K prompts drawn for each query (Table 5: 10).
        annotations: kinds of which one is drawn for each support.
        cache_dir: folder of the frozen features; None: they are made anew each time.
        seed: of the annotations that predictions are made with.

    Raises:
        UserError: for an unknown kind of annotation, or an impossible K.
    """

    def __init__(
        self,
        network: PromptableNetwork,
        prompts: PromptDistributionNet,
        samples: int = 10,
        annotations: Sequence[str] | str = ("mask",),
        cache_dir: PathLike | None = None,
        seed: int = 0,
    ) -> None:
        check_count(samples)
        self.kinds = [annotations] if isinstance(annotations, str) else list(annotations)
        if not self.kinds:
            raise UserError("--annotations is empty: name one kind or several, such as ['mask'].")
        for kind in self.kinds:
            check_kind(kind)
        if prompts is not None and prompts.is_certain:
            samples = 1  # all draws would be the same
        self.network, self.samples, self.cache_dir, self.seed = network, samples, cache_dir, seed
        self.loss, self.monitor = SampledMaskLoss(), SigmaMonitor()
        self._features: FrozenFeatures | None = None

    def __call__(
        self, prompts: PromptDistributionNet, batch: Mapping[str, Any], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the loss of a batch; ``sigma``, the draws' mean standard deviation; ``rms``, the prompts' size."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        distribution, embeddings = self.distribution(prompts, batch, rng)
        tokens = prompts.sampler.draw(distribution, self.samples, generator)
        logits = self.decode(embeddings, tokens)
        loss = self.loss(logits, batch["query_mask"], batch["query_valid"])
        sigma, rms = prompts.effective_std(distribution).mean(), distribution.mean.detach().square().mean().sqrt()
        if distribution.std is not None and prompts.fixed_sigma is None:
            self.monitor.note(float(sigma), float(rms))
        return {"loss": loss, "sigma": sigma, "rms": rms}

    def predict(self, prompts: PromptDistributionNet, batch: Mapping[str, Any]) -> Tensor:
        """Segment the queries by the mean prompt (§4.3): logits [B, S, S].

        The kinds of annotation are drawn anew for each episode, and the same ones whenever it is asked again. Points
        and strokes are as many as in VRP-SAM's tests.
        """
        shown = [int(batch[key].sum()) for key in ("support_mask", "support_image", "query_image")]
        distribution, embeddings = self.distribution(
            prompts, batch, np.random.default_rng([self.seed, *shown]), MOST_STROKES
        )
        return self.decode(embeddings, distribution.mean[None])[0]

    def distribution(
        self,
        prompts: PromptDistributionNet,
        batch: Mapping[str, Any],
        rng: np.random.Generator,
        count: int | None = None,
    ) -> tuple[PromptDistribution, Embeddings]:
        """Predict the prompts of a batch's queries; return them with SAM's embeddings of the queries.

        Args:
            prompts: the network that learns.
            batch: see :class:`monai_ext.data.episodes.EpisodeDataset`.
            rng: draws the annotations.
            count: of points and strokes; None: drawn, 1 to 20 as in VRP-SAM's training.
        """
        if self._features is None:  # built once, as hashing the frozen weights takes a while
            self._features = FrozenFeatures(self.network, prompts.reference, self.cache_dir)
        side = batch["query_image"].shape[-1]
        embedding, query = self._features(batch["query_image"], batch["query_size"])
        _, support = self._features(batch["support_image"], batch["support_size"])
        masks = prompts.masks(self._annotate(batch["support_mask"], rng, count), side)
        return prompts(query, support, masks), Embeddings(embedding, (side, side))

    def decode(self, embeddings: Embeddings, tokens: Tensor) -> Tensor:
        """Decode K sets of prompts for each image: tokens [K, B, N, C] -> logits [K, B, S, S].

        On a GPU all at once; on a CPU one set after the other, which stays within its cache and is faster
        (``benchmarks/prosam.py``).
        """
        if tokens.device.type == "cpu" and len(tokens) > 1:
            return torch.cat([self.decode(embeddings, one[None]) for one in tokens])
        count, batch = tokens.shape[:2]
        repeated = Embeddings(embeddings.features.repeat(count, 1, 1, 1), embeddings.size)
        logits, _ = self.network.decode_tokens(repeated, tokens.flatten(0, 1))
        return self.network.to_image(logits, embeddings.size).reshape(count, batch, *embeddings.size)

    def _annotate(self, masks: Tensor, rng: np.random.Generator, count: int | None) -> Tensor:
        """Derive an annotation of a drawn kind from each mask [B, S, S]."""
        drawn = []
        for mask in masks.bool().cpu().numpy():
            kind = self.kinds[int(rng.integers(len(self.kinds)))]
            drawn.append(annotate(mask, kind, rng, count or int(rng.integers(1, MOST_STROKES + 1))))
        return torch.from_numpy(np.stack(drawn)).to(masks.device)
