from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monai_ext.errors import UserError
from monai_ext.inferers.reference import ReferenceLoader

SIZE = (40, 64)
LABELS = {"lesion": 1, "organ": 2}


@pytest.fixture
def references(make_image, disc):
    both = np.where(disc(SIZE, (10, 12), 6), 1, 2 * disc(SIZE, (25, 40), 6))[..., None]
    return {
        "a": (make_image(1, (*SIZE, 1)), both),
        "b": (make_image(2, (*SIZE, 1)), (both == 1).astype(np.int64)),
        "c": (make_image(3, (*SIZE, 1)), 2 * (both == 2).astype(np.int64)),
    }


@pytest.fixture
def loader(make_loader, references):
    return make_loader(references, LABELS)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("a", ["a"]),
        (Path("a"), ["a"]),
        (["a"], ["a"]),
        (["b", "c"], ["b", "c"]),
        ([["b"], ["c"]], ["b", "c"]),  # MONAI's collation of a list of two
        ([("a",)], ["a"]),
    ],
)
def test_one_path_or_several_in_any_nesting(loader, references, given, names):
    loaded = loader(given, given)
    assert [reference.image.meta["filename_or_obj"] for reference in loaded] == [
        references[name][0].meta["filename_or_obj"] for name in names
    ]
    assert loaded[0].label.shape == (1, *SIZE, 1)


def test_the_same_patient_is_loaded_once(loader):
    first = loader(["a"], ["a"], "MR")
    assert loader([["a"]], [["a"]], "MR") is first
    assert loader.loaded is first
    assert loader.transform.loaded == [("a", "MR")]


def test_each_reference_has_its_own_modality(loader):
    first = loader(["b", "c"], ["b", "c"], ["CT", "MR"])
    assert loader.transform.loaded == [("b", "CT"), ("c", "MR")]
    assert loader(["b", "c"], ["b", "c"], ["CT", "MR"]) is first
    assert loader(["b", "c"], ["b", "c"], ["MR", "MR"]) is not first


def test_another_patient_or_window_is_loaded_anew(loader):
    first = loader("a", "a", "MR")
    assert loader("a", "a", "CT") is not first
    assert loader(["b", "c"], ["b", "c"], "CT") is not first
    assert loader("a", "a", "MR") is not first
    assert [name for name, _ in loader.transform.loaded] == ["a", "a", "b", "c", "a"]


@pytest.mark.parametrize(("images", "labels"), [(["a", "b"], ["a"]), ([], []), (["a"], [])])
def test_each_reference_needs_its_label(loader, images, labels):
    with pytest.raises(UserError, match=f"{len(images)} reference images but {len(labels)} reference labels"):
        loader(images, labels)


def test_structure_on_no_reference_is_refused(loader):
    with pytest.raises(UserError, match=r"reference b holds no organ \(value 2\)"):
        loader("b", "b")


def test_structure_on_one_of_the_references_is_enough(loader):
    assert len(loader(["b", "c"], ["b", "c"])) == 2


def test_a_refused_reference_is_not_remembered(loader):
    for _ in range(2):
        with pytest.raises(UserError):
            loader("b", "b")


def test_label_on_another_grid_is_refused(make_image, make_loader):
    loader = make_loader({"a": (make_image(1, (*SIZE, 1)), np.ones((8, 8, 1), np.int64))}, {"lesion": 1})
    with pytest.raises(UserError, match="reference label a has another grid than its image a"):
        loader("a", "a")


def test_held_slices_are_those_of_any_structure(make_image, make_loader):
    label = np.zeros((*SIZE, 6), np.int64)
    label[3, 3, 2], label[3, 3, 4] = 1, 2
    (reference,) = make_loader({"a": (make_image(1, (*SIZE, 6)), label)}, LABELS)("a", "a")
    assert reference.held_slices() == [2, 4]
    assert reference.held_slices([2]) == [4]


def test_each_slice_is_encoded_once(make_image, make_loader, tiny_network, monkeypatch):
    network, encoded = tiny_network(0), []
    encode = network.encode
    monkeypatch.setattr(network, "encode", lambda images: encoded.append(images) or encode(images))
    image = make_image(1, (*SIZE, 3), channels=3)
    (reference,) = make_loader({"a": (image, np.ones((*SIZE, 3), np.int64))}, {"lesion": 1})("a", "a")
    assert reference.embed(network, 2) is reference.embed(network, 2)
    reference.embed(network, 0)
    assert [images.shape for images in encoded] == [(1, 3, *SIZE)] * 2
    assert np.array_equal(encoded[0][0], image[..., 2])


def test_label_resampled_to_floats_is_whole_again(make_image, make_loader):
    label = np.full((*SIZE, 1), 0.9999999)
    (reference,) = make_loader({"a": (make_image(1, (*SIZE, 1)), label)}, {"lesion": 1})("a", "a")
    assert (reference.label == 1).all()


def of_mm(image, own, used):
    """The image as SamInputd leaves it: what it covers, and what its frame covers."""
    image.meta.update(plane_extent=own, frame_extent=used, frame_size=(50, 80))
    return image


def test_a_reference_is_loaded_anew_only_where_its_scale_changes(make_image, make_loader):
    made = {"a": (of_mm(make_image(1, (*SIZE, 1)), (40.0, 64.0), (40.0, 64.0)), np.ones((*SIZE, 1), np.int64))}
    loader = make_loader(made, {"lesion": 1})
    first = loader("a", "a", extent=(40.0, 64.0))
    assert loader("a", "a", extent=(40.3, 64.5)) is first, "the same to 1 %"
    assert loader("a", "a", extent=(20.0, 30.0)) is first, "a target that covers less takes the reference's scale"
    assert loader("a", "a") is first
    loader("a", "a", extent=(50.0, 80.0))
    assert len(loader.transform.loaded) == 2


def test_the_transform_is_told_what_the_frame_covers(make_image):
    asked = []

    def transform(item):
        asked.append(item["frame_extent"])
        return {"image": make_image(1, (*SIZE, 1)), "label": torch.ones(1, *SIZE, 1)}

    loader = ReferenceLoader(transform, {"lesion": 1})
    loader("a", "a", extent=(50.0, 80.0))
    loader.load("b", "b")
    assert asked == [(50.0, 80.0), None]


@torch.no_grad()
def test_slices_are_encoded_in_their_frame(make_image, make_loader, tiny_network, monkeypatch):
    network, encoded = tiny_network(0), []
    encode = network.encode
    monkeypatch.setattr(network, "encode", lambda images: encoded.append(images.shape) or encode(images))
    image = of_mm(make_image(1, (30, 40, 1)), (30.0, 40.0), (50.0, 60.0))
    image.meta["frame_size"] = (50, 60)
    (reference,) = make_loader({"a": (image, np.ones((30, 40, 1), np.int64))}, {"lesion": 1})("a", "a")
    assert reference.embed(network, 0).size == (30, 40)
    assert encoded == [(1, 1, 50, 60)]
