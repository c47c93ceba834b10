"""Tests of monai_ext.transforms.scribbles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_ext.data.images import read_label
from monai_ext.transforms.scribbles import (
    KINDS,
    SimulateScribblesd,
    background_scribble,
    simulate_scribble,
    skeleton_scribble,
    stroke_scribble,
)

LABELS = {"cavity": 3, "wall": 7}


def heart(size: int = 64) -> np.ndarray:
    """A disc (3) within a ring (7), [size, size]."""
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(x - size * 0.45, y - size * 0.5)
    return np.where(distance < size * 0.16, 3, np.where(distance < size * 0.25, 7, 0))


def two_pieces() -> np.ndarray:
    mask = np.zeros((40, 50), bool)
    mask[3:9, 4:30] = True
    mask[20:35, 30:46] = True
    return mask


@pytest.mark.parametrize("draw", [skeleton_scribble, stroke_scribble])
@pytest.mark.parametrize("seed", range(5))
def test_each_piece_gets_a_line_inside_it(draw, seed: int) -> None:
    mask = two_pieces()
    line = draw(mask, np.random.default_rng(seed))
    assert not (line & ~mask).any()
    for part in (line[:15], line[15:]):
        assert ndimage.label(part, np.ones((3, 3)))[1] == 1  # one line a piece


@pytest.mark.parametrize("draw", [skeleton_scribble, stroke_scribble])
def test_tiny_masks_are_scribbled_on(draw) -> None:
    for size in (1, 2, 3):
        mask = np.zeros((7, 7), bool)
        mask[3 : 3 + size, 3] = True
        line = draw(mask, np.random.default_rng(0))
        assert line.any()
        assert not (line & ~mask).any()


def test_empty_mask_stays_empty() -> None:
    assert not skeleton_scribble(np.zeros((5, 5), bool), np.random.default_rng(0)).any()


def test_skeleton_line_of_a_bar_lies_on_its_middle_and_keeps_its_share() -> None:
    mask = np.zeros((15, 80), bool)
    mask[5:10, 10:70] = True
    whole = skeleton_scribble(mask, np.random.default_rng(0), share=(1.0, 1.0))
    half = skeleton_scribble(mask, np.random.default_rng(0), share=(0.5, 0.5))
    assert set(np.argwhere(whole)[:, 0][3:-3]) <= {6, 7, 8}
    assert whole.sum() > 48
    assert half.sum() == pytest.approx(whole.sum() / 2, abs=1)
    assert not (half & ~whole).any()


def test_skeleton_line_runs_nearly_around_a_ring() -> None:
    ring = heart() == 7
    line = skeleton_scribble(ring, np.random.default_rng(1), share=(1.0, 1.0))
    y, x = np.nonzero(line)
    angles = np.unique(np.round(np.arctan2(y - 32, x - 28.8), 1))
    assert len(angles) > 0.75 * 2 * np.pi / 0.1


def test_strokes_prefer_the_inside() -> None:
    mask = heart() == 3
    depth = ndimage.distance_transform_edt(mask)
    lines = [stroke_scribble(mask, np.random.default_rng(seed)) for seed in range(20)]
    assert np.mean([depth[line].mean() for line in lines]) > depth[mask].mean()


def test_background_loop_surrounds_the_structures_at_its_margin() -> None:
    foreground = heart() > 0
    distance = ndimage.distance_transform_edt(~foreground)
    loop = background_scribble(foreground, np.random.default_rng(0), margin=(0.2, 0.2), share=(1.0, 1.0))
    assert distance[loop].mean() == pytest.approx(0.2 * np.sqrt(foreground.sum()), abs=1.0)
    filled = ndimage.binary_fill_holes(loop)
    assert filled[foreground].all()
    part = background_scribble(foreground, np.random.default_rng(0), margin=(0.2, 0.2), share=(0.4, 0.4))
    assert part.sum() == pytest.approx(0.4 * loop.sum(), rel=0.25)


def test_background_loop_is_cut_off_at_the_border() -> None:
    foreground = np.zeros((20, 20), bool)
    foreground[1:19, 1:19] = True
    loop = background_scribble(foreground, np.random.default_rng(0))
    assert not (loop & foreground).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 3])
def test_scribbles_agree_with_the_label_and_leave_most_unlabelled(kind: str, width: int) -> None:
    label = heart()
    scribble = simulate_scribble(label, [3, 7], 9, np.random.default_rng(0), kind, width)
    assert set(np.unique(scribble)) == {0, 3, 7, 9}
    known = scribble != 9
    assert np.array_equal(scribble[known], label[known])
    assert known.mean() < 0.08 * width


def test_structures_that_are_not_named_are_left_alone() -> None:
    label = heart()
    scribble = simulate_scribble(label, [3], 9, np.random.default_rng(0))
    assert set(np.unique(scribble)) == {0, 3, 9}
    assert not (label[scribble == 0] != 0).any()


def test_background_is_drawn_on_slices_with_structures_only_and_can_be_left_out() -> None:
    rng = np.random.default_rng(0)
    assert (simulate_scribble(np.zeros((16, 16), int), [1], 4, rng) == 4).all()
    assert not (simulate_scribble(heart(), [3, 7], 9, rng, background=False) == 0).any()


@pytest.mark.parametrize(("kind", "unlabelled"), [("dots", 9), ("stroke", 0), ("stroke", 3)])
def test_wrong_settings(kind: str, unlabelled: int) -> None:
    with pytest.raises(ValueError, match="choose"):
        simulate_scribble(heart(), [3, 7], unlabelled, np.random.default_rng(0), kind)
    with pytest.raises(ValueError, match="choose"):
        SimulateScribblesd("label", LABELS, unlabelled, kind=kind)


@pytest.mark.parametrize(("dtype", "unlabelled"), [(torch.uint8, 256), (torch.uint8, -1), (torch.float16, 2049)])
def test_a_value_that_the_label_cannot_hold_is_refused(dtype: torch.dtype, unlabelled: int) -> None:
    label = torch.as_tensor(heart()[None]).to(dtype)
    with pytest.raises(ValueError, match="cannot hold"):
        SimulateScribblesd("label", LABELS, unlabelled)({"label": label})
    found = SimulateScribblesd("label", LABELS, unlabelled)({"label": label.to(torch.int32)})
    assert (found["label"] == unlabelled).any()


def volume(axis: int) -> MetaTensor:
    stack = np.stack([heart(), np.zeros((64, 64)), heart().T], axis=axis)
    return MetaTensor(torch.as_tensor(stack[None], dtype=torch.uint8), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_are_scribbled_on_slice_by_slice(axis: int) -> None:
    item = {"label": volume(axis), "case": "a"}
    transform = SimulateScribblesd("label", LABELS, 9, output_keys="scribble", slice_axis=axis)
    found = transform(item)["scribble"]
    assert found.shape == item["label"].shape
    assert found.dtype == torch.uint8
    assert torch.equal(found.affine, item["label"].affine)
    first, empty, last = np.moveaxis(np.asarray(found[0]), axis, 0)
    assert (empty == 9).all()
    for plane, label in ((first, heart()), (last, heart().T)):
        assert set(np.unique(plane)) == {0, 3, 7, 9}
        assert np.array_equal(plane[plane != 9], label[plane != 9])


def test_scribble_depends_on_seed_and_case_alone() -> None:
    def drawn(seed: int, case: str, transform: SimulateScribblesd | None = None) -> torch.Tensor:
        transform = transform or SimulateScribblesd("label", LABELS, 9, seed=seed)
        return transform({"label": volume(2), "case": case})["label"]

    once = SimulateScribblesd("label", LABELS, 9, seed=1)
    drawn(1, "other", once)
    assert torch.equal(drawn(1, "a", once), drawn(1, "a"))
    assert not torch.equal(drawn(1, "a"), drawn(2, "a"))
    assert not torch.equal(drawn(1, "a"), drawn(1, "b"))


def test_pictures_and_plain_arrays() -> None:
    found = SimulateScribblesd("label", LABELS, 9)({"label": heart()[None], "case": "a"})["label"]
    assert found.shape == (1, 64, 64)
    assert set(np.unique(found)) == {0, 3, 7, 9}


def test_the_input_is_not_changed() -> None:
    item = {"label": volume(2), "case": "a"}
    before = item["label"].clone()
    SimulateScribblesd("label", LABELS, 9)(item)
    assert torch.equal(item["label"], before)


def test_real_labels_are_scribbled_on_like_the_drawn_ones(real_data) -> None:
    """Drawn ACDC scribbles cover 10 to 20 % of a structure; simulated ones stay in that order of size."""
    label = read_label(real_data / "ACDC" / "patient001_frame01_label.nii.gz")
    shares = []
    for k in range(label.shape[2]):
        scribble = simulate_scribble(label[..., k].astype(int), [1, 2, 3], 4, np.random.default_rng(k), "stroke")
        inside = label[..., k] > 0
        if inside.any():
            shares.append(np.isin(scribble, [1, 2, 3])[inside].mean())
    assert 0.02 < np.mean(shares) < 0.3
