"""Any method with a reference on frozen episodes: one support slice, one query slice, one structure.

The method's inferer is called as on any case, with slices that were cut before in place of files, so that all methods
are measured on the same pixels with the same references. The query's mask is looked at when the mask is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor
from tqdm import tqdm

from monai_ext import processes
from monai_ext.data.episode_lists import check_episodes, draw_episodes, read_episodes, write_episodes
from monai_ext.data.episode_outcomes import EpisodeOutcome
from monai_ext.data.episodes import Episode, EpisodePool, SliceName
from monai_ext.data.manifest import DataList
from monai_ext.data.slice_store import IGNORE, StoredCase
from monai_ext.engines.episode_training import labelled_items
from monai_ext.errors import UserError
from monai_ext.inferers.reference_inferer import ReferenceInferer
from monai_ext.networks.backbone import PromptableNetwork

STRUCTURE = {"structure": 1}
"""Labels of an inferer that :func:`run_episodes` calls: whatever an episode asks for."""


class StoredSlices:
    """Stands in for the transform of a :class:`monai_ext.inferers.reference.ReferenceLoader`: slices, not files.

    Args:
        cases: stored ones that the episodes name.
    """

    def __init__(self, cases: Sequence[StoredCase]) -> None:
        self.cases = {(case.dataset, case.case): case for case in cases}
        self._rows = {key: {int(k): row for row, k in enumerate(c.load("slices"))} for key, c in self.cases.items()}

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Load the slice that ``item["image"]``, made by :meth:`key`, stands for, with the mask of its class."""
        name, *place = json.loads(item["image"])
        image, mask, _ = self.load(name, SliceName(*place))
        return {"image": image, "label": mask[None, ..., None].long()}

    @staticmethod
    def key(episode: Episode) -> str:
        """Return the text that stands for the support of an episode and its mask."""
        place = episode.support
        return json.dumps([episode.name, place.dataset, place.case, place.slice])

    def load(self, name: str, place: SliceName) -> tuple[MetaTensor, Tensor, Tensor]:
        """Return a slice.

        Args:
            name: of the class.
            place: of the slice.

        Returns:
            The image [C, H, W, 1] in the input frame, values in [0, 255]; the class's mask [H, W] bool; and where it is
            known, [H, W] bool.
        """
        case = self.cases[place.dataset, place.case]
        row = self._rows[place.dataset, place.case][place.slice]
        pixels = torch.from_numpy(np.array(case.load("image")[row])).float()[..., None]
        label = torch.from_numpy(np.array(case.load("label")[row]).astype(np.int64))
        told = {"plane_size": tuple(label.shape), "slice_axis": "", "filename_or_obj": f"{place.case}:{place.slice}"}
        image = MetaTensor(pixels, affine=torch.from_numpy(np.array(case.load("affine"))), meta=told)
        return image, label == 1 + case.classes.index(name), label != IGNORE

    def patient(self, place: SliceName) -> str:
        """Return whose a slice is."""
        return self.cases[place.dataset, place.case].patient


def choose_items(
    lists: Sequence[DataList], fold: int | None = None, patients: Sequence[str] | str | None = None
) -> list[dict[str, Any]]:
    """Return the labelled cases that episodes are drawn from.

    Args:
        lists: of :func:`monai_ext.engines.episode_training.load_lists`.
        fold: of the first list; counts where no patients are named.
        patients: their names; None: all, or those of the fold.

    Raises:
        UserError: a patient is in no list, or there is no such case.
    """
    named = [str(one) for one in ([patients] if isinstance(patients, str) else patients or [])]
    items = [item for one in lists for item in labelled_items(one, fold if one is lists[0] and not named else None)]
    for patient in named:
        if patient not in {item["patient"] for item in items}:
            raise UserError(f"patient {patient!r} has no labelled case in the data lists: check --patients.")
    found = [item for item in items if not named or item["patient"] in named]
    if not found:
        raise UserError("no labelled case is left to draw episodes from: check --split, --fold and --patients.")
    return found


def frozen_episodes(
    cases: Sequence[StoredCase],
    classes: Sequence[str],
    min_pixels: int,
    count: int,
    seed: int,
    path: str | os.PathLike,
    given: str | os.PathLike | None = None,
) -> list[Episode]:
    """Draw episodes, or take those of a list, and write them.

    Args:
        cases: stored ones.
        classes: names; each has as many episodes.
        min_pixels: see :class:`EpisodePool`.
        count: number of episodes.
        seed: of the draws.
        path: where the list is written.
        given: a list to take instead, see :func:`read_episodes`.

    Raises:
        UserError: the list does not fit, or asks for another class; or a class is not shown by two patients.
    """
    if given is None:
        episodes = draw_episodes(EpisodePool(cases, classes, (), min_pixels), count, seed)
    else:
        episodes = read_episodes(given)
        for number, episode in enumerate(episodes):
            if episode.name not in classes:
                what = "a superpixel" if episode.is_superpixel else repr(episode.name)
                raise UserError(f"{given}: episode {number} asks for {what}, which --classes does not name.")
        check_episodes(episodes, cases)
    processes.from_first(lambda: write_episodes(path, episodes, seed=seed))
    return episodes


def run_episodes(
    inferer: ReferenceInferer, network: PromptableNetwork, slices: StoredSlices, episodes: Sequence[Episode]
) -> list[EpisodeOutcome]:
    """Run a method on every episode.

    Args:
        inferer: with the labels :data:`STRUCTURE` and a loader over ``slices``.
        network: the promptable network.
        slices: that the episodes name.
        episodes: frozen ones, of classes.
    """
    return list(_outcomes(inferer, network, slices, tqdm(episodes, desc="episodes", disable=None)))


def _outcomes(
    inferer: ReferenceInferer, network: PromptableNetwork, slices: StoredSlices, episodes: Sequence[Episode]
) -> Iterator[EpisodeOutcome]:
    for episode in episodes:
        image, truth, valid = slices.load(episode.name, episode.query)
        support = [slices.key(episode)]
        logits, details = inferer.segment_case(image[None], network, support, support, self_check=False)
        found = (logits.as_tensor()[0, 0, ..., 0] > 0).cpu()
        cells = (found & truth, found & ~truth, ~found & truth, ~found & ~truth)
        tp, fp, fn, tn = (int((cell & valid).sum()) for cell in cells)
        row = details.rows[0]
        yield EpisodeOutcome(
            episode, slices.patient(episode.query), row["status"], (tp, fp, fn, tn), dict(row.get("features", {}))
        )
