from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged
from scipy import ndimage

from monai_ext.errors import UserError
from monai_ext.prompts.masks import paper_tokens
from monai_ext.transforms.intensity import Intensityd
from monai_ext.transforms.sam_input import (
    FRAME_EXTENT,
    SamInputd,
    choose_extent,
    choose_slice_axis,
    display_spacing,
    find_layout,
    frame_extent,
    frame_size,
    input_box,
    plane_extent,
    plane_size,
    resize_labels,
    resize_planes,
    slice_positions,
    to_display,
)

CANONICAL = np.diag([1.5, 1.25, 8.0, 1.0]) + np.array([[0, 0, 0, -20.0], [0, 0, 0, 31.0], [0, 0, 0, 7.0], [0] * 4])
STORED = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def asymmetric_label(shape=(30, 24, 5)) -> np.ndarray:
    """[X, Y, Z]: an L-shape on every slice, moving with the slice; no symmetry under any flip or swap."""
    label = np.zeros(shape, dtype=np.float32)
    x, y, z = shape
    for k in range(z):
        start = x // 6 + k % 3
        label[start : start + max(1, x // 4), y // 5 : y - y // 4, k] = 1
        label[start : x - max(1, x // 5), y // 5 : y // 5 + max(1, y // 5), k] = 1
    return label


def volume(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.as_tensor(np.ascontiguousarray(array))[None], affine=torch.as_tensor(affine))


def restore(array: np.ndarray, affine: np.ndarray, order, signs) -> tuple[np.ndarray, np.ndarray]:
    """The same anatomy [X, Y, Z] stored with permuted and flipped axes, and the affine that says so."""
    ornt = np.array(list(zip(order, signs, strict=True)), dtype=float)
    return nib.orientations.apply_orientation(array, ornt), affine @ nib.orientations.inv_ornt_aff(ornt, array.shape)


def round_trip(image: MetaTensor, image_size: int, **options) -> tuple[MetaTensor, MetaTensor]:
    transform = Compose([SamInputd(keys="image", image_size=image_size, **options)])
    item = transform({"image": image})
    item["pred"] = MetaTensor(item["image"].as_tensor().clone())
    invert = Invertd(keys="pred", transform=transform, orig_keys="image", nearest_interp=False, to_tensor=True)
    return item["image"], invert(item)["pred"]


def dice(a, b) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(("order", "signs"), STORED)
def test_any_stored_orientation_gives_the_same_slices_and_returns_to_its_own_grid(order, signs):
    label = asymmetric_label()
    expected = SamInputd(keys="image", image_size=32)({"image": volume(label, CANONICAL)})["image"]
    array, affine = restore(label, CANONICAL, order, signs)
    image = volume(array, affine)
    slices, back = round_trip(image, image_size=32)
    assert torch.equal(slices.as_tensor(), expected.as_tensor())
    assert np.allclose(slices.affine, expected.affine)
    assert np.array_equal(back.affine, image.affine)
    assert dice(back[0].numpy() > 0.5, array > 0.5) > 0.97


@pytest.mark.parametrize(("order", "signs"), STORED)
def test_round_trip_is_exact_when_the_size_stays(order, signs):
    array, affine = restore(asymmetric_label(), np.diag([1.0, 1.0, 4.0, 1.0]), order, signs)
    slices, back = round_trip(volume(array, affine), image_size=30)
    assert slices.shape == (1, 24, 30, 5)
    assert np.array_equal(back[0].numpy(), array)


@pytest.mark.parametrize("image_size", [48, 64, 100, 256])
def test_mask_survives_mild_down_sampling_and_any_up_sampling(image_size):
    label = asymmetric_label((72, 60, 3))
    _, back = round_trip(volume(label, np.diag([1.0, 1.0, 4.0, 1.0])), image_size=image_size)
    assert dice(back[0].numpy() > 0.5, label > 0.5) >= (0.97 if image_size < 72 else 0.999)


def oblique_affine(spacing=(0.8, 0.8, 5.0), angles=(0.3, -0.4, 0.25)) -> np.ndarray:
    rotation = nib.eulerangles.euler2mat(*angles)
    return nib.affines.from_matvec(rotation @ np.diag(spacing), [12.0, -40.0, 3.0])


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        pytest.param((40, 36, 6), oblique_affine(), id="oblique"),
        pytest.param((40, 20, 6), np.diag([1.0, 2.0, 6.0, 1.0]), id="anisotropic-in-plane"),
        pytest.param((6, 40, 36), np.diag([5.0, -1.0, 1.2, 1.0]), id="sagittal"),
        pytest.param((40, 6, 36), np.diag([1.0, 5.0, 1.0, 1.0]), id="coronal"),
        pytest.param((40, 36, 1), np.diag([1.0, 1.0, 0.5, 1.0]), id="one-slice"),
        pytest.param((30, 36, 32), np.eye(4), id="isotropic"),
    ],
)
def test_round_trip_and_physical_positions(shape, affine):
    label = asymmetric_label(shape)
    image = volume(label, affine)
    slices, back = round_trip(image, image_size=64)
    assert dice(back[0].numpy() > 0.5, label > 0.5) > 0.97
    assert np.array_equal(back.affine, affine)
    # outer corners of the field of view are the same set of points in mm
    assert_same_points(corners(slices.affine.numpy(), slices.shape[1:]), corners(affine, shape))
    # and so is the centre of mass of the structure, to a fraction of a pixel
    assert np.allclose(centre_mm(slices), centre_mm(image), atol=0.1)


def corners(affine, shape) -> np.ndarray:
    index = np.array(list(product(*[(-0.5, n - 0.5) for n in shape])))
    return nib.affines.apply_affine(affine, index)


def assert_same_points(a, b) -> None:
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
    assert distance.min(0).max() < 1e-9
    assert distance.min(1).max() < 1e-9


def centre_mm(image: MetaTensor) -> np.ndarray:
    array = image[0].numpy().astype(float)
    index = np.stack([(grid * array).sum() for grid in np.indices(array.shape)]) / array.sum()
    return nib.affines.apply_affine(image.affine.numpy(), index)


@pytest.mark.parametrize(
    ("slice_axis", "top", "left"),
    [("S", "anterior", "right"), ("A", "superior", "right"), ("R", "superior", "anterior")],
)
def test_pictures_are_upright(slice_axis, top, left):
    x, y, z = np.meshgrid(*[np.linspace(0, 1, n) for n in (20, 22, 24)], indexing="ij")
    grows_towards = {"right": x, "anterior": y, "superior": z}
    for direction, edge in ((top, "top"), (left, "left")):
        field = volume(grows_towards[direction], np.eye(4))
        slices = SamInputd(keys="image", image_size=24, slice_axis=slice_axis)({"image": field})["image"][0]
        assert slices.as_tensor().diff(dim=0 if edge == "top" else 1).max() < 0


@pytest.mark.parametrize(("slice_axis", "towards"), [("S", (0, 0, 1)), ("A", (0, -1, 0)), ("R", (1, 0, 0))])
def test_all_patient_frames_have_one_handedness(slice_axis, towards):
    layout = find_layout((20, 22, 24), np.eye(4), slice_axis)
    rotation = layout.to_stored_index((20, 22, 24))[:3, :3]
    assert np.linalg.det(rotation) == -1
    assert tuple(rotation[:, 2]) == towards


def test_short_axis_stack_looks_the_same_as_sagittal_and_as_coronal():
    """A stack whose normal points to the right and back is close to the border between the two layouts."""
    pictures = []
    for degrees in (44, 46):
        angle = np.deg2rad(degrees)
        normal, across = (
            np.array([np.cos(angle), -np.sin(angle), 0]),
            np.array([-np.sin(angle), -np.cos(angle), 0]),
        )
        affine = nib.affines.from_matvec(np.stack([across, [0, 0, 1.0], 6 * normal], axis=1), [0, 0, 0])
        item = SamInputd(keys="image", image_size=30)({"image": volume(asymmetric_label(), affine)})["image"]
        pictures.append(item)
    assert [p.meta["slice_axis"] for p in pictures] == ["R", "A"]
    assert torch.equal(pictures[0].as_tensor(), pictures[1].as_tensor())


def test_physical_circle_stays_a_circle():
    x, y = np.indices((40, 90))
    disc = ((x * 3.0 - 60) ** 2 + (y * 1.0 - 45) ** 2 < 30**2).astype(np.float32)
    slices = SamInputd(keys="image", image_size=120)({"image": volume(disc[..., None], np.diag([3.0, 1, 9, 1]))})
    mask = slices["image"][0, :, :, 0].numpy() > 0.5
    assert slices["image"].shape == (1, 90, 120, 1)
    assert abs(np.ptp(np.flatnonzero(mask.any(0))) - np.ptp(np.flatnonzero(mask.any(1)))) <= 2
    assert mask.sum() == pytest.approx(np.pi * 30**2, rel=0.03)


@pytest.mark.parametrize("channels", [1, 3])
def test_frame_is_transposed_and_returns(channels):
    frame = torch.zeros(channels, 48, 32)
    frame[:, 3:20, 5:9] = 200
    frame[0, 30:40, 20:30] = 90
    slices, back = round_trip(MetaTensor(frame), image_size=48)
    assert slices.shape == (channels, 32, 48, 1)
    assert torch.equal(slices[..., 0].as_tensor(), frame.transpose(1, 2))
    assert torch.equal(back.as_tensor(), frame)
    assert plane_size(slices) == (32, 48)
    assert slices.meta["slice_axis"] == ""


def test_nearest_keeps_the_values_and_the_dtype():
    label = asymmetric_label((37, 41, 3)).astype(np.int16) * 7
    slices, back = round_trip(volume(label, np.diag([1.0, 1, 5, 1])), image_size=64, mode="nearest")
    assert slices.dtype == torch.int16
    assert set(np.unique(slices)) == {0, 7}
    assert np.array_equal(back[0], label)


def test_nearest_is_aligned_with_bilinear():
    label = asymmetric_label((37, 41, 3))
    item = {"a": volume(label, np.diag([1.0, 1, 5, 1])), "b": volume(label, np.diag([1.0, 1, 5, 1]))}
    item = SamInputd(keys=["a", "b"], image_size=200, mode=["bilinear", "nearest"])(item)
    assert np.allclose(centre_mm(item["a"]), centre_mm(item["b"]), atol=0.05)


def test_image_is_not_changed_in_place():
    image = volume(asymmetric_label(), CANONICAL)
    before, meta = image.as_tensor().clone(), dict(image.meta)
    SamInputd(keys="image", image_size=30)({"image": image})
    assert torch.equal(image.as_tensor(), before)
    assert set(image.meta) == set(meta)
    assert not image.applied_operations


def test_whole_way_through_files_loader_and_invertd(tmp_path):
    """After MONAI's loading and batching the thresholded prediction is the mask of the file."""
    label, affine = restore(asymmetric_label((60, 50, 4)), oblique_affine(), (1, 2, 0), (1, -1, 1))
    nib.save(nib.Nifti1Image(label * 1000, affine), tmp_path / "a.nii.gz")
    preprocessing = Compose(
        [
            LoadImaged(keys="image"),
            EnsureChannelFirstd(keys="image"),
            Intensityd(keys="image"),
            SamInputd(keys="image", image_size=64),
        ]
    )
    items = [{"image": str(tmp_path / "a.nii.gz"), "case": "a", "modality": "MR"}]
    (batch,) = DataLoader(Dataset(items, preprocessing), batch_size=1)
    logits = torch.cat([batch["image"] - 127.5, 127.5 - batch["image"]], dim=1)
    batch["pred"] = logits
    (item,) = decollate_batch(batch)
    assert plane_size(item["image"]) == plane_size(batch["image"][0])
    item = Invertd(keys="pred", transform=preprocessing, orig_keys="image", nearest_interp=False)(item)
    assert item["pred"].shape == (2, *label.shape)
    assert dice(item["pred"][0].numpy() > 0, label > 0) > 0.99
    assert np.allclose(item["pred"].affine, affine)
    assert not item["pred"].applied_operations
    assert "plane_size" not in item["pred"].meta


def test_invertd_may_ask_for_nearest():
    transform = Compose([SamInputd(keys="image", image_size=100)])
    item = transform({"image": volume(asymmetric_label(), CANONICAL)})
    item["pred"] = (item["image"] > 0.5).float()
    item = Invertd(keys="pred", transform=transform, orig_keys="image", nearest_interp=True)(item)
    assert set(np.unique(item["pred"])) == {0, 1}


def test_slice_positions_are_in_scanner_coordinates():
    affine = oblique_affine(spacing=(0.8, 0.8, 5.0))
    image = SamInputd(keys="image", image_size=64)({"image": volume(asymmetric_label((40, 36, 6)), affine)})["image"]
    centres, normal = slice_positions(image)
    expected = [nib.affines.apply_affine(affine, [19.5, 17.5, k]) for k in range(6)]
    assert np.allclose(centres, expected)
    assert np.allclose(normal, affine[:3, 2] / 5)
    assert np.allclose(np.diff(centres @ normal), 5)


def test_slice_positions_of_a_sheared_stack_are_orthogonal_to_the_planes():
    affine = np.diag([1.0, 1, 5, 1])
    affine[1, 2] = 2.0  # gantry tilt: each slice is shifted by 2 mm
    image = SamInputd(keys="image", image_size=64)({"image": volume(asymmetric_label(), affine)})["image"]
    centres, normal = slice_positions(image)
    assert np.allclose(normal, [0, 0, 1])
    assert np.allclose(np.diff(centres, axis=0), [0, 2, 5])


@pytest.mark.parametrize(
    ("spacing", "shape", "expected"),
    [
        ((1, 1, 5), (9, 9, 9), "S"),
        ((5, 1, 1), (9, 9, 9), "R"),
        ((1, 5, 1), (9, 9, 9), "A"),
        ((1, 1, 1), (9, 9, 9), "S"),
        ((5, 4.99, 1), (9, 9, 9), "A"),
        ((1, 1, 5), (9, 1, 9), "A"),
        ((1, 1, 5), (1, 1, 9), "A"),
    ],
)
def test_choose_slice_axis(spacing, shape, expected):
    assert choose_slice_axis(spacing, shape) == expected


def test_to_display_is_the_input_frame_before_resampling():
    array, affine = restore(asymmetric_label((30, 24, 5)), np.diag([1.0, 1, 4, 1]), (2, 0, 1), (-1, 1, -1))
    slices = SamInputd(keys="image", image_size=30)({"image": volume(array, affine)})["image"]
    assert np.array_equal(to_display(array, affine), slices[0].numpy())
    assert np.allclose(display_spacing(array.shape, affine), [1, 1, 4])
    assert to_display(np.arange(6).reshape(3, 2), None).shape == (2, 3, 1)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 9)] * 3),
    image_size=st.integers(1, 40),
    stored=st.sampled_from(STORED),
    channels=st.integers(1, 3),
)
def test_shapes_fit_for_any_volume(shape, spacing, image_size, stored, channels):
    array, affine = restore(np.random.default_rng(0).random(shape), np.diag([*spacing, 1.0]), *stored)
    image = MetaTensor(torch.as_tensor(array.copy()).expand(channels, *array.shape).clone(), affine=affine)
    slices, back = round_trip(image, image_size)
    assert max(slices.shape[1:3]) == image_size
    assert slices.shape[0] == channels
    assert slices.dtype == torch.float32
    assert slices.isfinite().all()
    assert np.prod(plane_size(slices)) * slices.shape[3] == array.size
    assert back.shape == image.shape


