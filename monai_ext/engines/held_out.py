"""Scribbles that are not trained on choose the iteration of a segmentor, without any dense label."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_ext.data.scribble_slices import ScribbleDataset
from monai_ext.data.slice_store import IGNORE
from monai_ext.data.text import read_json
from monai_ext.errors import UserError
from monai_ext.files import atomic_path
from monai_ext.metrics.scribbles import scribble_dice
from monai_ext.prompts.ties import likeliest_label

SCORES_FILE = "held_out.json"


class HeldOutSelection:
    """Keeps the weights of the epoch whose masks agree best with held-out scribbles; of equals, the first.

    The score is :func:`monai_ext.metrics.scribbles.scribble_dice` over all held-out slices. It goes into the
    training's checkpoint with the kept weights, so attach it before the handler that writes one.

    Args:
        network: in training.
        dataset: slices of patients that are not trained on.
        predict: (network, images [B, 1, S, S]) -> logits [B, K + 1, S, S].
        device: of the network.
        batch_size: slices at once.

    Raises:
        UserError: none of the slices is scribbled on.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: ScribbleDataset,
        predict: Callable[[nn.Module, Tensor], Tensor],
        device: str | torch.device = "cpu",
        batch_size: int = 8,
    ) -> None:
        self.network, self.predict, self.device, self.batch_size = network, predict, device, batch_size
        items = [dataset[number] for number in range(len(dataset))]
        self.items = [item for item in items if bool((item["scribble"] != IGNORE).any())]
        if not self.items:
            raise UserError("--validation_patients have no slice that is scribbled on: name others.")
        self.scores: list[float] = []
        self.best: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: self.update())

    def update(self) -> None:
        """Score the network as it is, and keep its weights if they are the best yet."""
        score = self.score()
        if not self.scores or score > max(self.scores):
            self.best = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        self.scores.append(score)

    @torch.no_grad()
    def score(self) -> float:
        """Compare the network's masks with the held-out scribbles."""
        self.network.eval()
        predicted, drawn = [], []
        for start in range(0, len(self.items), self.batch_size):
            batch = self.items[start : start + self.batch_size]
            logits = self.predict(self.network, torch.stack([item["image"] for item in batch]).to(self.device))
            scribble = torch.stack([item["scribble"] for item in batch])
            known = scribble != IGNORE
            predicted.append(likeliest_label((logits[:, 1:] - logits[:, :1]).movedim(1, 0)).cpu()[known])
            drawn.append(scribble[known])
        return scribble_dice(np.asarray(torch.cat(predicted)), np.asarray(torch.cat(drawn)))

    def finish(self, folder: Path, epoch_length: int) -> None:
        """Give the network its best weights and write the scores to ``folder``."""
        self.network.load_state_dict(self.best)
        iterations = [epoch_length * (number + 1) for number in range(len(self.scores))]
        best = max(self.scores)
        told = {"iteration": iterations[self.scores.index(best)], "score": best}
        with atomic_path(folder / SCORES_FILE) as temporary:
            scores = dict(zip(map(str, iterations), self.scores, strict=True))
            temporary.write_text(json.dumps({**told, "scores": scores}, indent=1) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return scores and weights for a checkpoint."""
        return {"scores": list(self.scores), "best": dict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.scores, self.best = list(state["scores"]), dict(state["best"])


def read_score(folder: Path) -> float:
    """Return the best score of a finished training."""
    return float(read_json(folder / SCORES_FILE)["score"])
