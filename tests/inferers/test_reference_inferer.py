from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_ext.errors import UserError
from monai_ext.inferers.reference_inferer import BACKGROUND, ReferenceInferer, SliceResult, TargetSlice, segment_present

SIZE = (40, 64)
LABELS = {"lesion": 1, "organ": 2}


class Echo(ReferenceInferer):
    """Answers with the slice's own index for the first structure and nothing for the others; notes its calls."""

    def segment_slice(self, network, target, matched, **extra):
        self.calls = [*getattr(self, "calls", []), (target, list(matched), extra)]
        logits = torch.full(target.image.shape[1:], float(target.index + 1))
        return [SliceResult(logits, "ok", {"n_pos": target.index})] + [
            SliceResult(None, "reference_absent", {}) for _ in list(self.labels)[1:]
        ]


@pytest.fixture
def references(make_image):
    label = np.ones((*SIZE, 3), np.int64)
    label[:10] = 2
    return {name: (make_image(i, (*SIZE, 3), origin=origin), label) for i, (name, origin) in enumerate(ORIGINS.items())}


ORIGINS = {"a": 0.0, "b": 5.0}


@pytest.fixture
def loader(make_loader, references):
    return make_loader(references, LABELS)


def test_each_slice_meets_its_matched_slices(loader, make_image):
    inferer, target = Echo(LABELS, loader), make_image(7, (*SIZE, 4), plane_size=(20, 32))
    inferer(target[None], None, ["a", "b"], ["a", "b"], modality=["MR"], further=3)
    matched = [[(m.reference.file, m.index) for m in found] for _, found, _ in inferer.calls]
    a, b = "image0.nii.gz", "image1.nii.gz"
    assert matched == [[(a, 0)], [(a, 1), (b, 0)], [(a, 2), (b, 1)], [(b, 2)]]
    assert loader.transform.loaded == [("a", "MR"), ("b", "MR")]
    slice_, _, extra = inferer.calls[2]
    assert torch.equal(slice_.image, target[..., 2].as_tensor())
    assert (slice_.original_size, slice_.index) == ((20, 32), 2)
    assert extra == {"further": 3}


def test_rows_name_the_references_that_reach_the_slice(loader, make_image):
    image = make_image(7, (*SIZE, 4))
    _, details = Echo(LABELS, loader).segment_case(image[None], None, ["a", "b"], ["a", "b"], reference=["A+1", "B"])
    rows = [row for row in details.rows if row["label"] == "lesion"]
    assert [row["reference"] for row in rows] == ["A+1", "A+1+B", "A+1+B", "B"]
    assert [row["reference_number"] for row in rows] == [0, 0, 0, 1]


def test_matched_slice_shows_its_label(loader, make_image, references):
    inferer = Echo(LABELS, loader)
    inferer(make_image(7, (*SIZE, 3))[None], None, "a", "a")
    matched = inferer.calls[1][1][0]
    assert np.array_equal(matched.label, references["a"][1][..., 1])
    assert matched.key != inferer.calls[2][1][0].key


def test_logits_go_to_their_channel_and_slice(loader, make_image):
    inferer = Echo(LABELS, loader)
    logits = inferer(make_image(7, (*SIZE, 3))[None], None, "a", "a")
    assert isinstance(logits, MetaTensor)
    assert logits.shape == (1, 2, *SIZE, 3)
    assert [float(logits[0, 0, 0, 0, k]) for k in range(3)] == [1, 2, 3]
    assert (logits[0, 1] == BACKGROUND).all()


def test_rows_tell_of_each_structure_and_slice(loader, make_image):
    inferer = Echo(LABELS, loader)
    for _ in range(2):  # rows are of the last call alone
        _, details = inferer.segment_case(make_image(7, (*SIZE, 2), origin=10.0)[None], None, "a", "a")
    features = [row.pop("features", None) for row in details.rows]
    first = {"reference": "", "reference_number": 0, "reference_slice": "2"}
    second = {"reference": "", "reference_number": None, "reference_slice": ""}
    assert details.rows == [
        {**first, "label": "lesion", "slice": 0, "status": "ok", "n_pos": 0},
        {**first, "label": "organ", "slice": 0, "status": "reference_absent"},
        {**second, "label": "lesion", "slice": 1, "status": "outside_reference"},
        {**second, "label": "organ", "slice": 1, "status": "outside_reference"},
    ]
    assert features[1:] == [None] * 3
    assert set(features[0]) == {"certainty", "area_change", "shift", "jump"}


