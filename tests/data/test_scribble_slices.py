"""Tests of monai_ext.data.scribble_slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_ext.data.manifest import Case, DataList
from monai_ext.data.scribble_slices import (
    ScribbleDataset,
    ShuffledSampler,
    plane_in_square,
    read_classes,
    resize_classes,
    scribbled_cases,
    store_scribbles,
    write_classes,
)
from monai_ext.data.slice_store import IGNORE
from monai_ext.errors import UserError

AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])
UNLABELLED = 9


def volumes(case: dict[str, Any]) -> dict[str, Any]:
    """A case of 2 slices of 12 x 10 pixels: values 3 and 7, background scribble 0, 9 not scribbled on."""
    rng = np.random.default_rng(0)
    scribble = np.full((1, 12, 10, 2), UNLABELLED)
    scribble[0, 2, 2:8, 0], scribble[0, 6, 3:5, 0], scribble[0, 10, :, 0] = 3, 7, 0
    image = rng.uniform(0, 255, (1, 12, 10, 2))
    return {**case, "image": MetaTensor(image, affine=AFFINE), "scribble": torch.from_numpy(scribble)}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> None:
    """Files of the cases below, by relative paths; the transforms here do not read them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(f"{name}.nii").write_text(name)
        Path(f"{name}_s.nii").write_text(f"scribble of {name}")


def a_case(name: str = "a") -> dict[str, Any]:
    return {"case": name, "patient": "p", "image": f"{name}.nii", "scribble": f"{name}_s.nii", "label": None}


def cut(folder: Path, **changes: Any) -> list:
    options = {"cases": [a_case()], "transform": volumes, "labels": {"x": 7, "y": 3}, "unlabelled": UNLABELLED}
    return store_scribbles(**{**options, "folder": folder, **changes})


def test_classes_are_the_places_of_the_values_and_the_unlabelled_is_ignored(tmp_path) -> None:
    case = cut(tmp_path)[0]
    scribble, image = case.load("scribble"), case.grey()
    assert scribble.shape == image.shape == (2, 12, 10)
    assert (scribble[0, 2, 2:8] == 2).all()
    assert (scribble[0, 6, 3:5] == 1).all()
    assert (scribble[0, 10] == 0).all()
    assert (scribble == IGNORE).sum() == 2 * 120 - 6 - 2 - 10
    assert image.dtype == np.uint8
    assert np.abs(image.astype(float) - np.asarray(volumes({})["image"])[0].transpose(2, 0, 1)).max() <= 0.5
    assert (case.load("affine") == AFFINE).all()


def test_structures_that_are_not_asked_for_are_background(tmp_path) -> None:
    scribble = cut(tmp_path, labels={"x": 7}, known=[3, 7])[0].load("scribble")
    assert (scribble[0, 2, 2:8] == 0).all()


def test_files_of_an_earlier_start_are_kept_and_other_settings_make_new_ones(tmp_path) -> None:
    first = cut(tmp_path)[0].stem
    assert cut(tmp_path, transform=None)[0].stem == first  # a transform is not called
    assert cut(tmp_path, settings="other")[0].stem != first


def test_a_scribble_corrected_in_place_is_cut_again(tmp_path) -> None:
    first = cut(tmp_path / "slices")[0].stem
    Path("a_s.nii").write_text("corrected")
    assert cut(tmp_path / "slices")[0].stem != first


def test_unknown_values_and_empty_scribbles_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="holds the value 3"):
        cut(tmp_path / "a", labels={"x": 7})
    with pytest.raises(UserError, match="no slice has a scribble"):
        cut(tmp_path / "b", labels={"z": 5}, known=[3, 7])


def datalist(**changes: Any) -> DataList:
    cases = [Case(case="a", image="a.nii", scribble="s.nii"), Case(case="b", patient="q", image="b.nii", label="l.nii")]
    return DataList(**{"dataset": "d", "labels": {"x": 1}, "ignore": 4, "cases": cases, **changes})


def test_drawn_and_simulated_scribbles_take_the_cases_that_have_what_they_need() -> None:
    drawn, simulated = scribbled_cases(datalist()), scribbled_cases(datalist(), simulated=True)
    assert [(c["case"], c["patient"], c["scribble"]) for c in drawn] == [("a", "a", "s.nii")]
    assert [(c["case"], c["patient"], c["scribble"]) for c in simulated] == [("b", "q", "l.nii")]


def test_lists_without_scribbles_or_their_unlabelled_value_are_refused() -> None:
    with pytest.raises(UserError, match="no case with a scribble"):
        scribbled_cases(datalist(cases=[Case(case="b", image="b.nii", label="l.nii")]))
    with pytest.raises(UserError, match="'ignore'"):
        scribbled_cases(datalist(ignore=None))


def test_written_classes_are_read_again_and_the_same_bytes_each_time(tmp_path) -> None:
    classes = np.random.default_rng(0).integers(0, 3, (2, 5, 4)).astype(np.uint8)
    paths = [tmp_path / name for name in ("a.nii.gz", "b.nii.gz")]
    for path in paths:
        write_classes(path, classes, AFFINE, [7, 3])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert (read_classes(paths[0], [7, 3]) == classes).all()
    image = nib.load(paths[0])
    assert (np.asarray(image.dataobj)[..., 0] == np.array([0, 7, 3])[classes[0]]).all()
    assert (image.affine == AFFINE).all()


def test_items_are_padded_squares_in_which_the_padding_is_unknown(tmp_path) -> None:
    cases = cut(tmp_path)
    targets = {"a": np.ones((2, 12, 10), np.uint8)}
    dataset = ScribbleDataset(cases, 12).with_targets(targets)
    item = dataset[0]
    assert len(dataset) == 2
    assert item["image"].shape == (1, 12, 12)
    assert torch.equal(item["image"][0, :, :10], torch.from_numpy(np.array(cases[0].grey()[0])) / 255)
    assert (item["image"][..., 10:] == 0).all()
    assert (item["scribble"][:, 10:] == IGNORE).all()
    assert (item["target"][:, :10] == 1).all()
    assert (item["target"][:, 10:] == IGNORE).all()
    assert "target" not in ScribbleDataset(cases, 12)[0]


def test_a_smaller_size_keeps_the_proportions(tmp_path) -> None:
    item = ScribbleDataset(cut(tmp_path), 6)[0]
    assert plane_in_square((12, 10), 6) == (6, 5)
    assert item["image"].shape == (1, 6, 6)
    assert set(item["scribble"][:, :5].unique().tolist()) == {0, 1, 2, IGNORE}
    up = resize_classes(torch.tensor([[0, 1]], dtype=torch.uint8), (2, 4))
    assert up.tolist() == [[0, 0, 1, 1]] * 2


def test_draws_of_an_epoch_depend_on_its_number_alone_and_passes_are_whole() -> None:
    def draws(epoch: int) -> list[int]:
        sampler = ShuffledSampler(5, 4, seed=1)
        sampler.set_epoch(epoch)
        return list(sampler)

    run = ShuffledSampler(5, 4, seed=1)
    on = []
    for epoch in range(5):
        run.set_epoch(epoch)
        on += list(run)
    assert on == [n for epoch in range(5) for n in draws(epoch)]
    assert all(sorted(on[k : k + 5]) == list(range(5)) for k in range(0, 20, 5))
    assert on[:5] != on[5:10]
