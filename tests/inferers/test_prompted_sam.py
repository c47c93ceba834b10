"""Tests of monai_ext.inferers.prompted_sam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.inferers.embedding_cache import EmbeddingCache
from monai_ext.inferers.prompted_sam import PromptedSamInferer
from monai_ext.networks.sam import Embeddings, PromptableSam, build_compact
from monai_ext.prompts.prompt import Prompt

LABELS = {"disc": 4, "ring": 2, "bar": 9}


@pytest.fixture(scope="module")
def network() -> PromptableSam:
    torch.manual_seed(0)
    network = build_compact(image_size=32, stride=8, channels=(8, 8, 16, 16), blocks=(1, 1, 1), width=16).eval()
    with torch.no_grad():
        for embedding in network.prompt_encoder.point_embeddings:
            embedding.weight *= 4  # masks that differ from prompt to prompt
    return network


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 24, 16), dtype=np.uint8)


def scribbles() -> np.ndarray:
    """Slice 0: classes 1, 2 and background; slice 1: nothing; slice 2: background alone; slice 3: class 3."""
    result = np.full((4, 24, 16), 255, np.uint8)
    result[0, 5, 2:14], result[0, 12, 3:6], result[0, 20, 1:9] = 1, 2, 0
    result[2, 20, 1:9], result[3, 9, 4:12] = 0, 3
    return result


def run(network: PromptableSam, folder: Path, **options: Any):
    inferer = PromptedSamInferer(LABELS, **options)
    return inferer(images(), network, scribbles(), "case", EmbeddingCache(folder, network))


def slow(network: PromptableSam, inferer: PromptedSamInferer, k: int) -> np.ndarray:
    """One slice, one prompt at a time, one pixel at a time, before scribbles replace anything."""
    best, result = np.full((24, 16), 0.5), np.zeros((24, 16), np.uint8)
    plane = torch.nn.functional.interpolate(
        torch.from_numpy(images()[k])[None, None].float(), (32, 21), mode="bilinear", antialias=True
    )
    features = network.encode(plane).features.half().float()
    for of, own, prompt in inferer.prompts(scribbles(), "case"):
        if of != k:
            continue
        moved = Prompt((prompt.points + 0.5) * (32 / 24) - 0.5, prompt.labels)
        logits, _ = network.decode(Embeddings(features, (32, 21)), [moved])
        full = torch.nn.functional.interpolate(logits, (24, 24), mode="bilinear")[0, 0, :, :16]
        for y in range(24):
            for x in range(16):
                p = 1 / (1 + np.exp(-float(full[y, x])))
                if p > best[y, x]:
                    best[y, x], result[y, x] = p, own
    return result


@torch.no_grad()
def test_pseudo_labels_are_those_of_one_prompt_at_a_time(network, tmp_path) -> None:
    inferer = PromptedSamInferer(LABELS, override=False)
    found = run(network, tmp_path, override=False).labels
    expected = np.stack([slow(network, inferer, k) for k in range(4)])
    assert (found == expected).mean() > 0.999  # ties in the last bit
    assert len(np.unique(found)) > 1


def test_scribbles_replace_what_the_masks_say_and_agreement_is_counted_before(network, tmp_path) -> None:
    free, ruled = run(network, tmp_path, override=False), run(network, tmp_path)
    drawn = scribbles() <= 3
    drawn[2] = False  # no structure is scribbled on there
    assert (ruled.labels[drawn] == scribbles()[drawn]).all()
    assert (ruled.labels[~drawn] == free.labels[~drawn]).all()
    assert ruled.scribbled == free.scribbled == drawn.sum()
    assert ruled.agreed == free.agreed == (free.labels == scribbles())[drawn].sum()
    assert ruled.agreed < ruled.scribbled


def test_slices_without_a_scribbled_structure_are_background_and_not_encoded(network, tmp_path) -> None:
    found = run(network, tmp_path)
    assert not found.labels[1:3].any()
    assert len(list(tmp_path.iterdir())) == 2
    assert [(row["label"], row["slice"]) for row in found.points] == [("disc", 0), ("ring", 0), ("bar", 3)]


def test_points_of_a_slice_depend_on_seed_case_and_slice_alone() -> None:
    def asked(case: str, drawn: np.ndarray, **options: Any) -> list[list[float]]:
        found = PromptedSamInferer(LABELS, points=3, **options).prompts(drawn, case)
        return [prompt.points.tolist() for k, _, prompt in found if k == 0]

    alone = scribbles()
    alone[3] = 255
    assert asked("a", scribbles()) == asked("a", alone)
    assert asked("a", scribbles()) != asked("b", scribbles())
    assert asked("a", scribbles()) != asked("a", scribbles(), seed=1)


def test_the_size_of_a_batch_changes_no_mask(network, tmp_path) -> None:
    first, second = (run(network, tmp_path, batch=n).labels for n in (1, 8))
    assert (first == second).mean() > 0.999


def test_names_that_are_no_labels_are_refused_where_they_are_read() -> None:
    with pytest.raises(UserError, match="names 'liver': the labels are disc, ring, bar"):
        PromptedSamInferer(LABELS, paint_order=["liver"])
    with pytest.raises(UserError, match="names 'liver'"):
        PromptedSamInferer(LABELS, negatives="one_class", negative_order={"liver": ["disc"]})
    PromptedSamInferer(LABELS, negative_order={"liver": ["disc"]})
    with pytest.raises(UserError, match="sampling"):
        PromptedSamInferer(LABELS, sampling="all")
