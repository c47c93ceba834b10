from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from monai.data import MetaTensor

from monai_ext.errors import UserError
from monai_ext.transforms.intensity import Intensityd


def scaled(array, modality=None, **options) -> np.ndarray:
    item = {"image": MetaTensor(torch.as_tensor(array)), "case": "p1", "modality": modality}
    return Intensityd(keys="image", **options)(item)["image"].numpy()


def mr_volume() -> np.ndarray:
    rng = np.random.default_rng(3)
    array = np.zeros((1, 12, 12, 4), dtype=np.int16)
    array[:, 2:9, 2:9] = rng.integers(40, 900, (1, 7, 7, 4))
    return array


def test_ct_is_windowed():
    hu = np.array([-1000, -160, 40, 240, 3000], dtype=np.int16).reshape(1, 5, 1, 1)
    assert scaled(hu, "ct").ravel().tolist() == [0, 0, 127.5, 255, 255]


@pytest.mark.parametrize("modality", ["MR", "mri", "PET", "US", "something else", None])
def test_other_volumes_are_scaled_by_percentiles_of_what_is_not_background(modality):
    array = mr_volume()
    low, high = np.percentile(array[array > 0], [0.5, 99.5])
    expected = np.clip((array - low) / (high - low), 0, 1) * 255
    assert np.allclose(scaled(array, modality), expected, atol=1e-3)


def test_padding_does_not_move_the_grey_values_of_tissue():
    array = mr_volume()
    padded = np.pad(array, ((0, 0), (30, 30), (30, 30), (0, 0)))
    assert np.array_equal(scaled(array, "MR"), scaled(padded, "MR")[:, 30:-30, 30:-30])


@pytest.mark.parametrize("modality", ["endoscopy", "CT", "MR", None])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_stay_as_they_are(modality, channels):
    picture = np.random.default_rng(0).integers(10, 200, (channels, 6, 5)).astype(np.uint8)
    result = scaled(picture, modality)
    assert result.dtype == np.float32
    assert np.array_equal(result, picture)


@pytest.mark.parametrize("modality", ["endoscopy", "CT", "MR", None])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "stored_white"), [("uint8", 255), ("float32", 1), ("float32", 255), ("uint16", 65535), ("int32", 255)]
)
def test_one_picture_is_the_same_however_it_is_stored(modality, channels, dtype, stored_white):
    picture = np.random.default_rng(0).integers(10, 200, (channels, 6, 5))
    stored = torch.from_numpy(picture * (stored_white / 255)).float()
    item = {"image": MetaTensor(stored, meta={"stored_type": dtype}), "modality": modality}
    assert np.allclose(Intensityd(keys="image")(item)["image"], picture, atol=1e-4)


def test_decimals_are_told_without_a_type():
    picture = np.random.default_rng(0).random((1, 6, 5), dtype=np.float32)
    assert np.allclose(scaled(picture, "endoscopy"), picture * 255)


def test_a_window_is_in_the_picture_s_own_units():
    picture = np.array([0.1, 0.2, 0.6], np.float32).reshape(1, 3, 1)
    assert np.allclose(scaled(picture, intensity={"window": [0.2, 0.6]}).ravel(), [0, 0, 255])


def test_16_bit_frame_is_scaled_by_percentiles():
    frame = np.random.default_rng(0).integers(0, 60000, (1, 6, 5)).astype(np.int32)
    result = scaled(frame, "endoscopy")
    assert result.min() == 0
    assert result.max() == 255
    assert len(np.unique(result)) > 20


def test_explicit_choices():
    array = mr_volume()
    assert np.allclose(scaled(array, "CT", intensity={"window": [0, 510]}), np.clip(array / 2, 0, 255))
    low, high = np.percentile(array[array > 0], [10, 90])
    expected = np.clip((array - low) / (high - low), 0, 1) * 255
    assert np.allclose(scaled(array, "CT", intensity={"percentiles": [10, 90]}), expected, atol=1e-3)
    small = np.minimum(array, 255)
    assert np.array_equal(scaled(small, "CT", intensity="none"), small)


def test_two_valued_image_keeps_its_contrast():
    array = np.zeros((1, 4, 4, 2), dtype=np.float32)
    array[:, 1:3] = 7
    assert set(np.unique(scaled(array, "MR"))) == {0, 255}


@pytest.mark.parametrize(
    "intensity",
    [
        "percentile",
        {"window": [5]},
        {"window": [9, 3]},
        {"percentiles": [-1, 99]},
        {"level": [0, 1]},
        {},
        5,
        {"window": 3},
    ],
)
def test_anything_else_lists_the_choices(intensity):
    with pytest.raises(UserError, match=r"window.*percentiles.*none"):
        Intensityd(keys="image", intensity=intensity)


def test_constant_image_names_case_and_file():
    image = MetaTensor(torch.full((1, 4, 4, 2), 3.0), meta={"filename_or_obj": "p1.nii.gz"})
    with pytest.raises(UserError, match=r"case p1, p1.nii.gz.* value 3"):
        Intensityd(keys="image")({"image": image, "case": "p1"})


def test_none_refuses_values_that_do_not_fit():
    with pytest.raises(UserError, match="from 0 to"):
        scaled(mr_volume(), intensity="none")


@settings(max_examples=50, deadline=None)
@given(
    array=npst.arrays(np.float32, (1, 4, 4, 3), elements=st.floats(-2000, 4000, width=32)),
    modality=st.sampled_from(["CT", "MR", None]),
)
def test_range_and_order_of_grey_values_hold(array, modality):
    array[0, 0, 0, :2] = [-2001, 4001]
    result = scaled(array, modality)
    assert result.min() >= 0
    assert result.max() <= 255
    assert (np.diff(result.ravel()[np.argsort(array.ravel(), kind="stable")]) >= -1e-3).all()


def test_meta_is_kept():
    affine = torch.diag(torch.tensor([2.0, 2, 3, 1], dtype=torch.float64))
    item = {"image": MetaTensor(torch.as_tensor(mr_volume()), affine=affine)}
    assert torch.equal(Intensityd(keys="image")(item)["image"].affine, affine)
