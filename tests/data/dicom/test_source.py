from __future__ import annotations

import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_ext.data.dicom.series import group_headers
from monai_ext.data.dicom.source import describe_grid, load_source, place_on_series
from monai_ext.data.phantoms.dicom import write_ct_series
from monai_ext.errors import UserError

SHAPE = (7, 5, 4)
AFFINE = np.array([[-1.5, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1.0]])


def write_series(folder: Path, **options: object) -> Path:
    write_ct_series(folder, np.zeros(SHAPE), AFFINE, **options)  # type: ignore[arg-type]
    return folder


def test_slices_are_in_the_order_of_space(tmp_path):
    source = load_source(write_series(tmp_path, reverse=True))
    assert [float(header.ImagePositionPatient[2]) for header in source.headers] == [-40, -37, -34, -31]
    assert source.shape == SHAPE
    np.testing.assert_allclose(source.affine, AFFINE)


def test_several_series_ask_for_a_uid(tmp_path):
    for number in (1, 2):
        write_series(tmp_path / str(number), series_number=number)
    with pytest.raises(UserError, match=r"holds 2 image series \(.*CT, 4 slices.*choose one with --series_uid"):
        load_source(tmp_path)
    uid = group_headers(tmp_path / "2")[0].series_uid
    assert load_source(tmp_path, uid).headers[0].SeriesNumber == 2
    with pytest.raises(UserError, match="no image series with the UID"):
        load_source(tmp_path, "1.2.3")


def test_visits_of_one_series_uid_in_one_folder_are_refused(tmp_path):
    for day in (1, 9):
        write_series(tmp_path / str(day), study_date=datetime.date(2020, 1, day), series_uid="1.2.3")
    assert load_source(tmp_path / "9", "1.2.3").headers[0].StudyDate == "20200109"
    with pytest.raises(UserError, match=r"2 series share the SeriesInstanceUID 1\.2\.3 \(2020-01-01 and 2020-01-09\)"):
        load_source(tmp_path, "1.2.3")


def test_slices_without_a_common_series_are_refused(tmp_path):
    for k in range(3):
        write_series(tmp_path / str(k), drop={0, 1, 2, 3} - {k}, series_number=k)
    with pytest.raises(UserError, match="each of 3 slices has a SeriesInstanceUID of its own"):
        load_source(tmp_path)


def test_a_series_with_a_hole_is_refused(tmp_path):
    with pytest.raises(UserError, match="missing"):
        load_source(write_series(tmp_path, drop={2}))


def test_a_series_without_frame_of_reference_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no FrameOfReferenceUID"):
        load_source(write_series(tmp_path, frame_of_reference_uid=""))


def test_voxels_stay_where_they_are_in_the_patient(tmp_path):
    """All 48 orders and directions of the axes give the same mask on the series."""
    source = load_source(write_series(tmp_path))
    mask = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
    for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]:
        for flips in np.ndindex(2, 2, 2):
            turn = np.stack([order, 1 - 2 * np.array(flips)], axis=1)
            stored = nib.Nifti1Image(mask, AFFINE).as_reoriented(turn)
            placed = place_on_series(np.asarray(stored.dataobj), stored.affine, source)
            np.testing.assert_array_equal(placed, mask)


@pytest.mark.parametrize(
    "change",
    [
        np.diag([1, 1, 1.05, 1]),
        np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        np.array([[0.998, -0.063, 0, 0], [0.063, 0.998, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
    ids=["stretched", "shifted", "turned", "sheared"],
)
def test_other_grids_are_recognised(tmp_path, change):
    source = load_source(write_series(tmp_path))
    mask = np.zeros(SHAPE, dtype=np.int32)
    assert place_on_series(mask, AFFINE @ change, source) is None
    assert place_on_series(mask, AFFINE + 1e-4, source) is not None  # rounding


def test_describe_grid():
    assert describe_grid(SHAPE, AFFINE) == "7 x 5 x 4 voxels of 1.5 x 1.5 x 3 mm along L, P, S from (20, 30, -40) mm"
