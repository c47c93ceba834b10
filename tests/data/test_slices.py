"""Tests of monai_ext.data.slices."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from monai_ext import processes
from monai_ext.data.slice_store import IGNORE, StoredCase
from monai_ext.data.slices import MixedSampler, SharedBatches, SliceDataset
from monai_ext.errors import UserError
from tests.stored_cases import stored_case


def a_case(folder: Path, count: int = 2) -> StoredCase:
    """Slices of 4 x 6 pixels, the first with an unknown pixel."""
    rng = np.random.default_rng(count)
    label = rng.integers(0, 3, (count, 4, 6)).astype(np.uint8)
    label[:1, 0, 0] = IGNORE
    return stored_case(folder, rng.integers(0, 256, (count, 1, 4, 6)).astype(np.uint8), f"case{count}", label=label)


def drawn(folder: Path) -> StoredCase:
    """Three slices of 8 x 8 pixels in colour."""
    image = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8)).astype(np.uint8)
    return stored_case(folder, image, "drawn", label=np.ones((3, 8, 8), np.uint8))


def test_items_are_padded_squares(tmp_path) -> None:
    case = a_case(tmp_path)
    dataset = SliceDataset({"data": [case], "drawn": [drawn(tmp_path)]}, size=8)
    assert len(dataset) == 2 + 3
    assert [dataset[n]["source"] for n in range(5)] == [0, 0, 1, 1, 1]
    item = dataset[0]
    assert item["image"].shape == (3, 8, 8)
    assert item["label"].shape == item["valid"].shape == (1, 8, 8)
    assert {item[key].dtype for key in ("image", "label", "valid")} == {torch.float32}
    for channel in item["image"]:
        np.testing.assert_array_equal(channel[:4, :6], case.load("image")[0, 0])
    np.testing.assert_array_equal(item["label"][0, :4, :6], case.load("label")[0])
    assert item["label"][0, 0, 0] == IGNORE
    assert bool(item["valid"][0, :4, :6].all())
    for key in ("image", "label", "valid"):
        assert not bool(item[key][:, 4:].any() or item[key][:, :, 6:].any())
    assert bool(dataset[4]["valid"].all())
    assert not torch.equal(dataset[4]["image"][0], dataset[4]["image"][1])  # colour stays


def test_a_pair_of_numbers_gives_two_views(tmp_path) -> None:
    dataset = SliceDataset({"data": [a_case(tmp_path)]}, size=8)
    pair = dataset[1, 0]
    assert pair["image"].shape == (2, 3, 8, 8)
    assert pair["source"] == 0
    for key in ("image", "label", "valid"):
        assert torch.equal(pair[key], torch.stack([dataset[1][key], dataset[0][key]]))


def test_case_without_structures_adds_nothing(tmp_path) -> None:
    assert len(SliceDataset({"data": [a_case(tmp_path, 0)]}, size=8)) == 0


class Sources(SliceDataset):
    """A data set by its sources alone."""

    def __init__(self, source: list[int]) -> None:
        self.source = source


def test_sources_are_drawn_by_their_shares_and_slices_uniformly() -> None:
    dataset = Sources([0] * 5 + [1] * 50)
    counts = Counter(MixedSampler(dataset, [3.0, 1.0], 20000))
    assert sum(counts[n] for n in range(5)) / 20000 == pytest.approx(0.75, abs=0.02)
    assert all(counts[n] == pytest.approx(3000, abs=300) for n in range(5))
    assert all(counts[n] == pytest.approx(100, abs=50) for n in range(5, 55))


def test_source_without_share_is_never_drawn_and_may_be_empty() -> None:
    assert set(MixedSampler(Sources([0, 0, 1]), [1.0, 0.0], 50)) == {0, 1}
    assert set(MixedSampler(Sources([0, 0]), [1.0, 0.0], 50)) == {0, 1}


def test_empty_source_is_refused() -> None:
    with pytest.raises(UserError, match="no slice of its cases holds a structure"):
        MixedSampler(Sources([1, 1]), [0.8, 0.2], 10)


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    dataset = Sources([0] * 30 + [1] * 30)
    sampler = MixedSampler(dataset, [0.5, 0.5], 20, seed=4)
    assert len(sampler) == 20
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert list(sampler) == epochs[-1]
    assert len({tuple(e) for e in epochs}) == 3
    np.random.seed(9)
    late = MixedSampler(dataset, [0.5, 0.5], 20, seed=4)
    late.set_epoch(2)
    assert list(late) == epochs[2]
    assert list(MixedSampler(dataset, [0.5, 0.5], 20, seed=5)) != epochs[0]


def test_views_of_a_labelled_case_are_its_slices_within_reach() -> None:
    dataset = Sources([0] * 9 + [1] * 4)
    dataset.index = [(0, k) for k in range(5)] + [(1, k) for k in range(4)] + [(2, k) for k in range(4)]
    sampler = MixedSampler(dataset, [0.8, 0.2], 4000, reach=2)
    drawn = Counter(sampler)
    assert {pair for pair in drawn if pair[0] >= 9} == {(n, n) for n in range(9, 13)}
    assert {other for number, other in drawn if number == 2} == {0, 1, 2, 3, 4}
    assert {other for number, other in drawn if number == 4} == {2, 3, 4}  # the next slice is another case's
    assert {other for number, other in drawn if number == 5} == {5, 6, 7}
    assert list(sampler) == list(MixedSampler(dataset, [0.8, 0.2], 4000, reach=2))
    assert {a == b for a, b in MixedSampler(dataset, [1.0, 0.0], 50, reach=0)} == {True}


@pytest.mark.parametrize(("size", "lengths"), [(1, [5]), (2, [2, 3]), (3, [1, 2, 2]), (5, [1] * 5)])
def test_processes_share_out_the_batches_of_one(monkeypatch, size: int, lengths: list[int]) -> None:
    dataset = Sources([0] * 30)
    batches = []
    for rank in range(size):
        monkeypatch.setattr(processes, "_job", processes.Job(dist.HashStore(), rank, size))
        shared = SharedBatches(MixedSampler(dataset, [1.0], 20), 5)
        assert len(shared) == 4
        batches.append(list(shared))
    assert all([len(part) for part in parts] == lengths for parts in zip(*batches, strict=True))
    whole = [number for parts in zip(*batches, strict=True) for part in parts for number in part]
    assert whole == list(MixedSampler(dataset, [1.0], 20))


def test_batches_that_cannot_be_shared_out(monkeypatch) -> None:
    sampler = MixedSampler(Sources([0]), [1.0], 20)
    with pytest.raises(ValueError, match="20 draws are no whole number of batches of 6"):
        SharedBatches(sampler, 6)
    monkeypatch.setattr(processes, "_job", processes.Job(dist.HashStore(), 0, 3))
    with pytest.raises(UserError, match="3 processes cannot share out batches of 2: raise --batch_size"):
        SharedBatches(sampler, 2)
