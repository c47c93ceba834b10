"""One command from DICOM to DICOM: a CT with contours of one visit gives contours on the CT of the next one."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pydicom
import pytest

from monai_ext.cli.main import main
from monai_ext.data.dicom.contours import contour_mask
from monai_ext.data.dicom.rtstruct_reader import read_structures
from monai_ext.data.dicom.sr_writer import read_sr
from monai_ext.data.manifest import Case, load_datalist
from phantoms.four_d_lung import write_phantom_4d_lung


class FollowUp(NamedTuple):
    """The two visits, and what was made of the second one."""

    root: Path
    first: Case
    second: Case
    mask: nib.Nifti1Image
    rtstruct: Path
    printed: str


@pytest.fixture(scope="module")
def follow_up(tmp_path_factory, tiny_options) -> FollowUp:
    """``monai-ext follow-up FOLDER --roi 'tumour=Tumor.*' -o OUT`` with the tiny network."""
    folder = tmp_path_factory.mktemp("lung")
    tree = write_phantom_4d_lung(folder / "4D-Lung", gates=(0,))
    for path in tree.rglob("*-p4-15568/*/1-1.dcm"):  # the second visit's contours
        path.unlink()
    options = [word for name, value in tiny_options.items() for word in (f"--{name}", str(value))]
    options += ["--n_pos", "[1,1]", "--n_neg", "[1,1]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main(["follow-up", "4D-Lung", "--roi", "tumour=Tumor.*", "-o", "out", *options])
    first, second = sorted(load_datalist(folder / "out" / "datalist.json").cases, key=lambda case: str(case.visit))
    mask = nib.load(folder / "out" / "masks" / f"{second.case}.nii.gz")
    rtstruct = folder / "out" / "dicom" / f"{second.case}.dcm"
    return FollowUp(folder, first, second, mask, rtstruct, printed.getvalue())


def test_it_leaves_contours_tables_pictures_and_a_page(follow_up):
    out, case = follow_up.root / "out", follow_up.second.case
    assert sorted(path.name for path in (out / "dicom").iterdir()) == [f"{case}.dcm", f"{case}_measures.dcm"]
    for name in ("volumes.csv", f"overlays/{case}.png", "report.html", "run.json", "doctor.txt"):
        assert (out / name).is_file(), name
    stages = [line.split()[0] for line in follow_up.printed.splitlines() if line[0] != " "]
    assert stages[:6] == ["indexed", "checked", "segmenting", "review:", "exported", "segmented"]
    assert f"{case} tumour: " in follow_up.printed


def test_contours_table_and_report_have_the_same_volume(follow_up):
    (roi,) = read_structures(follow_up.rtstruct).rois
    drawn, _ = contour_mask(roi.contours, follow_up.mask.shape, follow_up.mask.affine)
    volume = drawn.sum() * abs(np.linalg.det(follow_up.mask.affine[:3, :3])) / 1000
    with open(follow_up.root / "out" / "volumes.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["volume_ml"]) == pytest.approx(volume, rel=0.01)
    measured = read_sr(follow_up.rtstruct.with_name(f"{follow_up.second.case}_measures.dcm"))
    assert measured["tumour"].volume_ml == float(row["volume_ml"])
    assert measured["tumour"].longest_mm == float(row["longest_mm"])


def images_of(follow_up: FollowUp, case: Case) -> dict[str, pydicom.Dataset]:
    """The slices of the CT that a case was converted from, by SOPInstanceUID; the list names it by a relative path."""
    series = follow_up.root / "out" / case.extra["dicom_series"]["folder"]
    datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in series.iterdir()]
    return {dataset.SOPInstanceUID: dataset for dataset in datasets}


def test_the_rtstruct_belongs_to_the_second_visit(follow_up):
    first, second = (next(iter(images_of(follow_up, case).values())) for case in (follow_up.first, follow_up.second))
    rtstruct = pydicom.dcmread(follow_up.rtstruct)
    assert first.StudyDate < second.StudyDate
    assert [roi.ROIName for roi in rtstruct.StructureSetROISequence] == ["tumour"]
    for keyword in ("StudyInstanceUID", "StudyDate", "PatientID", "PatientName"):
        assert rtstruct[keyword].value == second[keyword].value
    (frame,) = rtstruct.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == second.FrameOfReferenceUID != first.FrameOfReferenceUID
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == second.SeriesInstanceUID


def test_its_contours_lie_where_the_predicted_mask_lies(follow_up):
    (roi,) = read_structures(follow_up.rtstruct).rois
    mask = np.asarray(follow_up.mask.dataobj) != 0
    assert mask.any()
    drawn, _ = contour_mask(roi.contours, mask.shape, follow_up.mask.affine)
    np.testing.assert_array_equal(drawn, mask)


def test_its_contours_refer_to_the_slices_in_whose_planes_they_lie(follow_up):
    images = images_of(follow_up, follow_up.second)
    for contour in pydicom.dcmread(follow_up.rtstruct).ROIContourSequence[0].ContourSequence:
        image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        heights = np.array(contour.ContourData[2::3], dtype=float)
        np.testing.assert_allclose(heights, float(image.ImagePositionPatient[2]), atol=1e-3)
