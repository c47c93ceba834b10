"""Every way in which slices fail to be a volume is found and named, and sound series are left in peace."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.geometry import find_problems
from monai_ext.data.dicom.series import group_headers, read_volume
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.errors import UserError

SHAPE = (6, 5, 9)
AFFINE = np.diag([-0.9, -0.9, 3.0, 1.0])


@pytest.fixture
def write(tmp_path):
    def write_series(**options):
        options = {"affine": AFFINE, **options}
        return write_ct_series(tmp_path, np.zeros(options.pop("shape", SHAPE)), **options)

    return write_series


def change(path, **elements):
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def move(path, by):
    position = np.array(pydicom.dcmread(path).ImagePositionPatient, dtype=float)
    change(path, ImagePositionPatient=[float(x) for x in np.round(position + by, 6)])


def problems(folder):
    (series,) = group_headers(folder)
    return find_problems(series)


def the_problem(folder):
    (problem,) = problems(folder)
    assert problem.sentence[-1] != "."
    assert problem.fix
    return problem


@pytest.mark.parametrize("reverse", [False, True])
def test_sound_series(tmp_path, write, reverse):
    write(reverse=reverse)
    assert problems(tmp_path) == []


def test_rounded_positions_are_sound(tmp_path, write):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.8, 0.8, 1.25])
    for path in write(affine=affine):
        dataset = pydicom.dcmread(path)
        cosines = np.round(np.array(dataset.ImageOrientationPatient, dtype=float), 5)
        position = np.round(np.array(dataset.ImagePositionPatient, dtype=float), 2)
        change(path, ImageOrientationPatient=cosines.tolist(), ImagePositionPatient=position.tolist())
    assert problems(tmp_path) == []


@pytest.mark.parametrize(("drop", "count"), [((4,), 1), ((2, 3, 6), 3)])
def test_missing_slices(tmp_path, write, drop, count):
    write(drop=drop)
    problem = the_problem(tmp_path)
    assert problem.code == "missing_slice"
    assert problem.sentence.startswith(f"{count} slice")
    assert f"{3.0 * (2 if count == 1 else 3):.2f} mm between" in problem.sentence


def test_missing_slice_among_three(tmp_path, write):
    write(shape=(6, 5, 4), drop=(1,))
    assert the_problem(tmp_path).code == "missing_slice"


def test_duplicate_positions(tmp_path, write):
    move(write()[3], (0, 0, 3.0))
    assert [problem.code for problem in problems(tmp_path)] == ["duplicate_position", "missing_slice"]


def test_two_acquisitions_in_one_series(tmp_path, write):
    uid = "1.2.3"
    write(series_uid=uid)
    write(series_uid=uid, series_number=2)
    problem = the_problem(tmp_path)
    assert problem.code == "duplicate_position"
    assert problem.sentence.startswith("9 of 18 slices")


@pytest.mark.parametrize(("by", "codes"), [(0.02, []), (0.1, ["uneven_spacing"]), (1.4, ["uneven_spacing"])])
def test_uneven_spacing(tmp_path, write, by, codes):
    move(write()[4], (0, 0, by))
    assert [problem.code for problem in problems(tmp_path)] == codes


def test_slice_shifted_sideways(tmp_path, write):
    move(write()[4], (2.0, 0, 0))
    assert the_problem(tmp_path).code == "uneven_spacing"


@pytest.mark.parametrize("degrees", [1.0, -12.0])
def test_gantry_tilt(tmp_path, write, degrees):
    affine = AFFINE.copy()
    affine[1, 2] = 3.0 * np.tan(np.radians(degrees))
    write(affine=affine, elements={"GantryDetectorTilt": str(degrees)})
    problem = the_problem(tmp_path)
    assert problem.code == "gantry_tilt"
    assert f"{abs(degrees):.1f} degrees" in problem.sentence


def test_tilted_plane_with_upright_steps_is_sound(tmp_path, write):
    tilt = np.radians(15)
    affine = AFFINE.copy()
    affine[:3, :3] = (
        np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]) @ AFFINE[:3, :3]
    )
    write(affine=affine, elements={"GantryDetectorTilt": "15"})
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "elements"),
    [
        ("mixed_spacing", {"PixelSpacing": [0.9, 0.8]}),
        ("mixed_orientation", {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}),
        ("mixed_frame_of_reference", {"FrameOfReferenceUID": "1.2.3"}),
        ("mixed_patient", {"PatientID": "somebody else"}),
        ("mixed_size", {"Rows": 4, "PixelData": bytes(48)}),
        ("multi_frame", {"NumberOfFrames": 2, "PixelData": bytes(120)}),
        ("no_geometry", {"PixelSpacing": None}),
        ("no_geometry", {"ImagePositionPatient": None}),
        ("bad_geometry", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}),
        ("bad_geometry", {"PixelSpacing": [0, 0.9]}),
    ],
)
def test_one_odd_slice(tmp_path, write, code, elements):
    change(write()[2], **elements)
    assert the_problem(tmp_path).code == code
    (series,) = group_headers(tmp_path)
    with pytest.raises(UserError) as error:
        read_volume(series)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_image_has_no_problems_but_cannot_be_read(tmp_path, write):
    for path in write():
        change(path, Modality="SR")
    (series,) = group_headers(tmp_path)
    assert find_problems(series) == []
    with pytest.raises(UserError, match="holds SR and no image slices"):
        read_volume(series)
