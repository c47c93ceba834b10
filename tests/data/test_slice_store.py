"""Tests of monai_ext.data.slice_store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import MetaTensor

from monai_ext.data.slice_store import IGNORE, StoredCase, grey_planes, store_drawn, store_regions, store_slices
from monai_ext.errors import UserError
from tests.stored_cases import stored_case

LABELS = {"x": 7, "y": 3}  # classes 1 and 2
AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])


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
        image = rng.uniform(-4, 260, (1, 4, 6, 5)).astype(np.float32)
        return {"image": MetaTensor(image, affine=AFFINE), "label": label}


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


def loaded(case: StoredCase) -> tuple[np.ndarray, np.ndarray]:
    return case.load("image"), case.load("label")


def test_only_slices_with_a_structure_are_kept(tmp_path) -> None:
    transform = Transform()
    (case,) = store_slices(cases("a"), transform, tmp_path / "new" / "folder", LABELS)
    image, label = loaded(case)
    whole = transform({"case": "a"})
    expected = np.zeros((2, 4, 6), np.uint8)
    expected[0, :2, 2], expected[1, 3, :] = 1, 2
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(
        image, np.asarray(whole["image"])[..., [1, 3]].round().clip(0, 255).transpose(3, 0, 1, 2)
    )
    assert image.dtype == label.dtype == np.uint8
    assert case.load("slices").tolist() == [1, 3]
    assert case.load("pixels").tolist() == [[22, 2, 0], [18, 0, 6]]
    assert (case.load("affine") == AFFINE).all()


def test_the_value_to_ignore_is_no_class(tmp_path) -> None:
    (case,) = store_slices(cases("a"), Transform(), tmp_path, LABELS, ignore=9)
    label = case.load("label")
    assert label[0, 1, 4] == IGNORE
    assert (label == IGNORE).sum() == 1
    assert case.load("pixels")[0].tolist() == [21, 2, 0]


def test_a_case_knows_where_it_comes_from(tmp_path) -> None:
    entry = {**cases("a")[0], "patient": "p1", "modality": "MR"}
    (case,) = store_slices([entry], Transform(), tmp_path, LABELS, dataset="made up")
    assert (case.case, case.patient, case.dataset, case.modality) == ("a", "p1", "made up", "MR")
    assert case.classes == ("x", "y")
    assert StoredCase.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_every_slice_and_masks_of_their_own(tmp_path) -> None:
    def dense(item: dict[str, Any]) -> dict[str, Any]:
        return {"other": np.full((1, 4, 6, 5), 3.0)}

    entry = {**cases("a")[0], "other": "a.nii.gz"}
    (case,) = store_slices([entry], Transform(), tmp_path, LABELS, every_slice=True, further={"other": dense})
    assert case.load("slices").tolist() == [0, 1, 2, 3, 4]
    assert (case.load("other") == 2).all()
    assert not case.has("scribble")


def test_values_that_the_list_does_not_know(tmp_path) -> None:
    with pytest.raises(UserError, match=r"case a: the label a_label\.nii\.gz holds the value 9"):
        store_slices(cases("a"), Transform(), tmp_path, LABELS, known=[])
    assert store_slices(cases("a"), Transform(), tmp_path, LABELS, known=[9])


def test_grey_is_the_mean_of_the_channels() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)
    assert np.array_equal(grey_planes(planes), np.rint(planes.astype(float).sum(1) / 3))
    assert np.array_equal(grey_planes(planes[:, :1]), planes[:, 0])


def test_finished_cases_are_not_cut_again(tmp_path) -> None:
    first, second = Transform(), Transform()
    before = store_slices(cases("a", "b"), first, tmp_path, LABELS)
    after = store_slices(cases("a", "b", "c"), second, tmp_path, LABELS)
    assert first.calls == ["a", "b"]
    assert second.calls == ["c"]
    assert after[:2] == before


def test_killed_cutting_is_repeated(tmp_path, monkeypatch) -> None:
    """Whatever file a kill leaves unfinished, the case is cut anew and equal."""
    (case,) = store_slices(cases("a"), Transform(), tmp_path / "whole", LABELS)
    expected = loaded(case)
    for written in range(5):
        folder = tmp_path / str(written)
        done: list[str] = []

        def save(file, array, done=done, written=written) -> None:
            if len(done) == written:
                Path(file).write_bytes(b"half of it")
                raise KeyboardInterrupt
            done.append("one")
            with open(file, "wb") as opened:
                np.lib.format.write_array(opened, array)

        with monkeypatch.context() as patch:
            patch.setattr("monai_ext.data.slice_store.np.save", save)
            with pytest.raises(KeyboardInterrupt):
                store_slices(cases("a"), Transform(), folder, LABELS)
        (case,) = store_slices(cases("a"), Transform(), folder, LABELS)
        for ours, theirs in zip(loaded(case), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"y": 3, "x": 7}},
        {"settings": "other intensity"},
        {"cases": [{"case": "a", "image": "a.nii.gz", "label": "corrected.nii.gz"}]},
        {"cases": [{"case": "a", "image": "a.nii.gz", "label": "a_label.nii.gz", "modality": "CT"}]},
    ],
)
def test_other_settings_make_new_files(tmp_path, change: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"cases": cases("a"), "labels": LABELS, "settings": "256", "folder": tmp_path}
    before = store_slices(transform=Transform(), **settings)
    again = Transform()
    after = store_slices(transform=again, **{**settings, **change})
    assert again.calls == ["a"]
    assert not set(before) & set(after)


def test_a_label_corrected_in_place_is_cut_again(tmp_path) -> None:
    settings: dict[str, Any] = {"cases": cases("a"), "labels": LABELS, "folder": tmp_path / "slices"}
    before = store_slices(transform=Transform(), **settings)
    Path("a_label.nii.gz").write_text("corrected")
    again = Transform()
    assert store_slices(transform=again, **settings) != before
    assert again.calls == ["a"]


def test_other_code_cuts_again(tmp_path, monkeypatch) -> None:
    before = store_slices(cases("a"), Transform(), tmp_path / "slices", LABELS)
    monkeypatch.setattr("monai_ext.data.slice_store.source_sha256", lambda: "other")
    assert store_slices(cases("a"), Transform(), tmp_path / "slices", LABELS) != before


def test_a_case_may_lie_elsewhere(tmp_path) -> None:
    settings: dict[str, Any] = {"labels": LABELS, "folder": tmp_path / "slices"}
    before = store_slices(cases("a"), Transform(), **settings)
    moved = [{"case": "a", "image": "moved.nii.gz", "label": "a_label.nii.gz"}]
    assert store_slices(moved, Transform(), **settings) == before


def test_nothing_to_cut(tmp_path) -> None:
    with pytest.raises(UserError, match="no case to train on: check --datalist, --split and --fold"):
        store_slices([], Transform(), tmp_path, LABELS)


def draw(rng: np.random.Generator, size: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    channels = 3 if kind == "rgb" else 1
    return rng.uniform(0, 255, (channels, size, size)).astype(np.float32), rng.integers(0, 3, (size, size))


def test_drawn_slices_are_stored_once(tmp_path) -> None:
    stored = store_drawn(draw, tmp_path, 8, 3, seed=5)
    kept = [loaded(case) for case in stored]
    assert [image.shape for image, _ in kept] == [(3, 1, 8, 8), (3, 3, 8, 8)]
    assert all(label.shape == (3, 8, 8) for _, label in kept)
    assert store_drawn(lambda *_: pytest.fail("drawn again"), tmp_path, 8, 3, seed=5) == stored
    for case, (image, _) in zip(store_drawn(draw, tmp_path / "other", 8, 3, seed=5), kept, strict=True):
        np.testing.assert_array_equal(loaded(case)[0], image)
    other = store_drawn(draw, tmp_path, 8, 3, seed=6)
    assert not np.array_equal(loaded(other[0])[0], kept[0][0])
    rng = np.random.default_rng([5, 2])
    np.testing.assert_array_equal(kept[0][0][0], draw(rng, 8, "mr")[0].round())


def test_regions_are_cut_from_images_alone(tmp_path) -> None:
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 1, 8, 8)
    source = stored_case(tmp_path, images)  # no label beside it: none is read

    def draw(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (image[0] > 100).astype(np.uint8) * rng.integers(1, 3)  # nothing on the first slice

    for _ in range(2):
        (case,) = store_regions([source], draw, tmp_path / "out", 3, seed=5)
    found, labels = loaded(case)
    assert (case.case, case.patient) == ("a", "p")
    assert found.shape == (9, 1, 8, 8)
    assert np.array_equal(found, np.repeat(images[1:], 3, axis=0))
    assert np.array_equal(labels > 0, found[:, 0] > 100)
