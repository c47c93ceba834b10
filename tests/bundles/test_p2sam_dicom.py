"""From DICOM to DICOM: a CT with contours of one visit gives contours on the CT of the next one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom import export
from monai_ext.data.dicom.contours import contour_mask
from monai_ext.data.dicom.rtstruct_reader import read_structures
from monai_ext.data.indexing import __main__ as indexing
from monai_ext.data.manifest import Case, load_datalist
from phantoms.four_d_lung import write_phantom_4d_lung


class FollowUp(NamedTuple):
    """The two visits, and what was made of the second one."""

    root: Path
    first: Case
    second: Case
    mask: nib.Nifti1Image
    rtstruct: Path


@pytest.fixture(scope="module")
def follow_up(tmp_path_factory, run_bundle) -> FollowUp:
    """The three commands of docs/dicom.md, on a phantom 4D-Lung."""
    folder = tmp_path_factory.mktemp("lung")
    datalist, masks, dicom = str(folder / "list.json"), folder / "run" / "masks", folder / "run" / "dicom"
    tree = write_phantom_4d_lung(folder / "4D-Lung", gates=(0,))

    indexing.main(["4d_lung", str(tree), "-o", datalist])
    run_bundle("p2sam", "inference", datalist=datalist, output_dir=str(folder / "run"), n_pos=[1, 1], n_neg=[1, 1])
    export.main(["--masks", str(masks), "--datalist", datalist, "--format", "rtstruct", "--output", str(dicom)])

    first, second = sorted(load_datalist(datalist).cases, key=lambda case: str(case.visit))
    assert [path.name for path in dicom.iterdir()] == [f"{second.case}.dcm"]
    mask = nib.load(masks / f"{second.case}.nii.gz")
    return FollowUp(folder, first, second, mask, dicom / f"{second.case}.dcm")


def images_of(follow_up: FollowUp, case: Case) -> dict[str, pydicom.Dataset]:
    """The slices of the CT that a case was converted from, by SOPInstanceUID; the list names it by a relative path."""
    series = follow_up.root / case.extra["dicom_series"]["folder"]
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
