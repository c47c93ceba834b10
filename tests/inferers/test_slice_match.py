from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_ext.errors import UserError
from monai_ext.inferers.slice_match import match_slices, with_oracle_slices
from monai_ext.transforms.sam_input import SamInputd, slice_positions


def volume(
    depth, spacing=5.0, origin=0.0, tilt=0.0, upside_down=False, name="target.nii.gz", plane=24, cut="S"
) -> MetaTensor:
    """A volume in the input frame, tilted about its centre; ``upside_down``: stored from the head downwards."""
    affine = np.diag([1.0, 1.0, spacing, 1.0])
    affine[2, 3] = origin
    if upside_down:
        affine[2, 2], affine[2, 3] = -spacing, origin + (depth - 1) * spacing
    angle = np.radians(tilt)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centre = (affine @ [(plane - 1) / 2, (plane - 1) / 2, (depth - 1) / 2, 1])[:3]
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    image = torch.rand(1, plane, plane, depth)
    stored = MetaTensor(image, affine=torch.tensor(turn @ affine), meta={"filename_or_obj": name})
    return SamInputd(keys="image", image_size=32, slice_axis=cut)({"image": stored})["image"]


def frame(name="frame.png") -> MetaTensor:
    stored = MetaTensor(torch.rand(3, 48, 36), affine=torch.eye(4), meta={"filename_or_obj": name})
    return SamInputd(keys="image", image_size=32)({"image": stored})["image"]


def slow_position(target, reference, spacing, reference_spacing) -> list[int | None]:
    """Nearest reference slice by height, none where it is further than half of the thicker slice."""
    heights, reference_heights = (slice_positions(v)[0][:, 2] for v in (target, reference))
    matches = []
    for z in heights:
        distance = [abs(z - r) for r in reference_heights]
        nearest = next(k for k, d in enumerate(distance) if d <= min(distance) + 1e-3)
        matches.append(nearest if distance[nearest] <= max(spacing, reference_spacing) / 2 + 1e-2 else None)
    return matches


@pytest.mark.parametrize(
    ("target", "reference", "expected"),
    [
        ({"depth": 4}, {"depth": 4}, [0, 1, 2, 3]),
        ({"depth": 4, "origin": 10.0}, {"depth": 4}, [2, 3, None, None]),
        ({"depth": 4, "origin": -10.0}, {"depth": 4}, [None, None, 0, 1]),
        ({"depth": 4, "origin": 1.5}, {"depth": 4}, [0, 1, 2, 3]),
        ({"depth": 6, "spacing": 2.5}, {"depth": 3, "spacing": 5.2}, [0, 0, 1, 1, 2, 2]),
        ({"depth": 3, "spacing": 10.0}, {"depth": 9, "spacing": 2.5}, [0, 4, 8]),
        ({"depth": 3, "spacing": 10.0}, {"depth": 4, "spacing": 2.5}, [0, 3, None]),
        ({"depth": 3, "upside_down": True}, {"depth": 3}, [0, 1, 2]),
        ({"depth": 4, "origin": 10.0}, {"depth": 4, "upside_down": True}, [2, 3, None, None]),
    ],
)
def test_position_takes_the_nearest_slice_in_the_scanner(target, reference, expected):
    matches = match_slices(volume(**target), volume(**reference))
    assert matches == expected
    spacings = target.get("spacing", 5.0), reference.get("spacing", 5.0)
    assert matches == slow_position(volume(**target), volume(**reference), *spacings)


@pytest.mark.parametrize("noise", [-1e-4, 0.0, 1e-4])
def test_half_way_between_two_slices_the_first_is_taken_whatever_the_rounding(noise):
    assert match_slices(volume(4, origin=2.5 + noise), volume(6)) == [0, 1, 2, 3]
    assert match_slices(volume(4, origin=2.5 + noise, spacing=5.0), volume(6, upside_down=True)) == [0, 1, 2, 3]


def test_position_bears_a_mild_tilt():
    assert match_slices(volume(3, tilt=15), volume(3)) == [0, 1, 2]


def test_position_refuses_slices_cut_in_another_direction():
    with pytest.raises(UserError, match=r"target.*at 40 degrees to its reference ref\.nii.*--slice_match relative"):
        match_slices(volume(3, tilt=40), volume(3, name="ref.nii"))


@pytest.mark.parametrize("rule", ["position", "relative", "middle", "chunks", "oracle_centre"])
def test_an_axial_slice_serves_no_coronal_one(rule):
    with pytest.raises(UserError, match=r"target.*at 90 degrees to its reference ref\.nii.*--slice_axis"):
        match_slices(volume(3, cut="A"), volume(3, name="ref.nii"), rule, [1], (0, 2))


def test_a_short_axis_heart_serves_one_whose_header_has_lost_the_tilt():
    tilted = volume(3, tilt=70, cut=None, spacing=30.0)
    assert match_slices(tilted, volume(3), "middle", [1]) == [1] * tilted.shape[-1]


@pytest.mark.parametrize("shift", [100.0, -100.0])
def test_volumes_apart_are_refused_with_the_alternative(shift):
    with pytest.raises(UserError, match=r"target.*ref\.nii do not overlap in space.*--slice_match relative"):
        match_slices(volume(3, origin=shift), volume(3, name="ref.nii"))


def test_volumes_apart_in_the_plane_are_refused():
    target = volume(3)
    target.affine[0, 3] += 60.0
    with pytest.raises(UserError, match="do not overlap in space"):
        match_slices(target, volume(3))


