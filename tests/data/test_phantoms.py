from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from monai_ext.data.phantoms import (
    FRAME_LABELS,
    PATIENT_LABELS,
    phantom_frames,
    phantom_patient,
    random_slice,
    write_phantom_frames,
    write_phantom_patient,
)

KINDS = ("mr", "rgb")


@pytest.fixture(scope="module")
def visits():
    return phantom_patient(3)


@pytest.mark.parametrize(("kind", "channels"), [("mr", 1), ("rgb", 3)])
def test_slice_is_a_float_image_of_0_to_255(kind, channels):
    rng = np.random.default_rng(0)
    for size in (64, 100, 256):
        image, label = random_slice(rng, size, kind)
        assert image.shape == (channels, size, size)
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 255
        assert image.std() > 5
        assert label.shape == (size, size)
        assert label.dtype == np.int64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 128])
def test_every_slice_has_consecutive_labels_and_a_structure(kind, size):
    rng = np.random.default_rng(1)
    for _ in range(60):
        _, label = random_slice(rng, size, kind)
        pixels = np.bincount(label.ravel())[1:]
        assert 1 <= len(pixels) <= 4
        assert (pixels > 20).all()
        assert pixels.max() <= 0.3 * label.size


@pytest.mark.parametrize("kind", KINDS)
def test_slice_depends_on_the_generator_alone(kind):
    first, again = (random_slice(np.random.default_rng(7), 96, kind) for _ in range(2))
    other = random_slice(np.random.default_rng(8), 96, kind)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("kind", KINDS)
def test_structures_are_seen_in_the_image(kind):
    rng, seen = np.random.default_rng(2), []
    for _ in range(40):
        image, label = random_slice(rng, 128, kind)
        for value in range(1, label.max() + 1):
            inside = label == value
            around = ndimage.binary_dilation(inside, iterations=3) & ~inside
            difference = image[:, inside].mean(axis=1) - image[:, around].mean(axis=1)
            seen.append(np.abs(difference).max() > 5)
    assert np.mean(seen) > 0.75


def test_mr_slices_hold_rings():
    rng, rings = np.random.default_rng(4), 0
    for _ in range(40):
        _, label = random_slice(rng, 128, "mr")
        for value in range(1, label.max() + 1):
            wall = label == value
            hole = ndimage.binary_fill_holes(wall) & ~wall
            rings += bool((label[hole] == value + 1).sum() > 20)
    assert rings >= 5


def test_slice_refuses_an_unknown_kind_and_a_tiny_size():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'ct'"):
        random_slice(rng, 64, "ct")
    with pytest.raises(ValueError, match="64 pixels"):
        random_slice(rng, 16, "mr")


def test_patient_has_each_structure_at_each_visit(visits):
    assert len(visits) == 3
    for visit in visits:
        assert visit.image.dtype == np.float32
        assert visit.label.dtype == np.uint8
        assert visit.image.shape == visit.label.shape
        assert np.unique(visit.label).tolist() == [0, *PATIENT_LABELS.values()]


@pytest.mark.parametrize("seed", [0, 3])
def test_lesion_grows_in_one_piece(seed):
    lesions = [visit.label == PATIENT_LABELS["lesion"] for visit in phantom_patient(seed)]
    volumes = [int(lesion.sum()) for lesion in lesions]
    assert 1.2 * volumes[0] < volumes[1]
    assert 1.1 * volumes[1] < volumes[2]
    assert [ndimage.label(lesion)[1] for lesion in lesions] == [1, 1, 1]


def test_lesion_moves(visits):
    centres = [
        visit.affine[:3, :3] @ ndimage.center_of_mass(visit.label == PATIENT_LABELS["lesion"]) + visit.affine[:3, 3]
        for visit in visits
    ]
    assert np.linalg.norm(centres[1] - centres[0]) > 1
    assert np.linalg.norm(centres[2] - centres[0]) > 1


def test_grids_are_oblique_and_differ_by_a_small_shift(visits):
    for visit in visits:
        axes = visit.affine[:3, :3]
        np.testing.assert_allclose(np.linalg.norm(axes, axis=0), (1.6, 1.6, 8.0))
        angle = np.degrees(np.arccos(np.abs(axes[2, 2]) / 8.0))
        assert 2 < angle < 25
        assert np.linalg.det(axes) > 0
    centres = [visit.affine @ [63.5, 55.5, 3.5, 1] for visit in visits]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.5 < np.linalg.norm(centres[a] - centres[b]) < 12
        assert not np.allclose(visits[a].affine[:3, :3], visits[b].affine[:3, :3])


def test_patients_differ_by_seed_and_visits_by_noise(visits):
    other = phantom_patient(4)
    assert not np.array_equal(visits[0].image, other[0].image)
    air = [visit.image[:4, :4] for visit in visits]
    assert not np.array_equal(air[0], air[1])
    assert air[0].std() > 0


def test_written_patient_is_the_pure_one(tmp_path, visits):
    path = write_phantom_patient(tmp_path / "new" / "folder", seed=3)
    content = json.loads(path.read_text())
    assert content["labels"] == PATIENT_LABELS
    assert content["modality"] == "MR"
    assert [case["visit"] for case in content["cases"]] == [0, 1, 2]
    assert len({case["case"] for case in content["cases"]}) == 3
    assert len({case["patient"] for case in content["cases"]}) == 1
    for case, visit in zip(content["cases"], visits, strict=True):
        image, label = (nib.load(path.parent / case[key]) for key in ("image", "label"))
        assert image.get_data_dtype() == np.int16
        np.testing.assert_allclose(image.get_fdata(), visit.image, atol=0.5)
        np.testing.assert_array_equal(np.asarray(label.dataobj), visit.label)
        np.testing.assert_allclose(image.affine, visit.affine, atol=1e-4)
        np.testing.assert_array_equal(image.affine, label.affine)


def test_writing_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    path = write_phantom_patient(tmp_path, seed=1)
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert write_phantom_patient(tmp_path, seed=1) == path
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    assert len(first) == 7


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr("monai_ext.data.phantoms.gzip.compress", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_phantom_patient(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_frames_are_a_video_of_one_moving_polyp(tmp_path):
    path = write_phantom_frames(tmp_path, seed=0, n=3)
    content = json.loads(path.read_text())
    assert content["labels"] == FRAME_LABELS == {"polyp": 255}
    assert [case["visit"] for case in content["cases"]] == [1, 2, 3]
    centres = []
    for case, (picture, polyp) in zip(content["cases"], phantom_frames(0, 3), strict=True):
        with Image.open(tmp_path / case["image"]) as image, Image.open(tmp_path / case["label"]) as label:
            assert (image.size, image.mode, label.mode) == ((384, 288), "RGB", "L")
            np.testing.assert_array_equal(np.asarray(image), picture)
            np.testing.assert_array_equal(np.asarray(label), polyp)
        assert np.unique(polyp).tolist() == [0, 255]
        assert ndimage.label(polyp)[1] == 1
        assert 0.005 < (polyp > 0).mean() < 0.3
        centres.append(ndimage.center_of_mass(polyp))
    assert min(np.linalg.norm(np.diff(centres, axis=0), axis=1)) > 5


def test_a_video_needs_a_frame():
    with pytest.raises(ValueError, match="at least one frame"):
        phantom_frames(0, 0)