def test_broken_affine_names_the_file():
    image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([1.0, 0, 1, 1])))
    image.meta["filename_or_obj"] = "visit2.nii.gz"
    with pytest.raises(UserError, match=r"visit2.nii.gz.*singular"):
        SamInputd(keys="image", image_size=8)({"image": image})


@pytest.mark.parametrize("options", [{"mode": "cubic"}, {"slice_axis": "X"}, {"image_size": 0}])
def test_unknown_option_is_refused(options):
    with pytest.raises(UserError):
        SamInputd(**{"keys": "image", "image_size": 8, **options})


# -------------------------------------------------------------------------------------- small structures of a label

TINY = [[(0, 0)], [(0, 0), (0, 1)], [(0, 0), (1, 0)], [(0, 0), (1, 1)], [(0, 0), (0, 1), (1, 0), (1, 1)]]
STRIDE, CELLS = 4, 3


def reduced(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize_labels(torch.as_tensor(plane)[None, ..., None], size)[0, ..., 0].numpy()


@pytest.mark.parametrize("pixels", TINY)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_cells_of_a_tiny_structure_are_those_that_it_covers_on_the_stored_grid(pixels, factor):
    """Slow reference: the recovery of ``paper_tokens``, half of the largest coverage, on stored pixels."""
    side, cell = STRIDE * CELLS, STRIDE * factor
    edges = {0, 1, cell // 2, cell - 2, cell - 1, cell, 2 * cell - 1}
    for row, column in product(sorted(edges), repeat=2):
        plane = np.zeros((side * factor, side * factor), np.int64)
        for i, j in pixels:
            plane[row + i, column + j] = 7
        covered = (plane == 7).reshape(CELLS, cell, CELLS, cell).sum(axis=(1, 3))
        label = reduced(plane, (side, side))
        cells, recovered = paper_tokens(torch.as_tensor(label == 7), STRIDE, (CELLS, CELLS))
        assert recovered
        assert np.array_equal(cells.numpy(), 2 * covered >= covered.max()), (row, column)


@pytest.mark.parametrize("size", [(23, 31), (30, 33), (50, 31), (7, 9)])
@pytest.mark.parametrize("pixels", TINY[:3])
def test_a_tiny_structure_is_on_every_slice_that_holds_it(size, pixels):
    for row, column in product(range(8, 14), repeat=2):
        plane = np.zeros((40, 44), np.int64)
        for i, j in pixels:
            plane[row + i, column + j] = 2
        rows, columns = np.nonzero(reduced(plane, size))
        assert 1 <= len(rows) <= 6
        assert abs((rows.mean() + 0.5) * 40 / size[0] - row - 0.5) <= 1 + 20 / size[0]
        assert abs((columns.mean() + 0.5) * 44 / size[1] - column - 0.5) <= 1 + 22 / size[1]


@pytest.mark.parametrize("size", [(20, 20), (31, 27), (40, 40), (50, 55)])
@pytest.mark.parametrize("radius", [3, 6, 11.5])
def test_other_structures_are_those_of_nearest_neighbours(size, radius):
    rows, columns = np.mgrid[:40, :40]
    plane = np.zeros((40, 40), np.float32)
    plane[(rows - 18) ** 2 + (columns - 21) ** 2 < radius**2] = 1
    plane[30:, 5:9] = 3
    nearest = resize_planes(torch.as_tensor(plane)[None, ..., None], size, "nearest", antialias=False)
    assert np.array_equal(reduced(plane, size), nearest[0, ..., 0].numpy())
    plane[2, 2:4] = 5  # and a tiny one changes them nowhere else
    changed = reduced(plane, size) != nearest[0, ..., 0].numpy()
    assert set(np.unique(reduced(plane, size))) == {0, 1, 3, 5}
    assert not changed[5 * size[0] // 40 :].any()


@pytest.mark.parametrize(("row", "column"), list(product(range(3), repeat=2)))
def test_neighbours_of_one_pixel_are_all_kept(row, column):
    plane = np.zeros((12, 12), np.int64)
    plane[4 + row, 4 + column : 7 + column] = [1, 2, 3]
    plane[5 + row, 4 + column] = 4
    label = reduced(plane, (4, 4))
    assert set(np.unique(label)) == {0, 1, 2, 3, 4}
    plane[plane == 0] = 9  # within another structure, as a lesion in an organ
    assert set(np.unique(reduced(plane, (4, 4)))) == {1, 2, 3, 4, 9}


def test_what_a_small_structure_frees_is_filled_by_its_surroundings():
    """Three pixels in one new pixel, one in the next, where nearest neighbours look."""
    plane = np.full((8, 8), 6, np.int64)
    plane[2:4, 3] = plane[2, 2] = 1
    plane[3, 5] = 1
    assert resize_planes(torch.as_tensor(plane)[None, ..., None], (4, 4), "nearest", antialias=False)[0, 1, 2, 0] == 1
    label = reduced(plane, (4, 4))
    assert label[1].tolist() == [6, 1, 6, 6]


@pytest.mark.parametrize("size", [(64, 64), (40, 41), (100, 90), (30, 30)])
def test_no_dot_of_painted_points_is_lost(size):
    rng, plane = np.random.default_rng(size[0]), np.zeros((128, 128), np.int64)
    places = rng.permutation(np.argwhere(np.ones((8, 8))))[:12] * 13 + rng.integers(9, 12, (12, 2))
    plane[places[:, 0], places[:, 1]] = 3
    plane[100:, :5] = 8  # another structure, which is no dots
    found = reduced(plane, size)
    cells = np.argwhere(found == 3)
    for row, column in places:
        ahead = [(row + 0.5) * size[0] / 128 - 0.5, (column + 0.5) * size[1] / 128 - 0.5]
        assert np.abs(cells - ahead).max(axis=1).min() <= 1
    assert 12 <= len(cells) <= 4 * 12
    nearest = resize_planes(torch.as_tensor(plane)[None, ..., None], size, "nearest", antialias=False)[0, ..., 0]
    assert np.array_equal(found == 8, nearest.numpy() == 8)


@pytest.mark.parametrize("size", [(64, 64), (40, 41), (100, 90), (30, 30)])
def test_no_part_of_a_line_of_one_pixel_is_lost(size):
    rng, plane = np.random.default_rng(size[0]), np.zeros((128, 128), np.int64)
    top, left, bottom, right = *rng.integers(5, 30, 2), *rng.integers(60, 90, 2)
    plane[top, left : right + 1] = plane[bottom, left : right + 1] = 3
    plane[top : bottom + 1, left] = plane[top : bottom + 1, right] = 3
    plane[np.arange(95, 125), np.arange(20, 50)] = 4  # a scribble
    plane[100:, :5] = 8  # another structure, which is no line
    found = reduced(plane, size)
    for value in (3, 4):
        cells, places = np.argwhere(found == value), np.argwhere(plane == value)
        touched = {tuple(place) for place in (places + 0.5) * np.array(size) // 128}
        assert touched <= {tuple(cell) for cell in cells}
        assert ndimage.label(found == value, np.ones((3, 3)))[1] == 1
    nearest = resize_planes(torch.as_tensor(plane)[None, ..., None], size, "nearest", antialias=False)[0, ..., 0]
    assert np.array_equal(found == 8, nearest.numpy() == 8)


def test_a_short_piece_of_an_organ_is_no_line():
    plane = np.zeros((64, 64), np.int64)
    plane[21, 20:39], plane[40:50, 30:50] = 1, 2
    plane[10:12, 20:50] = 3  # nor is one of two rows
    nearest = resize_planes(torch.as_tensor(plane)[None, ..., None], (32, 32), "nearest", antialias=False)[0, ..., 0]
    assert np.array_equal(reduced(plane, (32, 32)), nearest.numpy())


def test_slices_and_channels_are_judged_one_by_one():
    label = torch.zeros(2, 8, 8, 3)
    label[0, 2, 2, 1] = label[1, 5, 4, 2] = 3
    label[0, :4, :4, 2] = 3
    found = resize_labels(label, (4, 4))
    assert found.dtype == label.dtype
    assert (found == 3).sum(dim=(1, 2)).tolist() == [[0, 1, 4], [0, 0, 1]]


# ------------------------------------------------------------------------------------------ one scale for a patient


def frame_of(shape, spacing, wanted=None, image_size=64, **options) -> MetaTensor:
    item = {"image": volume(np.random.default_rng(0).random(shape, np.float32), np.diag([*spacing, 1.0]))}
    return SamInputd("image", image_size, **options)(item | ({} if wanted is None else {FRAME_EXTENT: wanted}))["image"]


def test_extents_are_those_of_rows_and_columns():
    assert plane_extent((40, 30, 9), np.diag([1.5, 2, 8, 1])) == (60, 60)
    assert plane_extent((40, 20, 9), np.diag([1.5, 2, 8, 1])) == (40, 60)  # rows run along y
    assert plane_extent((40, 20, 9), np.diag([1.5, 2, 8, 1]), "R") == (72, 40)


@pytest.mark.parametrize("wanted", [None, (10.0, 20.0), (40.0, 60.0), (40.39, 60.59)])
def test_an_image_that_covers_most_fills_its_frame_as_alone(wanted):
    alone, image = frame_of((40, 20, 3), (1.5, 2, 8)), frame_of((40, 20, 3), (1.5, 2, 8), wanted)
    assert torch.equal(image.as_tensor(), alone.as_tensor())
    assert torch.equal(image.affine, alone.affine)
    assert frame_size(image) == tuple(image.shape[1:3]) == (43, 64)
    assert frame_extent(image) == (40, 60)


@pytest.mark.parametrize(
    ("wanted", "size", "frame"),
    [
        ((80.0, 120.0), (21, 32), (43, 64)),  # twice as large along both
        ((120.0, 60.0), (21, 32), (64, 32)),  # a tall one beside a wide one
        ((60.0, 60.0), (43, 64), (64, 64)),
        ((30.0, 75.0), (34, 51), (34, 64)),
    ],
)
def test_an_image_that_covers_less_is_a_part_of_the_frame_at_its_scale(wanted, size, frame):
    image = frame_of((40, 20, 3), (1.5, 2, 8), wanted)
    assert (tuple(image.shape[1:3]), frame_size(image)) == (size, frame)
    pixel = max(max(wanted[0], 40), max(wanted[1], 60)) / 64
    assert np.allclose(nib.affines.voxel_sizes(np.asarray(image.affine))[:2], pixel, rtol=0.03)
    assert_same_points(corners(image.affine.numpy(), image.shape[1:]), corners(np.diag([1.5, 2, 8, 1]), (40, 20, 3)))


def test_a_part_of_the_frame_returns_to_its_own_grid():
    label = asymmetric_label((30, 24, 5))
    transform = Compose([SamInputd(keys="image", image_size=128)])
    item = transform({"image": volume(label, CANONICAL), FRAME_EXTENT: (60.0, 61.0)})
    item["pred"] = MetaTensor(item["image"].as_tensor().clone())
    back = Invertd(keys="pred", transform=transform, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert back.shape == (1, 30, 24, 5)
    assert np.array_equal(back.affine, CANONICAL)
    assert FRAME_EXTENT not in back.meta
    assert dice(back[0].numpy() > 0.5, label > 0.5) > 0.97


def test_frames_of_a_video_have_no_mm():
    item = {"image": MetaTensor(torch.rand(3, 40, 30), affine=torch.eye(4)), FRAME_EXTENT: (500.0, 500.0)}
    image = SamInputd("image", 64)(item)["image"]
    assert (tuple(image.shape), frame_size(image), frame_extent(image)) == ((3, 48, 64, 1), (48, 64), None)


def test_the_larger_extent_is_chosen_along_each_axis():
    assert choose_extent((100, 90), None) == (100, 90)
    assert choose_extent((100, 90), (101, 90.9)) == (100, 90)
    assert choose_extent((100, 90), (101.1, 50)) == (101.1, 90)
    assert choose_extent((100, 90), (50, 200)) == (100, 200)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
@pytest.mark.parametrize(("image_size", "exact"), [(48, True), (40, False), (6, False), (5, False)])
def test_a_box_of_voxels_covers_them_whole(flips, image_size, exact) -> None:
    box = np.zeros((12, 10, 3), dtype=bool)
    box[3:7, 2:9, 1] = True
    image = volume(box.astype(np.float32), np.diag([*(np.array(flips) * (2, 2, 6)), 1.0]))
    image.meta["original_affine"] = image.affine.numpy()
    transform = SamInputd("image", image_size)
    frame = transform({"image": image})["image"]
    (x0, y0, x1, y1), slices = input_box(frame, [6, 2, 1], [3, 8, 1])
    assert slices == (1, 1)
    drawn = MetaTensor(torch.full_like(frame, -20.0), meta=frame.meta, applied_operations=frame.applied_operations)
    drawn[0, int(y0) : int(y1) + 1, int(x0) : int(x1) + 1, 1] = 20.0
    found = np.asarray(transform.inverse({"image": drawn})["image"])[0] > 0
    assert found[box].all()
    assert not exact or (found == box).all()
