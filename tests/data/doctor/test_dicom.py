from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom import geometry
from monai_ext.data.doctor import Finding, examine_folder
from monai_ext.data.doctor.dicom import CHECKS, read_folder
from monai_ext.data.phantoms.dicom import make_uid, write_ct_series, write_rtstruct
from monai_ext.errors import UserError

SPOILT: dict[str, Callable[[Path], Any]] = {}


def spoils(code: str) -> Callable[[Callable], Callable]:
    """Register a function that writes a folder in which ``code`` is found."""

    def register(write: Callable) -> Callable:
        SPOILT[code] = write
        return write

    return register


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def write(folder: Path, affine: np.ndarray | None = None, name: str = "ct", **options: Any) -> list[Path]:
    """A series of eight slices, 1 x 1 x 3 mm, in a folder of its own."""
    hu = np.random.default_rng(0).integers(-1000, 1000, (8, 6, 8))
    affine = np.diag([-1.0, -1.0, 3.0, 1.0]) if affine is None else affine
    return write_ct_series(folder / name, hu, affine, **{"series_description": name, **options})


def edit(path: Path, **elements: Any) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


@spoils("truncated_pixels")
def broken_copy(folder):
    path = write(folder)[3]
    path.write_bytes(path.read_bytes()[:-1])


@spoils("no_image_series")
def only_contours(folder):
    files = write(folder)
    square = np.array([[0, 0, 0], [3, 0, 0], [3, 3, 0], [0, 3, 0]], float)
    write_rtstruct(folder / "rtstruct.dcm", files, {"tumour": [square]})
    for file in files:
        file.unlink()


@spoils("unreadable_dicom")
def damaged_file(folder):
    write(folder)
    (folder / "ct" / "9.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)


@spoils("other_files")
def text_beside(folder):
    write(folder)
    (folder / "ct" / "readme.txt").write_text("not a slice")


@spoils("missing_slice")
def hole(folder):
    write(folder, drop=[4])


@spoils("uneven_spacing")
def uneven(folder):
    edit(write(folder)[4], ImagePositionPatient=[0, 0, 13.2])


@spoils("duplicate_position")
def copies(folder):
    copy = write(folder)[4].with_name("1-09.dcm")
    copy.write_bytes(copy.with_name("1-05.dcm").read_bytes())
    edit(copy, SOPInstanceUID=make_uid("copy"), InstanceNumber=9)


@spoils("mixed_patient")
def two_patients(folder):
    edit(write(folder)[4], PatientID="another")


@spoils("mixed_size")
def odd_size(folder):
    edit(write(folder)[4], Rows=4)


@spoils("mixed_spacing")
def odd_pixels(folder):
    edit(write(folder)[4], PixelSpacing=[2, 2])


@spoils("mixed_orientation")
def odd_slice(folder):
    for name in ("a", "b"):
        write(folder, name=name, series_uid=make_uid("one"), series_description="both")
    for file in (folder / "b").iterdir():
        edit(file, ImageOrientationPatient=[0, 1, 0, 0, 0, 1])


@spoils("mixed_frame_of_reference")
def moved_patient(folder):
    edit(write(folder)[4], FrameOfReferenceUID=make_uid("other"))


@spoils("several_series")
def two_series(folder):
    write(folder, name="plain")
    write(folder, name="contrast", series_number=2)


@spoils("shared_series_uid")
def two_visits(folder):
    for day in (1, 9):
        write(folder, name=f"visit{day}", series_uid=make_uid("one"), study_date=datetime.date(2020, 1, day))


@spoils("copied_files")
def copied_folder(folder):
    write(folder)
    shutil.copytree(folder / "ct", folder / "again")


@spoils("localiser")
def scout(folder):
    write(folder, drop=range(3, 8))
    for file, orientation in zip(
        sorted((folder / "ct").iterdir()), ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]), strict=False
    ):
        edit(file, ImageOrientationPatient=orientation)


@spoils("gantry_tilt")
def tilted(folder):
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    affine[1, 2] = 0.9
    write(folder, affine)


@spoils("multi_frame")
def many_frames(folder):
    edit(write(folder, drop=range(1, 8))[0], NumberOfFrames=20, PixelData=bytes(20 * 8 * 6 * 2))


@spoils("no_geometry")
def screenshot(folder):
    edit(write(folder)[4], ImagePositionPatient=None)


@spoils("bad_geometry")
def flat_pixels(folder):
    for file in write(folder):
        edit(file, PixelSpacing=[0, 1])


@spoils("order_of_numbers")
def numbered_backwards(folder):
    write(folder, reverse=True)


def test_nothing_is_found_in_a_sound_series(tmp_path):
    write(tmp_path)
    assert examine_folder(tmp_path) == []


def test_nothing_is_found_in_a_sagittal_series(tmp_path):
    sagittal = np.array([[0, 0, 3.0, -7], [-1, 0, 0, 5], [0, -1, 0, 9], [0, 0, 0, 1]])
    write(tmp_path, sagittal, modality="MR")
    assert examine_folder(tmp_path) == []


def test_each_check_has_a_folder():
    assert {check.code for check in CHECKS} == set(SPOILT)


def test_each_problem_of_geometry_has_a_check():
    named = set(re.findall(r"``([a-z_]+)``", geometry.find_problems.__doc__ or ""))
    assert named - {"no_image"} <= {check.code for check in CHECKS}
    assert len(named) > 10


@pytest.mark.parametrize("code", sorted(SPOILT))
def test_a_fault_is_found(tmp_path, code):
    SPOILT[code](tmp_path)
    found = examine_folder(tmp_path)
    assert codes(found) == {code}
    assert all(finding.sentence and finding.fix for finding in found)


def test_a_localiser_beside_a_sound_series_stops_nothing(tmp_path):
    scout(tmp_path / "scout")
    write(tmp_path, name="body", series_number=2)
    found = examine_folder(tmp_path)
    assert codes(found) == {"localiser", "several_series"}
    assert {finding.level for finding in found} == {"note"}


def test_the_sentence_names_the_series(tmp_path):
    write(tmp_path, drop=[4], name="chest")
    (finding,) = examine_folder(tmp_path)
    assert (finding.number, finding.level, finding.file) == (29, "error", str(tmp_path / "chest"))
    assert str(finding).startswith("series chest, 'chest': 1 slice is missing: 6.00 mm between 1-04.dcm and 1-06.dcm")


def test_several_problems_are_all_listed(tmp_path):
    tilt = np.diag([-1.0, -1.0, 3.0, 1.0])
    tilt[1, 2] = 0.9
    write(tmp_path, tilt, name="chest", drop=[4])
    damaged_file(tmp_path / "other")
    several = {"missing_slice", "gantry_tilt", "unreadable_dicom", "several_series"}
    assert codes(examine_folder(tmp_path)) == several


def test_one_file_may_be_named(tmp_path):
    files = write(tmp_path)
    assert len(read_folder(files[0]).images) == 1


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        examine_folder(tmp_path / "none")


def test_a_folder_of_nifti_is_sent_to_the_indexing(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"not looked at")
    (fix,) = {finding.fix for finding in examine_folder(tmp_path) if finding.code == "no_image_series"}
    assert "python -m monai_ext.data.indexing" in fix
