"""Converted files hold the volume and its geometry, are made once, and whole or not at all."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.dicom.conversion import convert_label, convert_series, convert_structures, write_nifti
from monai_ext.data.dicom.drawing import Outlines
from monai_ext.data.dicom.rtstruct_reader import Contour, Roi, StructureSet
from monai_ext.data.dicom.series import group_headers, read_volume
from monai_ext.data.images import read_geometry, read_label
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.errors import UserError

SHAPE = (9, 7, 5)
TURN = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.2, 0.8, 0.4], [0.3, -0.3, 0.9]]))[0]


def affine_of(directions):
    affine = np.eye(4)
    affine[:3, :3] = directions @ np.diag([0.7, 1.1, 2.5])
    affine[:3, 3] = (-231.25, 117.5, 990.0)
    return affine


@pytest.fixture
def series(tmp_path):
    write_ct_series(tmp_path / "ct", np.random.default_rng(0).integers(-900, 900, SHAPE), affine_of(TURN))
    return group_headers(tmp_path / "ct")[0]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "directions",
    [TURN, np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.diag([-1.0, -1, 1]), np.diag([1.0, -1, 1])],
    ids=["oblique", "sagittal", "axial", "mirrored"],
)
def test_geometry_is_kept(tmp_path, directions, reverse):
    write_ct_series(
        tmp_path / "ct", np.random.default_rng(0).normal(size=SHAPE), affine_of(directions), reverse=reverse
    )
    (series,) = group_headers(tmp_path / "ct")
    convert_series(series, tmp_path / "image.nii.gz")
    volume, image = read_volume(series), nib.load(tmp_path / "image.nii.gz")
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-4)
    np.testing.assert_allclose(image.get_qform(), volume.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume.array)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    assert image.get_data_dtype() == np.int16


def test_label_lies_on_its_image(tmp_path, series):
    def draw():
        return np.ones(SHAPE, np.uint8)

    convert_series(series, tmp_path / "image.nii.gz")
    convert_label(draw, series, [], tmp_path / "label.nii.gz")
    image, label = read_geometry(tmp_path / "image.nii.gz"), read_geometry(tmp_path / "label.nii.gz")
    assert image.shape == label.shape
    np.testing.assert_array_equal(image.affine, label.affine)


def test_same_input_same_bytes(tmp_path, series):
    for name in ("one", "two"):
        convert_series(series, tmp_path / name / "image.nii.gz")
    assert (tmp_path / "one/image.nii.gz").read_bytes() == (tmp_path / "two/image.nii.gz").read_bytes()


def test_what_is_there_is_not_made_again(tmp_path, series):
    path, calls = tmp_path / "label.nii.gz", []

    def draw():
        calls.append(len(calls))
        return np.ones(SHAPE, np.uint8)

    for how in ("a", "a", "b", "b"):
        convert_label(draw, series, [], path, how)
    assert len(calls) == 2
    path.write_bytes(path.read_bytes()[:40])
    convert_label(draw, series, [], path, "b")
    assert len(calls) == 3


def test_nothing_half_written_stays(tmp_path, series):
    def draw():
        raise UserError("a picture is missing")

    with pytest.raises(UserError, match="a picture is missing"):
        convert_label(draw, series, [], tmp_path / "label.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


def test_roi_gets_its_value_and_notes_name_it(tmp_path, series):
    square = np.array([[2, 1, 3], [6, 1, 3], [6, 5, 3], [2, 5, 3]]) - (0.5, 0.5, 0)
    affine = read_volume(series).affine
    points = (square @ affine[:3, :3].T + affine[:3, 3]) * (-1, -1, 1)
    roi = Roi(1, "GTV", (Contour(points), Contour(points[:1], "POINT")))
    (note,) = convert_structures([(7, outlines(tmp_path, roi))], series, tmp_path / "label.nii.gz")
    assert note.startswith(f"{tmp_path / 'rt.dcm'}: ROI 'GTV': 1 contours without an inside")
    expected = np.zeros(SHAPE)
    expected[2:6, 1:5, 3] = 7
    np.testing.assert_array_equal(read_label(tmp_path / "label.nii.gz"), expected)


def outlines(folder, roi):
    (folder / "rt.dcm").write_bytes(b"its contours have been read")
    return Outlines(StructureSet(folder / "rt.dcm", "", "", None, "", "", {}, (roi,)), roi)


def test_roi_without_a_voxel_is_an_error(tmp_path, series):
    with pytest.raises(UserError, match=r"rt\.dcm: ROI 'GTV' encloses no voxel"):
        convert_structures([(1, outlines(tmp_path, Roi(1, "GTV", ())))], series, tmp_path / "label.nii.gz")


def test_sheared_affine_stays_in_the_sform(tmp_path):
    affine = affine_of(np.eye(3))
    affine[0, 2] = 0.4
    write_nifti(tmp_path / "a.nii", np.zeros(SHAPE, np.int16), affine)
    image = nib.load(tmp_path / "a.nii")
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert image.header["qform_code"] == 0
