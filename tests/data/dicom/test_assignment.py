"""Each ROI and segment finds the series that it was drawn on, by what it names; what is not clear is refused."""

from __future__ import annotations

import datetime

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.assignment import NOT_HERE, NotAssignedError, SeriesFinder
from monai_ext.data.dicom.drawing import drawings_of
from monai_ext.data.dicom.rtstruct_reader import read_structures
from monai_ext.data.dicom.segmentation import read_segmentation
from monai_ext.data.dicom.series import group_headers
from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct
from phantoms.seg import write_seg

SHAPE = (12, 10, 8)
CT_GRID, MR_GRID = np.diag([-1.0, -1.0, 3.0, 1.0]), np.diag([-1.0, -1.0, 2.0, 1.0])
SQUARE = np.array([[2, 2, 6], [7, 2, 6], [7, 6, 6], [2, 6, 6]], float)  # on slices of both grids


@pytest.fixture
def ct(tmp_path):
    return write_ct_series(tmp_path / "ct", np.zeros(SHAPE), CT_GRID, frame_of_reference_uid="1.2.1")


@pytest.fixture
def mr(tmp_path):
    files = {"modality": "MR", "intercept": 0, "series_number": 2}
    return write_ct_series(tmp_path / "mr", np.zeros(SHAPE), MR_GRID, frame_of_reference_uid="1.2.2", **files)


@pytest.fixture
def rtstruct(tmp_path, ct, mr):
    """An RTSTRUCT that names both series: "liver" is drawn on the CT, "tumour" on the MR."""
    path = write_rtstruct(tmp_path / "rt.dcm", ct, {"liver": [SQUARE]})
    other = pydicom.dcmread(write_rtstruct(tmp_path / "other.dcm", mr, {"tumour": [SQUARE]}))
    (tmp_path / "other.dcm").unlink()

    def join(dataset):
        other.StructureSetROISequence[0].ROINumber = other.ROIContourSequence[0].ReferencedROINumber = 2
        for keyword in ("ReferencedFrameOfReferenceSequence", "StructureSetROISequence", "ROIContourSequence"):
            dataset[keyword].value.extend(other[keyword].value)

    edit(path, join)
    return path


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def contours(dataset):
    return [contour for roi in dataset.ROIContourSequence for contour in roi.ContourSequence]


def forget_slices(dataset):
    for contour in contours(dataset):
        del contour.ContourImageSequence


def rename_slices(dataset):
    for contour in contours(dataset):
        contour.ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def assigned(folder, path):
    """The folder of the series of each structure by its name, or why there is none."""
    read = read_segmentation if pydicom.dcmread(path).Modality == "SEG" else read_structures
    finder, found = SeriesFinder(series for series in group_headers(folder) if series.is_image), {}
    for drawing in drawings_of(read(path)):
        try:
            found[drawing.name] = finder.find(drawing).key.parent.name
        except NotAssignedError as error:
            found[drawing.name] = str(error)
    return found


def test_each_roi_goes_to_the_slices_that_its_contours_name(tmp_path, rtstruct):
    assert assigned(tmp_path, rtstruct) == {"liver": "ct", "tumour": "mr"}


def test_without_slices_the_frame_of_reference_decides(tmp_path, rtstruct):
    edit(rtstruct, forget_slices)
    assert assigned(tmp_path, rtstruct) == {"liver": "ct", "tumour": "mr"}


def test_slices_of_other_uids_leave_frame_of_reference_and_series(tmp_path, rtstruct):
    edit(rtstruct, rename_slices)
    assert assigned(tmp_path, rtstruct) == {"liver": "ct", "tumour": "mr"}


def test_a_roi_of_an_absent_series_goes_to_no_other(tmp_path, rtstruct, mr):
    for file in mr:
        file.unlink()
    assert assigned(tmp_path, rtstruct) == {"liver": "ct", "tumour": NOT_HERE}
    edit(rtstruct, forget_slices)
    found = assigned(tmp_path, rtstruct)
    assert found["liver"] == "ct"
    assert "lies in the frame of reference 1.2.2, which no series here has" in found["tumour"]


def test_a_frame_of_reference_that_contradicts_the_slices_is_refused(tmp_path, rtstruct):
    def contradict(dataset):
        dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.2"

    edit(rtstruct, contradict)
    assert "and the slices that it names in another one (CT of" in assigned(tmp_path, rtstruct)["liver"]


def test_a_roi_without_a_frame_of_reference_goes_by_its_slices(tmp_path, rtstruct):
    def forget(dataset):
        for roi in dataset.StructureSetROISequence:
            del roi.ReferencedFrameOfReferenceUID

    edit(rtstruct, forget)
    assert assigned(tmp_path, rtstruct) == {"liver": "ct", "tumour": "mr"}


def test_a_roi_on_slices_of_two_series_is_refused(tmp_path, rtstruct):
    def move(dataset):
        _, second = contours(dataset)
        dataset.ROIContourSequence[0].ContourSequence.append(second)

    edit(rtstruct, move)
    assert "was drawn on slices of several series (CT of" in assigned(tmp_path, rtstruct)["liver"]


def test_points_do_not_decide(tmp_path, rtstruct):
    def mark(dataset):
        _, second = contours(dataset)
        second.ContourGeometricType = "POINT"
        dataset.ROIContourSequence[0].ContourSequence.append(second)

    edit(rtstruct, mark)
    assert assigned(tmp_path, rtstruct)["liver"] == "ct"


