from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image

from monai_ext.data.case_reader import CaseReader
from monai_ext.data.images import read_image
from monai_ext.errors import UserError, find_user_error


def oblique_affine() -> np.ndarray:
    """A rotation about two axes, anisotropic spacing, first axis flipped."""
    c, s = np.cos(0.3), np.sin(0.3)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1.2, 1.3, 8.0])
    affine[:3, 3] = 13.7, -40.25, 99.1
    return affine


def counting(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def save_volume(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, oblique_affine() if affine is None else affine), path)
    return path


def asymmetric_picture() -> np.ndarray:
    """[H, W] = [3, 5], every pixel another value."""
    return np.arange(15, dtype=np.uint8).reshape(3, 5)


def load(path: Path, label: bool = False):
    keys = ["image"]
    steps = [LoadImaged(keys, reader=CaseReader(label=label)), EnsureChannelFirstd(keys)]
    return Compose(steps)({"image": str(path)})["image"]


def test_case_reader_volume(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "v.nii.gz", counting((2, 3, 4)))
    image = load(path)
    assert image.shape == (1, 2, 3, 4)
    np.testing.assert_array_equal(image[0], read_image(path))
    np.testing.assert_allclose(image.affine, oblique_affine(), atol=1e-5)
    assert image.meta["filename_or_obj"] == str(path)
    assert image.meta["is_frame"] is False
    assert tuple(image.meta["spatial_shape"]) == (2, 3, 4)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_case_reader_says_what_a_picture_stores(tmp_path: Path, dtype: str) -> None:
    Image.fromarray(asymmetric_picture().astype(dtype)).save(tmp_path / "p.tif")
    image = load(tmp_path / "p.tif")
    assert (image.meta["stored_type"], str(image.dtype)) == (dtype, "torch.float32")


@pytest.mark.parametrize(("shape", "loaded"), [((3, 5, 3), (3, 5, 3)), ((3, 5), (1, 5, 3))])
def test_case_reader_frame(tmp_path: Path, shape: tuple[int, ...], loaded: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "frame.png")
    image = load(tmp_path / "frame.png")
    assert image.shape == loaded
    np.testing.assert_array_equal(image, np.atleast_3d(picture).transpose(2, 1, 0))
    np.testing.assert_array_equal(image.affine, np.eye(4))
    assert image.meta["is_frame"] is True


def test_case_reader_label_is_not_scaled_to_colours(tmp_path: Path) -> None:
    Image.fromarray(asymmetric_picture()).convert("P").save(tmp_path / "label.png")
    np.testing.assert_array_equal(load(tmp_path / "label.png", label=True)[0], asymmetric_picture().T)


def test_case_reader_reads_nothing_but_what_it_knows(tmp_path: Path) -> None:
    assert CaseReader().verify_suffix(["a.nii.gz", "b.PNG"])
    assert not CaseReader().verify_suffix("a.dcm")
    with pytest.raises(ValueError, match="one file at a time"):
        CaseReader().get_data(["a.png", "b.png"])


def test_user_error_survives_load_imaged(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "v.nii.gz", counting((10, 10, 10)))
    path.write_bytes(path.read_bytes()[:200])
    for broken in (path, tmp_path / "missing.png", save_volume(tmp_path / "4d.nii", counting((2, 2, 2, 2)))):
        with pytest.raises(RuntimeError) as caught:
            load(broken)
        found = find_user_error(caught.value)
        assert found is not None
        assert broken.name in str(found)


@pytest.mark.parametrize("path", ["", Path()])
def test_an_image_without_a_name(path):
    with pytest.raises(UserError, match="no image is named: is the study's name right"):
        CaseReader().get_data(path)
