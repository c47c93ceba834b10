"""Tests of monai_ext.data.slices."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from monai_ext import processes
from monai_ext.data.slices import (
    MixedSampler,
    SharedBatches,
    SliceDataset,
    cut_slices,
    store_drawn,
    store_regions,
)
from monai_ext.errors import UserError

VALUES = [7, 3]  # classes 1 and 2


class Transform:
    """Stands in for loading: image [1, 4, 6, 5], label with values 0, 3, 7, 9 on slices 1 and 3 only."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(item["case"])
        rng = np.random.default_rng(len(item["case"]))
        label = np.zeros((1, 4, 6, 5), np.float32)
        label[0, :2, 2, 1], label[0, 1, 4, 1], label[0, 3, :, 3] = 7, 9, 3
        label[0, 0, 0, 4] = 9  # holds no structure that was asked for
        return {"image": rng.uniform(-4, 260, (1, 4, 6, 5)).astype(np.float32), "label": label}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> None:
    """Files of the cases below, by relative paths; the transforms here do not read them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        Path(f"{name}.nii.gz").write_text(name)
        Path(f"{name}_label.nii.gz").write_text(f"label of {name}")
    Path("moved.nii.gz").write_text("a")
    Path("corrected.nii.gz").write_text("corrected")


def cases(*names: str) -> list[dict[str, str]]:
    return [{"case": n, "image": f"{n}.nii.gz", "label": f"{n}_label.nii.gz"} for n in names]


def loaded(stem: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(f"{stem}_image.npy"), np.load(f"{stem}_label.npy")


def test_only_slices_with_a_structure_are_kept(tmp_path) -> None:
    transform = Transform()
    (stem,) = cut_slices(cases("a"), transform, tmp_path / "new" / "folder", VALUES)
    image, label = loaded(stem)
    whole = transform({"case": "a"})
    expected = np.zeros((2, 4, 6), np.uint8)
    expected[0, :2, 2], expected[1, 3, :] = 1, 2
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(image, whole["image"][..., [1, 3]].round().clip(0, 255).transpose(3, 0, 1, 2))
    assert image.dtype == label.dtype == np.uint8


def test_finished_cases_are_not_cut_again(tmp_path) -> None:
    first, second = Transform(), Transform()
    before = cut_slices(cases("a", "b"), first, tmp_path, VALUES)
    after = cut_slices(cases("a", "b", "c"), second, tmp_path, VALUES)
    assert first.calls == ["a", "b"]
    assert second.calls == ["c"]
    assert after[:2] == before


def test_killed_cutting_is_repeated(tmp_path, monkeypatch) -> None:
    """Whatever file a kill leaves unfinished, the case is cut anew and equal."""
    (stem,) = cut_slices(cases("a"), Transform(), tmp_path / "whole", VALUES)
    expected = loaded(stem)
    for written in range(2):
        folder = tmp_path / str(written)
        done: list[str] = []

        def save(file, array, done=done, written=written) -> None:
            if len(done) == written:
                file.write(b"half of it")
                raise KeyboardInterrupt
            done.append("one")
            np.lib.format.write_array(file, array)

        with monkeypatch.context() as patch:
            patch.setattr("monai_ext.data.slices.np.save", save)
            with pytest.raises(KeyboardInterrupt):
                cut_slices(cases("a"), Transform(), folder, VALUES)
        (stem,) = cut_slices(cases("a"), Transform(), folder, VALUES)
        for ours, theirs in zip(loaded(stem), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"values": [3, 7]},
        {"settings": "other intensity"},
        {"cases": [{"case": "a", "image": "a.nii.gz", "label": "corrected.nii.gz"}]},
        {"cases": [{"case": "a", "image": "a.nii.gz", "label": "a_label.nii.gz", "modality": "CT"}]},
    ],
)
def test_other_settings_make_new_files(tmp_path, change: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"cases": cases("a"), "values": VALUES, "settings": "256", "folder": tmp_path}
    before = cut_slices(transform=Transform(), **settings)
    again = Transform()
    after = cut_slices(transform=again, **{**settings, **change})
    assert again.calls == ["a"]
    assert not set(before) & set(after)


def test_a_label_corrected_in_place_is_cut_again(tmp_path) -> None:
    settings: dict[str, Any] = {"cases": cases("a"), "values": VALUES, "folder": tmp_path / "slices"}
    before = cut_slices(transform=Transform(), **settings)
    Path("a_label.nii.gz").write_text("corrected")
    again = Transform()
    assert cut_slices(transform=again, **settings) != before
    assert again.calls == ["a"]


def test_other_code_cuts_again(tmp_path, monkeypatch) -> None:
    before = cut_slices(cases("a"), Transform(), tmp_path / "slices", VALUES)
    monkeypatch.setattr("monai_ext.data.slices.source_sha256", lambda: "other")
    assert cut_slices(cases("a"), Transform(), tmp_path / "slices", VALUES) != before


def test_a_case_may_lie_elsewhere(tmp_path) -> None:
    settings: dict[str, Any] = {"values": VALUES, "folder": tmp_path / "slices"}
    before = cut_slices(cases("a"), Transform(), **settings)
    moved = [{"case": "a", "image": "moved.nii.gz", "label": "a_label.nii.gz"}]
    assert cut_slices(moved, Transform(), **settings) == before


def test_nothing_to_cut(tmp_path) -> None:
    with pytest.raises(UserError, match="no case to train on: check --datalist, --split and --fold"):
        cut_slices([], Transform(), tmp_path, VALUES)


def draw(rng: np.random.Generator, size: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    channels = 3 if kind == "rgb" else 1
    return rng.uniform(0, 255, (channels, size, size)).astype(np.float32), rng.integers(0, 3, (size, size))


def test_drawn_slices_are_stored_once(tmp_path) -> None:
    stems = store_drawn(draw, tmp_path, 8, 3, seed=5)
    kept = [loaded(stem) for stem in stems]
    assert [image.shape for image, _ in kept] == [(3, 1, 8, 8), (3, 3, 8, 8)]
    assert all(label.shape == (3, 8, 8) for _, label in kept)
    assert store_drawn(lambda *_: pytest.fail("drawn again"), tmp_path, 8, 3, seed=5) == stems
    for stem, (image, _) in zip(store_drawn(draw, tmp_path / "other", 8, 3, seed=5), kept, strict=True):
        np.testing.assert_array_equal(loaded(stem)[0], image)
    other = store_drawn(draw, tmp_path, 8, 3, seed=6)
    assert not np.array_equal(loaded(other[0])[0], kept[0][0])
    rng = np.random.default_rng([5, 2])
    np.testing.assert_array_equal(kept[0][0][0], draw(rng, 8, "mr")[0].round())


def test_regions_are_cut_from_images_alone(tmp_path) -> None:
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 1, 8, 8)
    np.save(tmp_path / "a_image.npy", images)  # no label beside it: none is read

    def draw(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (image[0] > 100).astype(np.uint8) * rng.integers(1, 3)  # nothing on the first slice

    for _ in range(2):
        (stem,) = store_regions([tmp_path / "a"], draw, tmp_path / "out", 3, seed=5)
    found, labels = np.load(f"{stem}_image.npy"), np.load(f"{stem}_label.npy")
    assert found.shape == (9, 1, 8, 8)
    assert np.array_equal(found, np.repeat(images[1:], 3, axis=0))
    assert np.array_equal(labels > 0, found[:, 0] > 100)


def test_items_are_padded_squares(tmp_path) -> None:
    stems = cut_slices(cases("a"), Transform(), tmp_path, VALUES)
    dataset = SliceDataset({"data": stems, "drawn": store_drawn(draw, tmp_path, 8, 3)}, size=8)
    assert len(dataset) == 2 + 3 + 3
    assert [dataset[n]["source"] for n in range(8)] == [0, 0, 1, 1, 1, 1, 1, 1]
    image, label = loaded(stems[0])
    item = dataset[1]
    assert item["image"].shape == (3, 8, 8)
    assert item["label"].shape == item["valid"].shape == (1, 8, 8)
    assert {item[key].dtype for key in ("image", "label", "valid")} == {torch.float32}
    for channel in item["image"]:
        np.testing.assert_array_equal(channel[:4, :6], image[1, 0])
    np.testing.assert_array_equal(item["label"][0, :4, :6], label[1])
    assert bool(item["valid"][0, :4, :6].all())
    for key in ("image", "label", "valid"):
        assert not bool(item[key][:, 4:].any() or item[key][:, :, 6:].any())
    assert bool(dataset[7]["valid"].all())
    assert not torch.equal(dataset[7]["image"][0], dataset[7]["image"][1])  # colour stays


def test_a_pair_of_numbers_gives_two_views(tmp_path) -> None:
    dataset = SliceDataset({"data": cut_slices(cases("a"), Transform(), tmp_path, VALUES)}, size=8)
    pair = dataset[1, 0]
    assert pair["image"].shape == (2, 3, 8, 8)
    assert pair["source"] == 0
    for key in ("image", "label", "valid"):
        assert torch.equal(pair[key], torch.stack([dataset[1][key], dataset[0][key]]))


def test_case_without_structures_adds_nothing(tmp_path) -> None:
    stems = cut_slices(cases("a"), Transform(), tmp_path, [55])
    assert len(SliceDataset({"data": stems}, size=8)) == 0


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
