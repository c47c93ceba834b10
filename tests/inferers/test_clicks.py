"""A user's clicks, from voxel indices of the file to the masks of P²SAM."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_ext.errors import UserError
from monai_ext.inferers.baselines import CopyReferenceInferer
from monai_ext.inferers.p2sam import P2SamInferer
from monai_ext.transforms.request import REQUEST
from monai_ext.transforms.sam_input import SamInputd, input_points

SIZE = (64, 64, 2)
LABELS = {"lesion": 1, "organ": 2}


def turned(stored: str, angle: float = 15.0) -> np.ndarray:
    """Affine of an oblique volume of 1.5 x 2 x 6 mm stored in these directions."""
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(turn / 2), -np.sin(turn / 2)], [0, np.sin(turn / 2), np.cos(turn / 2)]])
    axes = np.array(
        [[{"R": 1, "L": -1}.get(d, 0), {"A": 1, "P": -1}.get(d, 0), {"S": 1, "I": -1}.get(d, 0)] for d in stored]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ tip @ axes.T @ np.diag([1.5, 2.0, 6.0])
    affine[:3, 3] = (20, -30, 7)
    assert nib.aff2axcodes(affine) == tuple(stored)
    return affine


@pytest.mark.parametrize("stored", ["RAS", "LPS", "PIR", "SLA", "IRP"])
def test_a_click_lands_on_its_pixel_and_slice(stored):
    """A single bright voxel shows where its index is in the input frame."""
    shape = (12, 9, 5)
    for index in ((2, 7, 1), (11, 0, 4), (5, 4, 3)):
        array = torch.zeros(1, *shape)
        array[(0, *index)] = 1
        affine = torch.tensor(turned(stored))
        image = MetaTensor(array, affine=affine, meta={"original_affine": affine.numpy()})
        frame = SamInputd("image", 96)({"image": image})["image"]
        (point,), (k,) = input_points(frame, [index])
        values = frame.as_tensor()[0].numpy()
        assert np.unravel_index(values.argmax(), values.shape)[2] == k
        weights = values[..., k]
        h, w = np.mgrid[: weights.shape[0], : weights.shape[1]]
        centre = [(w * weights).sum() / weights.sum(), (h * weights).sum() / weights.sum()]
        edge = 0 in index or any(i == n - 1 for i, n in zip(index, shape, strict=True))  # half of it is cut off there
        np.testing.assert_allclose(point, centre, atol=4 if edge else 0.2)
        assert weights[round(point[1]), round(point[0])] > 0.9 * weights.max()


def test_a_click_on_a_frame():
    image = MetaTensor(torch.zeros(1, 20, 10), meta={"original_affine": np.eye(4)})
    frame = SamInputd("image", 40)({"image": image})["image"]
    points, slices = input_points(frame, [[0, 0], [19, 9], [4, 7]])
    np.testing.assert_allclose(points, [[0.5, 0.5], [38.5, 18.5], [8.5, 14.5]])
    assert slices.tolist() == [0, 0, 0]


@pytest.mark.parametrize("index", [[-1, 2, 2], [12, 2, 2], [2, 2, 5]])
def test_a_click_outside(index):
    affine = torch.tensor(turned("LPS"))
    image = MetaTensor(torch.rand(1, 12, 9, 5), affine=affine, meta={"original_affine": affine.numpy()})
    frame = SamInputd("image", 96)({"image": image})["image"]
    with pytest.raises(UserError, match="lies outside of image"):
        input_points(frame, [index])


@pytest.fixture
def references(make_image, disc):
    label = np.zeros(SIZE, np.int64)
    label[..., 0] = disc(SIZE[:2], (20, 20), 8) + 2 * disc(SIZE[:2], (44, 40), 10)  # slice 1: nothing
    return {"a": (make_image(0, SIZE), label)}


@pytest.fixture
def segment(make_loader, references, make_image, tiny_network):
    """(clicks as (x, y, slice, positive, structure)) -> logits [L, H, W, D] and rows."""
    network = tiny_network(0)

    def run(*clicks, labels=LABELS, depth=2, method=P2SamInferer):
        inferer = method({"other": 7}, make_loader(references, {"other": 7}))
        image = make_image(7, (*SIZE[:2], depth))
        image.meta["original_affine"] = image.affine.numpy()
        image.meta[REQUEST] = {
            "reference_image": ["a"],
            "reference_label": ["a"],
            "labels": labels,
            "clicks": [{"index": [y, x, k], "positive": p, "structure": s} for x, y, k, p, s in clicks],
        }
        logits, details = inferer.segment_case(image[None], network)
        return logits[0].as_tensor(), details.rows

    return run


@pytest.mark.slow
def test_a_request_brings_reference_and_labels(segment):
    logits, rows = segment()
    assert len(logits) == 2
    assert [(row["label"], row["slice"], row["status"]) for row in rows] == [
        ("lesion", 0, "ok"),
        ("organ", 0, "ok"),
        ("lesion", 1, "reference_absent"),
        ("organ", 1, "reference_absent"),
    ]


@pytest.mark.slow
def test_clicks_join_the_points_of_their_structure(segment):
    plain, before = segment()
    logits, rows = segment((30, 12, 0, True, "organ"), (3, 50, 0, False, "organ"))
    assert rows[1]["points"][-2:] == [[30, 12, 1], [3, 50, 0]]
    assert len(rows[1]["points"]) == rows[1]["n_pos"] + rows[1]["n_neg"] + 2
    assert not torch.equal(logits[1], plain[1])
    assert torch.equal(logits[0], plain[0])
    assert rows[0] == before[0]


@pytest.mark.slow
def test_a_click_without_a_name_is_for_the_likeliest_structure(segment):
    plain, _ = segment()
    number = int(plain[:, 12, 30, 0].argmax())
    _, rows = segment((30, 12, 0, True, None))
    assert rows[number]["points"][-1] == [30, 12, 1]
    assert [30, 12, 1] not in rows[1 - number]["points"]


@pytest.mark.slow
@pytest.mark.parametrize(("k", "depth"), [(1, 2), (3, 4)])  # absent from the reference slice; beyond the reference
def test_clicks_alone_where_the_reference_is_silent(segment, k, depth):
    plain, before = segment(depth=depth)
    logits, rows = segment((30, 12, k, True, "organ"), depth=depth)
    said = ("label", "slice", "status", "points")
    told, plainly = ([tuple(row.get(key) for key in said) for row in some] for some in (rows, before))
    (row,) = [row for row, old in zip(told, plainly, strict=True) if row != old]
    assert row == ("organ", k, "ok", [[30, 12, 1]])
    assert not torch.equal(logits[1, ..., k], plain[1, ..., k])


@pytest.mark.slow
def test_negative_clicks_alone_make_no_mask(segment):
    plain, before = segment()
    logits, rows = segment((30, 12, 1, False, "organ"))
    assert torch.equal(logits, plain)
    assert rows == before


def test_a_method_that_heeds_no_clicks_says_so(segment):
    with pytest.raises(UserError, match="heeds no clicks"):
        segment((30, 12, 0, True, "organ"), method=CopyReferenceInferer)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["pooled", "nearest"])
def test_a_request_may_ask_for_the_nearest_reference(make_loader, make_image, disc, tiny_network, choice):
    label = disc(SIZE[:2], (20, 20), 8)[..., None].repeat(2, axis=-1)
    references = {"other": (make_image(0, SIZE), label), "alike": (make_image(7, SIZE), label)}
    inferer = P2SamInferer({"disc": 1}, make_loader(references, {"disc": 1}))
    image = make_image(7, SIZE)
    names = list(references)
    image.meta[REQUEST] = {
        "reference_image": names,
        "reference_label": names,
        "reference_choice": choice,
        "labels": {"disc": 1},
    }
    _, details = inferer.segment_case(image[None], tiny_network(0))
    assert {row["reference_slice"].count("+") for row in details.rows} == {1 if choice == "pooled" else 0}