def test_planes_tell_series_of_one_frame_apart(tmp_path, ct):
    write_ct_series(tmp_path / "fine", np.zeros(SHAPE), MR_GRID, frame_of_reference_uid="1.2.1", series_number=2)

    def forget(dataset):
        forget_slices(dataset)
        del dataset.ReferencedFrameOfReferenceSequence

    on_ct, on_both = SQUARE + (0, 0, 3), SQUARE
    path = write_rtstruct(tmp_path / "rt.dcm", ct, {"one": [on_ct], "two": [on_both]})
    edit(path, forget)
    found = assigned(tmp_path, path)
    assert found["one"] == "ct"
    assert found["two"].startswith("fits 2 series (CT of 2000-11-27")


def test_what_names_nothing_is_refused(tmp_path, ct):
    def forget(dataset):
        forget_slices(dataset)
        del dataset.ReferencedFrameOfReferenceSequence
        del dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID

    path = write_rtstruct(tmp_path / "rt.dcm", ct, {"one": [SQUARE]})
    edit(path, forget)
    assert "names neither slices nor a series nor a frame of reference" in assigned(tmp_path, path)["one"]


def test_another_patient_is_refused(tmp_path, ct):
    path = write_rtstruct(tmp_path / "rt.dcm", ct, {"one": [SQUARE]})
    edit(path, lambda dataset: setattr(dataset, "PatientID", "somebody else"))
    assert "is of the patient 'somebody else', and the images" in assigned(tmp_path, path)["one"]


@pytest.mark.parametrize("same_slices", [False, True])
def test_visits_of_one_series_uid_are_told_apart(tmp_path, same_slices):
    files = {}
    for day in (1, 2):
        when = {"study_date": datetime.date(2020, 1, day), "series_uid": "1.2.3"}
        files[day] = write_ct_series(tmp_path / f"visit{day}", np.zeros(SHAPE), CT_GRID, **when)
        if not same_slices:
            for k, file in enumerate(files[day]):
                edit(file, lambda dataset, k=k, day=day: setattr(dataset, "SOPInstanceUID", f"1.2.{day}.{k}"))
    assert [len(series.slices) for series in group_headers(tmp_path)] == [8, 8]
    path = write_rtstruct(tmp_path / "rt.dcm", files[2], {"one": [SQUARE]})
    assert assigned(tmp_path, path) == {"one": "visit2"}
    edit(path, lambda dataset: setattr(dataset, "StudyInstanceUID", "1.2.4"))
    if same_slices:  # nothing else says which: the frames of reference of both visits differ
        edit(path, lambda dataset: setattr(dataset.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", ""))
        edit(path, lambda dataset: setattr(dataset.ReferencedFrameOfReferenceSequence[0], "FrameOfReferenceUID", ""))
        assert assigned(tmp_path, path)["one"].startswith("fits 2 series")
    else:
        assert assigned(tmp_path, path) == {"one": "visit2"}


@pytest.fixture
def seg(tmp_path, ct, mr):
    mask = np.zeros(SHAPE)
    mask[3:6, 2:5, 2:4] = 1
    return write_seg(tmp_path / "seg.dcm", mr, {"tumour": mask, "more": mask})


def forget_sources(dataset):
    dataset.pop("SourceImageSequence", None)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.pop("DerivationImageSequence", None)


def test_a_seg_without_series_goes_by_the_sources_of_its_frames(tmp_path, seg):
    edit(seg, lambda dataset: dataset.pop("ReferencedSeriesSequence"))
    assert assigned(tmp_path, seg) == {"tumour": "mr", "more": "mr"}


def test_a_seg_without_any_source_goes_by_frame_of_reference_and_planes(tmp_path, seg):
    write_ct_series(tmp_path / "ct2", np.zeros(SHAPE), CT_GRID, frame_of_reference_uid="1.2.2", series_number=3)

    def forget(dataset):
        forget_sources(dataset)
        dataset.pop("ReferencedSeriesSequence")

    edit(seg, forget)
    assert assigned(tmp_path, seg) == {"tumour": "mr", "more": "mr"}
    write_ct_series(tmp_path / "mr2", np.zeros(SHAPE), MR_GRID, frame_of_reference_uid="1.2.2", series_number=4)
    assert assigned(tmp_path, seg)["tumour"].startswith("fits 2 series (MR of 2000-11-27")


def test_segments_of_one_file_may_lie_on_different_series(tmp_path, ct, seg):
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in ct]

    def move(dataset):
        dataset.pop("FrameOfReferenceUID")
        for groups in dataset.PerFrameFunctionalGroupsSequence:
            if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
                source = groups.DerivationImageSequence[0].SourceImageSequence[0]
                source.ReferencedSOPInstanceUID = uids[0]

    edit(seg, move)
    assert assigned(tmp_path, seg) == {"tumour": "mr", "more": "ct"}


def test_a_segment_on_two_series_is_refused(tmp_path, ct, seg):
    uid = pydicom.dcmread(ct[0]).SOPInstanceUID

    def move(dataset):
        source = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPInstanceUID = uid

    edit(seg, move)
    found = assigned(tmp_path, seg)
    assert "was drawn on slices of several series" in found["tumour"]
    assert found["more"] == "mr"


def test_a_seg_of_absent_images_goes_to_no_other(tmp_path, mr, seg):
    for file in mr:
        file.unlink()
    assert set(assigned(tmp_path, seg).values()) == {NOT_HERE}
    edit(seg, lambda dataset: dataset.pop("ReferencedSeriesSequence"))
    assert set(assigned(tmp_path, seg).values()) == {NOT_HERE}