@pytest.mark.parametrize(
    ("depth", "reference_depth", "expected"),
    [(4, 4, [0, 1, 2, 3]), (2, 4, [1, 3]), (4, 2, [0, 0, 1, 1]), (3, 1, [0, 0, 0]), (1, 5, [2]), (3, 5, [0, 2, 4])],
)
def test_relative_height(depth, reference_depth, expected):
    matches = match_slices(volume(depth, origin=1000.0), volume(reference_depth), "relative")
    assert matches == expected
    assert matches == [int((k + 0.5) / depth * reference_depth) for k in range(depth)]


def test_frames_serve_each_other():
    assert match_slices(frame(), frame()) == [0]


@pytest.mark.parametrize(
    ("held", "reference_held"),
    [((0, 4), (0, 4)), ((1, 3), (2, 8)), ((2, 9), (3, 5)), ((4, 4), (0, 6)), ((0, 9), (2, 2))],
)
def test_oracle_centre_is_the_authors_rule(held, reference_held):
    """ref_i = n_ref // 2 - (n_test // 2 - test_i), clipped, among the slices that hold the structure."""
    expected: list[int | None] = [None] * 10
    n_test, n_ref = held[1] - held[0] + 1, reference_held[1] - reference_held[0] + 1
    for test_i in range(n_test):
        ref_i = n_ref // 2 - (n_test // 2 - test_i)
        expected[held[0] + test_i] = reference_held[0] + max(0, min(n_ref - 1, ref_i))
    assert match_slices(volume(10), volume(9), "oracle_centre", reference_held, held) == expected


def test_oracle_centre_without_its_knowledge_is_refused():
    with pytest.raises(UserError, match=r"target\.nii\.gz.*oracle_centre.*--slice_match position"):
        match_slices(volume(3), volume(3), "oracle_centre", (0, 2), None)


@pytest.mark.parametrize(("held", "middle"), [([4], 4), ([2, 3, 4], 3), ([1, 2, 5, 8], 5)])
def test_middle_serves_the_whole_volume(held, middle):
    assert match_slices(volume(5), volume(9), "middle", held) == [middle] * 5


@pytest.mark.parametrize("held", [list(range(2, 19)), [5], [3, 9, 14], [3, 4]])
@pytest.mark.parametrize("shown", [(0, 9), (2, 2), (4, 5), (1, 8)])
def test_chunks_are_those_of_the_protocol(held, shown):
    """Supports at 1/6, 1/2, 5/6 of the class's slices; chunk = int((z - zmin) // ((zmax - zmin) / 3)), at most 2."""
    supports = [held[int(share * len(held) + 1e-9)] for share in (1 / 6, 1 / 2, 5 / 6)]
    expected: list[int | None] = [None] * 10
    for z in range(shown[0], shown[1] + 1):
        third = (shown[1] - shown[0]) / 3
        expected[z] = supports[0 if third == 0 else min(int((z - shown[0]) / third + 1e-9), 2)]
    assert match_slices(volume(10), volume(20), "chunks", held, shown) == expected


@pytest.mark.parametrize("rule", ["middle", "chunks"])
def test_a_reference_without_the_structure_serves_no_slice(rule):
    assert match_slices(volume(3), volume(4), rule, [], (0, 2)) == [None] * 3


def test_chunks_without_their_knowledge_are_refused():
    with pytest.raises(UserError, match=r"target\.nii\.gz.*chunks.*ep1\.yaml.*--slice_match middle"):
        match_slices(volume(3), volume(3), "chunks", [0, 1], None)


def test_unknown_rule_is_refused():
    with pytest.raises(UserError, match="slice_match 'nearest' is unknown: choose one of position, relative"):
        match_slices(volume(3), volume(3), "nearest")


@pytest.fixture
def write_label(tmp_path):
    nib = pytest.importorskip("nibabel")

    def write(label, affine) -> dict[str, str]:
        nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), tmp_path / "label.nii.gz")
        return {"case": "c", "label": str(tmp_path / "label.nii.gz")}

    return write


@pytest.mark.parametrize(("flip", "expected"), [(1, [2, 5]), (-1, [4, 7])])
def test_oracle_slices_are_counted_in_the_input_frame(write_label, flip, expected):
    label = np.zeros((6, 6, 10))
    label[2:4, 2:4, 2:5] = 1
    label[3, 3, 5] = 2
    (known,) = with_oracle_slices([write_label(label, np.diag([1, 1, 5.0 * flip, 1]))])
    assert known["oracle_slices"] == expected
    assert known["case"] == "c"


def test_oracle_slices_follow_a_forced_slice_axis(write_label):
    label = np.zeros((6, 8, 10))
    label[4, 2:4, 2:5] = 1
    pair = write_label(label, np.diag([1, 1, 5.0, 1]))
    image = MetaTensor(torch.tensor(label[None]), affine=torch.diag(torch.tensor([1, 1, 5.0, 1])))
    upright = SamInputd(keys="label", image_size=8, mode="nearest", slice_axis="R")({"label": image})["label"]
    held = np.flatnonzero(upright[0].numpy().any(axis=(0, 1))).tolist()
    (known,) = with_oracle_slices([pair], slice_axis="R")
    assert known["oracle_slices"] == [held[0], held[-1]]


def test_the_oracle_range_is_of_one_structure(write_label):
    label = np.ones((6, 6, 10))
    pair = write_label(label, np.diag([1, 1, 5.0, 1]))
    with pytest.raises(UserError, match="EP1 is of one structure, and 2 are asked for: name one, --labels"):
        with_oracle_slices([pair], labels={"a": 1, "b": 2})
    with pytest.raises(UserError, match=r"case c: .* holds no b, so it has no range of slices: leave the case out"):
        with_oracle_slices([pair], labels={"b": 2})


def test_oracle_slices_of_an_empty_label_are_refused(write_label):
    with pytest.raises(UserError, match=r"case c: .* is empty"):
        with_oracle_slices([write_label(np.zeros((4, 4, 4)), np.eye(4))])