def test_slices_outside_the_reference_are_background(loader, make_image):
    inferer = Echo(LABELS, loader)
    logits = inferer(make_image(7, (*SIZE, 2), origin=10.0)[None], None, "a", "a")
    assert (logits[0, 0, ..., 0] == 1).all()
    assert (logits[..., 1] == BACKGROUND).all()


def test_oracle_slices_as_collated(loader, make_image):
    inferer = Echo(LABELS, loader, slice_match="oracle_centre")
    inferer(make_image(7, (*SIZE, 8))[None], None, "a", "a", oracle_slices=[torch.tensor([5]), torch.tensor([7])])
    assert [(target.index, matched[0].index) for target, matched, _ in inferer.calls] == [(5, 0), (6, 1), (7, 2)]


def test_reference_of_the_constructor(loader, make_image):
    inferer = Echo(LABELS, loader, reference_image="a", reference_label=["a"])
    inferer(make_image(7, (*SIZE, 3))[None], None)
    inferer(make_image(7, (*SIZE, 3))[None], None, "b", "b")
    assert [name for name, _ in loader.transform.loaded] == ["a", "b"]


def test_no_reference_at_all_is_refused(loader, make_image):
    with pytest.raises(UserError, match="0 reference images"):
        Echo(LABELS, loader)(make_image(7, (*SIZE, 3))[None], None)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8, 1), (1, 8, 8, 1)])
def test_one_case_at_a_time(loader, shape):
    with pytest.raises(ValueError, match="inputs must be one case"):
        Echo(LABELS, loader)(MetaTensor(torch.zeros(shape)), None, "a", "a")


def test_no_gradient_is_kept(loader, make_image, tiny_network):
    network = tiny_network(0)

    class Encode(Echo):
        def segment_slice(self, network, target, matched, **extra):
            return [SliceResult(network.encode(target.image[None]).features.mean() * target.image[0], "ok", {})] * 2

    assert not Encode(LABELS, loader)(make_image(7, (*SIZE, 1))[None], network, "a", "a").requires_grad


@torch.no_grad()
def test_a_slice_is_encoded_once_for_what_is_known_and_not_at_all_for_nothing(tiny_network, monkeypatch):
    network, encoded = tiny_network(0), []
    encode = network.encode
    monkeypatch.setattr(network, "encode", lambda images: encoded.append(images.shape) or encode(images))
    target = TargetSlice(torch.zeros(1, *SIZE), SIZE, 0)

    def segment(embeddings, known):
        return SliceResult(embeddings.features.mean() + known, "ok", {})

    results = segment_present(network, target, [1.0, None, 2.0], segment)
    assert [r.status for r in results] == ["ok", "reference_absent", "ok"]
    assert float(results[2].logits - results[0].logits) == pytest.approx(1)
    assert len(encoded) == 1
    assert [r.status for r in segment_present(network, target, [None, None], segment)] == ["reference_absent"] * 2
    assert len(encoded) == 1


def test_the_frame_of_the_patient_reaches_slices_and_references(loader, make_image):
    target = make_image(7, (*SIZE, 1))
    target.meta.update(plane_extent=(40.0, 64.0), frame_extent=(80.0, 100.0), frame_size=(51, 64))
    inferer, asked = Echo(LABELS, loader), []
    transform = loader.transform
    loader.transform = lambda item: asked.append(item["frame_extent"]) or transform(item)
    inferer(target[None], None, "a", "a")
    assert inferer.calls[0][0].frame == (51, 64)
    assert asked == [(80.0, 100.0)]


def test_it_is_said_where_scales_differ_all_the_same(loader, make_image, references, caplog):
    """The reference is the inferer's own, so that the target was prepared without knowing of it."""
    target, reference = make_image(7, (*SIZE, 1)), references["a"][0]
    target.meta.update(plane_extent=(40.0, 64.0), frame_extent=(40.0, 64.0))
    reference.meta.update(plane_extent=(60.0, 90.0), frame_extent=(60.0, 90.0))
    Echo(LABELS, loader, reference_image="a", reference_label="a")(target[None], None)
    assert "image7.nii.gz covers less in plane than its reference image0.nii.gz" in caplog.text
