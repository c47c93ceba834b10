"""Writers keep left and right, and the affine; checks of affines are in test_examine."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ext.data.dicom.series import group_headers, read_volume
from monai_ext.data.images import write_mask
from monai_ext.data.phantoms.dicom import write_ct_series

SHAPE = (9, 7, 5)
ORIENTATIONS = list(product(permutations(range(3)), product([1, -1], repeat=3)))


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], oblique: bool) -> np.ndarray:
    """An affine whose axes run along the body's in another order and direction."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] @ np.diag(np.array(signs) * [1.5, 1.25, 4.0])
    if oblique:
        c, s = np.cos(0.4), np.sin(0.4)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = 13.7, -40.25, 99.125
    return affine


def heart() -> np.ndarray:
    """A mask without any symmetry: three arms of different lengths from one corner."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:7, 1, 1] = mask[1, 1:4, 1] = mask[1, 1, 1:3] = 1
    return mask


def places(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where a mask is in the patient, [N, 3] mm, sorted."""
    points = nib.affines.apply_affine(affine, np.argwhere(mask))
    return points[np.lexsort(points.round(2).T)]


@pytest.mark.parametrize("oblique", [False, True])
def test_nifti_masks_keep_left_and_right(tmp_path, oblique):
    for order, signs in ORIENTATIONS:
        affine = affine_of(order, signs, oblique)
        image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine)
        nib.save(image, tmp_path / "image.nii.gz")
        write_mask(tmp_path / "mask.nii.gz", heart(), like=tmp_path / "image.nii.gz")
        written = nib.load(tmp_path / "mask.nii.gz")
        np.testing.assert_allclose(written.affine, affine, atol=1e-4)
        np.testing.assert_allclose(
            places(np.asarray(written.dataobj), written.affine), places(heart(), affine), atol=1e-3
        )


def test_masks_of_frames_keep_left_and_right(tmp_path):
    Image.new("RGB", SHAPE[:2]).save(tmp_path / "frame.png")
    write_mask(tmp_path / "mask.png", heart()[..., 1], like=tmp_path / "frame.png")
    with Image.open(tmp_path / "mask.png") as written:
        pixels = {(x, y) for x in range(SHAPE[0]) for y in range(SHAPE[1]) if written.getpixel((x, y))}
    assert pixels == {tuple(place) for place in np.argwhere(heart()[..., 1])}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("order", "signs"), [((0, 1, 2), (-1, -1, 1)), ((1, 2, 0), (-1, -1, 1)), ((0, 2, 1), (1, -1, -1))]
)
def test_dicom_keeps_left_and_right(tmp_path, order, signs, reverse):
    affine = affine_of(order, signs, oblique=True)
    write_ct_series(tmp_path, heart() * 100, affine, reverse=reverse)
    volume = read_volume(group_headers(tmp_path)[0])
    np.testing.assert_allclose(places(volume.array > 50, volume.affine), places(heart(), affine), atol=1e-3)
