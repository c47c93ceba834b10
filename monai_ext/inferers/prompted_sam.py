"""Pseudo-labels from scribbles: SAM is prompted once for each class, the masks are merged (SAM-SP, appendix).

Step of the paper -> code:

* 10 points of each class by random sampling -> :func:`monai_ext.prompts.scribble_points.scribble_prompts`
* one mask a class                           -> :meth:`PromptedSamInferer.decode`
* multi-class aggregation                    -> :func:`monai_ext.prompts.scribble_points.combine_masks`
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor
from torch.nn import functional as F

from monai_ext.data.pseudo_labels import PseudoLabels
from monai_ext.errors import UserError
from monai_ext.inferers.embedding_cache import EmbeddingCache
from monai_ext.networks.backbone import Embeddings, PromptableNetwork
from monai_ext.prompts.prompt import POSITIVE, Prompt
from monai_ext.prompts.scribble_points import combine_masks, scribble_prompts


class PromptedSamInferer(Inferer):
    """Turns the scribbles of a case into pseudo-labels.

    Args:
        labels: name -> value of the K structures; class indices are their places, from 1.
        points: most points of a class.
        sampling: ``random``, ``even`` or ``skeleton``.
        negatives: ``all`` or ``one_class``; see :func:`scribble_prompts`.
        negative_order: name -> names, for ``one_class``; not read with ``all``.
        paint_order: names, for the authors' combination of the masks; by default the largest probability counts.
        override: scribbles are truth: they replace what the masks say.
        seed: of the points, together with the name of the case and the number of the slice.
        batch: prompts decoded at once.

    Raises:
        UserError: for a name that is not among the labels, or an unknown option.

    Example:
        >>> inferer = PromptedSamInferer({"RV": 1, "LV": 2}, points=10)
        >>> found = inferer(slices, sam, scribbles, "patient001", EmbeddingCache("cache", sam))
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        points: int = 10,
        sampling: str = "random",
        negatives: str = "all",
        negative_order: Mapping[str, Sequence[str]] | None = None,
        paint_order: Sequence[str] | None = None,
        override: bool = True,
        seed: int = 0,
        batch: int = 8,
    ) -> None:
        super().__init__()
        self.names = list(labels)
        self.points, self.sampling, self.negatives = points, sampling, negatives
        order = negative_order if negatives == "one_class" and negative_order else {}
        self.order = {self._class(k): [self._class(n) for n in v] for k, v in order.items()}
        self.paint_order = None if paint_order is None else [self._class(name) for name in paint_order]
        self.override, self.seed, self.batch = override, seed, batch
        nothing = np.zeros((1, 1), np.uint8)
        scribble_prompts(nothing, 1, np.random.default_rng(0), points, sampling, negatives)  # refuses bad options now

    def _class(self, name: str) -> int:
        if name not in self.names:
            raise UserError(f"negative_order or paint_order names {name!r}: the labels are {', '.join(self.names)}.")
        return self.names.index(name) + 1

    def prompts(self, scribbles: np.ndarray, case: str) -> list[tuple[int, int, Prompt]]:
        """Return (slice, class, prompt in pixels of the scribbles) of all scribbled structures of a case."""
        found = []
        for k, scribble in enumerate(scribbles):
            rng = np.random.default_rng([self.seed, zlib.crc32(case.encode()), k])
            placed = scribble_prompts(
                scribble, len(self.names), rng, self.points, self.sampling, self.negatives, self.order
            )
            found += [(k, own, prompt) for own, prompt in placed.items()]
        return found

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: np.ndarray, network: PromptableNetwork, scribbles: np.ndarray, case: str, cache: EmbeddingCache
    ) -> PseudoLabels:
        """Make the pseudo-labels of one case.

        Args:
            inputs: [n, H, W] uint8 slices.
            network: the promptable model.
            scribbles: [n, H, W] uint8: 0 background scribble, 1 to K structures, anything above no scribble.
            case: its name.
            cache: of embeddings.
        """
        asked = self.prompts(scribbles, case)
        result = np.zeros(scribbles.shape, np.uint8)
        agreed = scribbled = 0
        by_slice: dict[int, list[tuple[int, Prompt]]] = {}
        for k, own, prompt in asked:
            by_slice.setdefault(k, []).append((own, prompt))
        slices = list(by_slice)
        step = max(1, self.batch // max(1, len(self.names)))
        for first in range(0, len(slices), step):
            chosen = slices[first : first + step]
            members = [(k, own, prompt) for k in chosen for own, prompt in by_slice[k]]
            features = cache.embed(inputs[chosen])[[chosen.index(k) for k, _, _ in members]]
            logits = self.decode(network, features, [prompt for *_, prompt in members], scribbles.shape[1:])
            for k in chosen:
                rows = [n for n, (of, *_) in enumerate(members) if of == k]
                merged = combine_masks(torch.sigmoid(logits[rows]), [members[n][1] for n in rows], self.paint_order)
                result[k] = merged.cpu().numpy()
                marked = scribbles[k] <= len(self.names)
                agreed += int((result[k] == scribbles[k])[marked].sum())
                scribbled += int(marked.sum())
                if self.override:
                    result[k][marked] = scribbles[k][marked]
        return PseudoLabels(result, agreed, scribbled, [self._row(*one) for one in asked])

    def decode(
        self, network: PromptableNetwork, features: Tensor, prompts: Sequence[Prompt], size: tuple[int, ...]
    ) -> Tensor:
        """Decode one mask for each prompt, at the size of the slices.

        Args:
            network: the promptable model.
            features: [N, C, g, g] of each prompt's slice.
            prompts: N, in pixels of the slices.
            size: (H, W) of the slices.

        Returns:
            Logits [N, H, W].
        """
        device = network.device
        side = max(size)
        scale = network.image_size / side
        moved = [Prompt((p.points + 0.5) * scale - 0.5, p.labels) for p in prompts]
        frame = (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
        logits, _ = network.decode(Embeddings(features.to(device).float(), frame), moved)
        full = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
        return full[:, 0, : size[0], : size[1]]

    def _row(self, k: int, own: int, prompt: Prompt) -> dict[str, Any]:
        points = torch.cat([prompt.points, (prompt.labels == POSITIVE)[:, None].float()], dim=1)
        return {"label": self.names[own - 1], "slice": k, "points": points.tolist()}
